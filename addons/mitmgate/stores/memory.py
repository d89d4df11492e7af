"""Counters in this process."""

from collections.abc import Sequence

from mitmgate.core.window import Grant, Take, Window, new_window, settle, ticks

MAX_KEYS = 1_000_000
_SWEEP = 64  # keys looked at per new key: entries expire without a task, and a flood pays for its own cleaning


class MemoryStore:
    """Windows in a dictionary. Expired ones are dropped as new keys come.

    A key costs about 300 bytes with one admitted request, and 8 bytes for each further unit that counts. Where
    MAX_KEYS live keys are reached, new keys share one window a limit: whoever floods keys gets less, never more, and
    no key that counts is forgotten.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        """Start empty."""
        self._windows: dict[str, Window] = {}
        self._max_keys = max_keys
        self._sweeping: list[str] = []

    def take(self, takes: Sequence[Take], now: float) -> Sequence[Grant]:
        """Decide at once."""
        return settle(takes, [self._window(take, now) for take in takes], now)

    def look(self, takes: Sequence[Take], now: float) -> Sequence[Grant]:
        """Say what `take` would, and spend nothing."""
        return settle(takes, [self._window(take, now) for take in takes], now, spend=False)

    def _window(self, take: Take, now: float) -> Window:
        window = self._windows.get(take.key)
        if window is None:
            self._sweep(ticks(now))
            key = take.key
            if len(self._windows) >= self._max_keys:
                key = f"{take.limit.name}\0overflow"
                window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = new_window(take.limit)
        return window

    def _sweep(self, now: int) -> None:
        if not self._sweeping:
            self._sweeping = list(self._windows) if len(self._windows) > _SWEEP else []
        for key in self._sweeping[-_SWEEP:]:
            window = self._windows.get(key)
            if window is not None and window.until <= now:
                del self._windows[key]
        del self._sweeping[-_SWEEP:]

    def __len__(self) -> int:
        """Count the keys that are held."""
        return len(self._windows)

    async def start(self) -> None:
        """There is nothing to open."""

    async def close(self) -> None:
        """There is nothing to close."""
