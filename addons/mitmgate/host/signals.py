"""What signals mean to a process of the gateway. Those without a meaning are ignored, and the log says so.

To the system nearly every signal means the end of a process (signal(7)): a log rotation that sends SIGUSR1, out of
habit, would take the gateway down. Only SIGTERM, SIGINT and SIGQUIT end one of ours. What the system itself sends when
a process is broken (SIGSEGV, SIGABRT and the like) keeps its meaning, and so does Ctrl-Z.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Mapping
from typing import Final

logger = logging.getLogger(__name__)

_ENDS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_LEFT_ALONE: Final = frozenset(
    {
        *(signal.SIGKILL, signal.SIGSTOP),  # can't be caught
        *(signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS),
        *(signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD, signal.SIGURG),
        *(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them; with a handler each broken pipe would be logged
    }
)
_SAY_AGAIN: Final = 1.0  # seconds


def hold_back() -> None:
    """Let signals wait that end no process of ours, until `obey` says what they mean. For a process's first act."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _of_no_end())


def obey(actions: Mapping[int, Callable[[], object]], elsewhere: Mapping[int, str]) -> None:
    """Act on signals from now on, on the running loop; ignore all others, and those that have waited too.

    elsewhere: what to say of a signal that means something to another process alone.
    """
    loop = asyncio.get_running_loop()
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    for number in _of_no_end() - actions.keys():
        loop.add_signal_handler(number, _Ignored(number, elsewhere.get(number, "")).again)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _of_no_end())


def _of_no_end() -> set[int]:
    return {int(number) for number in signal.valid_signals()} - _ENDS - _LEFT_ALONE


class _Ignored:
    """A signal without a meaning."""

    def __init__(self, number: int, more: str) -> None:
        self._more = f": {more}" if more else ""
        try:
            self._name = signal.Signals(number).name
        except ValueError:  # a real-time signal between the first and the last
            self._name = f"signal {number}"
        self._said: float | None = None

    def again(self) -> None:
        """Say that it came, once a second at most."""
        now = asyncio.get_running_loop().time()
        if self._said is None or now - self._said >= _SAY_AGAIN:
            self._said = now
            logger.warning("%s is ignored%s", self._name, self._more or "; it means nothing here")
