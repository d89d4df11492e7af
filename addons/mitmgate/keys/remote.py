"""A published key set (`jwks_url`): fetched ahead of need and in the background, kept over outages for a while.

Requests never start more than one fetch in `min_refresh` seconds, whatever key ids they bring, and all that wait,
wait for the same one. A new document replaces the old one as a whole, so a withdrawn key is gone with it; what is no
JWK set, or has no key to verify with, replaces nothing: no issuer revokes every key at once and goes on, so an empty
list is an issuer's accident.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from mitmgate.core.rules import KeySource
from mitmgate.keys.discovery import jwks_uri, metadata_urls
from mitmgate.keys.fetch import FetchError, NotThereError, fetch_document
from mitmgate.keys.jwks import parse_jwk_set
from mitmgate.keys.keyset import KeySet

logger = logging.getLogger(__name__)

_LONGEST_RETRY = 60.0
_MOST_NAMED = 4  # keys of a set without a usable one


class _NoUsableKeyError(ValueError):
    """A JWK set with nothing to verify with."""


class RemoteKeys:
    """The keys of one `jwks_url`, for every issuer that names it the same way."""

    def __init__(
        self,
        source: KeySource,
        *,
        fetch: Callable[[str, KeySource], Awaitable[bytes]] = fetch_document,
        ticks: Callable[[], float] = time.monotonic,
        retry: float = 1.0,
    ) -> None:
        """Prepare; nothing is fetched before `start`.

        ticks: seconds of a clock that nobody sets: a key set's age says nothing of the time of day. retry: seconds to
        the first retry of a failed fetch; each further one waits twice as long.
        """
        self.source = source
        self._fetch = fetch
        self._ticks = ticks
        self._retry = retry
        parts = urlsplit(source.url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._document: bytes | None = None
        self._keys: KeySet | None = None
        self._fetched = 0.0
        self._failures = 0  # since the last key set
        self._keyless = False  # the last document had no usable key
        self.failed = 0
        """Fetches that have failed, ever."""
        self._attempted = 0.0
        self._arrived = asyncio.Event()
        self._fetching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    def current(self) -> KeySet | None:
        """Return the keys in force; None where none were fetched, or they are older than max_stale."""
        keys = self._keys
        if keys is None or self._ticks() - self._fetched > self.source.max_stale:
            return None
        return keys

    def age(self) -> float | None:
        """Return the seconds since the key set was fetched; None where it never was."""
        return None if self._keys is None else self._ticks() - self._fetched

    def refetch(self) -> asyncio.Task[None] | None:
        """Return the fetch that may bring keys that are not there: the one under way, or a new one.

        None where the last one was started less than min_refresh seconds ago, or this is not running.
        """
        if self._fetching is not None or self._refreshing is None:
            return self._fetching
        if self._ticks() - self._attempted < self.source.min_refresh:
            return None
        return self._begin()

    def start(self) -> asyncio.Task[None] | None:
        """Start to fetch, with a running loop; returns the fetch that is under way. A second call changes nothing."""
        if self._refreshing is None:
            first = self._begin()
            self._refreshing = asyncio.create_task(self._keep_fresh(first), name=f"keys of {self._shown}")
        return self._fetching

    async def arrived(self) -> None:
        """Wait until there have been keys to verify with; for ever, where there never are."""
        await self._arrived.wait()

    async def close(self) -> None:
        """Stop fetching; the keys that are there serve until they are stale."""
        tasks = [task for task in (self._refreshing, self._fetching) if task is not None]
        self._refreshing = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._attempted = self._ticks()
            self._fetching = asyncio.create_task(self._update(), name=f"fetch of {self._shown}")
        return self._fetching

    async def _keep_fresh(self, fetch: asyncio.Task[None]) -> None:
        while True:
            await asyncio.wait({fetch})
            pause = self.source.refresh
            if self._keyless:
                pause = min(pause, max(self._retry, self.source.min_refresh))
            elif self._failures:
                pause = min(pause, _LONGEST_RETRY, self._retry * 2.0 ** min(self._failures - 1, 16))
            await asyncio.sleep(pause)
            fetch = self._begin()

    async def _update(self) -> None:
        asked = self._ticks()
        self._keyless = False
        try:
            document = await self._fetch(await self._address(), self.source)
            if document != self._document:
                self._install(_usable(parse_jwk_set(document, secrets=False)))
                self._document = document
            self._fetched = asked
            self._failures = 0
        except Exception as error:  # whatever a server or a document does, the next refresh must come
            self._failures += 1
            self.failed += 1
            self._keyless = isinstance(error, _NoUsableKeyError)
            kept = "those that are kept serve" if self.current() is not None else "there are none to verify with"
            expected = isinstance(error, FetchError | ValueError)
            logger.warning("keys of %s not fetched: %s; %s", self._shown, error, kept, exc_info=not expected)
        finally:
            self._fetching = None

    async def _address(self) -> str:
        """Return where the key set is. Metadata is asked anew each time: an issuer may move its keys."""
        source = self.source
        if not source.issuer:
            return source.url
        first, second = metadata_urls(source.issuer)
        try:
            metadata = await self._fetch(first, source)
        except NotThereError as error:
            try:
                metadata = await self._fetch(second, source)
            except FetchError:
                raise error from None
        return jwks_uri(metadata, source.issuer, plain_http=source.plain_http)

    def _install(self, keys: KeySet) -> None:
        self._keys = keys
        self._arrived.set()
        logger.info("keys of %s: %d usable", self._shown, len(keys.keys))
        for reason in keys.ignored:
            logger.warning("keys of %s: %s", self._shown, reason)


def _usable(keys: KeySet) -> KeySet:
    if not keys.keys:
        raise _NoUsableKeyError("; ".join(["the key set has no usable key", *keys.ignored[:_MOST_NAMED]]))
    return keys
