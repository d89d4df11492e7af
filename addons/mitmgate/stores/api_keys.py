"""The API keys that are good, as this process knows them: a list that is read anew whenever it has changed.

Theory of operation. As with revocations (stores/revocations.py) whoever makes or ends a key appends to a list, a file
or a list in Redis, which every process looks at every EVERY seconds. Unlike there, what is not on the list is not good:
the list as it is now replaces what was known, and one that comes back without its keys admits nobody. Each look holds
for FRESH seconds from when it began; beyond that nobody knows which keys are good, and the policy says what follows:
`deny`, or with `last-known` what was known counts on. A list that can't be understood is as one that can't be read.
Before the list was read once, nothing is known, and all is denied.

A key that this process knew to be revoked stays so, also where an older list takes the place of the list, whatever was
there meanwhile: whoever copies over a file makes it empty first.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import ClassVar, Protocol

from mitmgate.audit.event import api_key_ended, api_key_learnt, api_keys_known, api_keys_unknown
from mitmgate.audit.record import Event
from mitmgate.core.api_key import MOST, SEVERAL, UNAVAILABLE, ApiKey, check, read
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.stores.list_file import ListFile, read_part
from mitmgate.stores.revocations import EVERY
from mitmgate.stores.shared_list import OnFailure, SharedList

logger = logging.getLogger(__name__)


class Source(Protocol):
    """A list that outlives processes."""

    async def news(self, version: object) -> tuple[object, list[bytes]] | None:
        """Return the version and the lines of the list; None where it is still this version. Raises where it can't."""
        ...

    async def add(self, lines: Sequence[bytes]) -> None:
        """Append lines in one step, durably as far as the list is. Raises OSError and what Redis raises."""
        ...

    async def close(self) -> None:
        """Let go of what is open."""
        ...


class ApiKeys(SharedList):
    """The keys. Without a source none is known, and all is denied."""

    subject: ClassVar[str] = "which API keys are good"

    def __init__(
        self,
        source: Source | None = None,
        on_failure: OnFailure = "deny",
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """emit: takes audit events."""
        super().__init__(on_failure, emit, followed=source is not None)
        self.source = source
        self._keys: Mapping[str, ApiKey] = {}
        self._revoked: dict[str, float] = {}  # by id: since when; the MOST that were found out last
        self._next = 0.0  # Unix seconds: when the next key ends

    def __len__(self) -> int:
        """Return how many there are, ended ones included."""
        return len(self._keys)

    def authenticate(self, values: Sequence[bytes], now: float, started: float) -> Principal | Refusal:
        """Find out who asks. values: of the field that keys are in, one at least.

        now: Unix seconds. started: when the request arrived, or the present (seconds, time.perf_counter).
        """
        if len(values) != 1:
            return SEVERAL
        return UNAVAILABLE if started > self._until else check(values[0], self._keys, now)

    def ended(self, principal: Principal) -> Reason | None:
        """Say why the key of a principal is good no longer, as far as is known; None: it still is."""
        key = self._keys.get(principal.token_id or "")
        if key is None or key.revoked is not None:
            return Reason.API_KEY_REVOKED
        return None if time.time() < key.expires else Reason.API_KEY_EXPIRED

    async def close(self) -> None:
        """Stop following."""
        await super().close()
        if self.source is not None:
            await self.source.close()

    async def _follow(self) -> None:
        source, version = self.source, None
        while source is not None:
            asked = perf_counter()
            try:
                news = await source.news(version)
                if news is not None:
                    self._take(await asyncio.to_thread(read, news[1]))
                    version = news[0]
                if time.time() >= self._next:
                    self._ended()
                self._fresh(asked)
                self._known(asked)
                self._first.set()
            except Exception as error:  # whatever it is: nobody knows which keys are good
                version = None
                self._unknown(str(error) or repr(error))
                if isinstance(error, FileNotFoundError):  # there may not be one yet: a start need not wait for it
                    self._first.set()
            await asyncio.sleep(EVERY)

    def _take(self, keys: dict[str, ApiKey]) -> None:
        """Let a list take the place of what was known."""
        before, now = self._keys, time.time()
        for identifier, key in keys.items():
            if key.revoked is not None:
                self._revoked.setdefault(identifier, key.revoked)
            elif identifier in self._revoked:
                keys[identifier] = replace(key, revoked=self._revoked[identifier])
        for identifier in [one for one in self._revoked if one not in keys][: max(0, len(self._revoked) - MOST)]:
            del self._revoked[identifier]
        self._keys = keys
        for identifier, key in before.items():
            listed = keys.get(identifier)
            if key.revoked is None and (listed is None or listed.revoked is not None):
                by = "" if listed is None else listed.ended_by
                self._emit(api_key_ended(now, identifier, key.principal.subject, listed=listed is not None, by=by))
        for identifier, key in () if self._told is None else keys.items():
            if identifier not in before and key.revoked is None:
                self._emit(api_key_learnt(now, identifier, key.principal.subject, key.by))
        self._next = 0.0  # whatever has ended is cut in the same look

    def _ended(self) -> None:
        """Cut what a key has opened whose time is over: it may have become shorter since then."""
        now = time.time()
        self._next = min([key.expires for key in self._keys.values() if key.expires > now], default=math.inf)
        self.changed()

    def _event(self, seconds: float | None) -> Event:
        return api_keys_known(time.time(), seconds, len(self._keys))

    def _event_unknown(self, why: str) -> Event:
        return api_keys_unknown(time.time(), self._decides, why)


class KeyFile(ListFile):
    """A list in a file that processes of one machine share. Whatever changes it, it is read anew as a whole."""

    async def news(self, version: object) -> tuple[object, list[bytes]] | None:
        """Return what the file is now and its lines, where it is another than it was."""
        return await asyncio.to_thread(self._news, version)

    def _news(self, version: object) -> tuple[object, list[bytes]] | None:
        descriptor = self.open(os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            now = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            if now == version:
                return None
            content = read_part(descriptor, 0, status.st_size)
        finally:
            os.close(descriptor)
        # What has no end is being written, or a crash has left it: nobody was told that it is there.
        return now, [line for line in content[: content.rfind(b"\n") + 1].split(b"\n") if line]

    async def add(self, lines: Sequence[bytes]) -> None:
        """Append lines, and have them on the disk."""
        await asyncio.to_thread(self.append, b"\n".join(lines))

    async def close(self) -> None:
        """Nothing is open between two looks."""
