"""Introspection (RFC 7662): an issuer is asked about its opaque tokens, and what it says counts for a while.

A token is asked about by one request at a time; whoever brings it meanwhile waits for the same answer. What goes wrong
on the way is a refusal, and is not remembered: the next request asks again. Nothing here keeps a token.
"""

import asyncio
import logging
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, NamedTuple
from urllib.parse import quote_plus, urlencode, urlsplit

from cachetools import LRUCache

from mitmgate.core.claims import principal_of
from mitmgate.core.introspection import UNAVAILABLE, read_answer
from mitmgate.core.principal import Principal
from mitmgate.core.refusal import Refusal
from mitmgate.core.revocation import marks
from mitmgate.core.rules import Introspection, Issuer
from mitmgate.keys.fetch import FetchError, ask_issuer

logger = logging.getLogger(__name__)

Ask = Callable[[Introspection, bytes, str], Awaitable[bytes]]
"""Sends a form with a credential to an issuer, and returns the body of its answer; raises FetchError."""

MOST_ASKED: Final = 64
"""Questions of one issuer that are on their way. Anybody can make up tokens; those beyond are refused at once."""

_ROOM: Final = 16 * 1024 * 1024
_ORDINARY: Final = 1024  # octets that an answer counts for at the least
_TOLD_EVERY: Final = 30.0  # seconds between two lines of the log


class _Said(NamedTuple):
    """What came of an answer. until: of its clock. earliest, latest: Unix seconds between which it holds."""

    result: Principal | Refusal
    until: float
    earliest: float
    latest: float
    size: int


class Introspector:
    """Asks one issuer of a policy about opaque tokens."""

    def __init__(self, issuer: Issuer, ask: Ask = ask_issuer, ticks: Callable[[], float] = time.monotonic) -> None:
        """issuer: one with `introspection`. ticks: seconds of a clock that nobody sets."""
        if issuer.introspection is None:
            raise ValueError("the issuer is not asked")
        self.issuer = issuer
        self._rule = issuer.introspection
        self.prefix = self._rule.prefix
        self._ask = ask
        self._ticks = ticks
        self._said: LRUCache[bytes, _Said] = LRUCache(_ROOM, getsizeof=lambda said: max(_ORDINARY, 2 * said.size))
        self._asking: dict[bytes, asyncio.Task[Principal | Refusal]] = {}
        self._logged = -_TOLD_EVERY
        user, secret = quote_plus(self._rule.client_id), quote_plus(self._rule.client_secret)
        self._credential = f"Basic {b64encode(f'{user}:{secret}'.encode()).decode()}"  # RFC 6749, section 2.3.1

    def known(self, digest: bytes, now: float) -> Principal | Refusal | None:
        """Return what counts of a token without asking; None: nothing. now: Unix seconds."""
        said = self._said.get(digest)
        if said is None or not (self._ticks() < said.until and said.earliest <= now < said.latest):
            return None
        return said.result

    async def answer(self, token: bytes, digest: bytes, now: float) -> Principal | Refusal:
        """Ask about a token, or wait for who does already; at most `timeout` seconds. digest: of the token."""
        task = self._asking.get(digest)
        if task is None:
            if len(self._asking) >= MOST_ASKED:
                self._log(f"{MOST_ASKED} questions are on their way")
                return UNAVAILABLE
            task = asyncio.create_task(self._question(token, digest, now), name="introspection")
            self._asking[digest] = task
        await asyncio.wait({task})  # a client that leaves takes nobody else's answer along
        return UNAVAILABLE if task.cancelled() else task.result()

    async def close(self) -> None:
        """Ask no more; who waits is refused."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _question(self, token: bytes, digest: bytes, now: float) -> Principal | Refusal:
        began = self._ticks()
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")
        try:
            document = await self._ask(self._rule, form, self._credential)
            result, earliest, latest = self._read(document, now)
        except FetchError as error:
            self._log(str(error))
            return UNAVAILABLE
        except Exception as error:
            logger.exception("introspection failed", exc_info=error)
            return UNAVAILABLE
        finally:
            del self._asking[digest]
        if result is UNAVAILABLE:
            self._log("the answer is none (RFC 7662, section 2.2)")
        else:
            counts = self._rule.cache if isinstance(result, Principal) else self._rule.refused
            said = _Said(result, began + counts, earliest, latest, len(document))
            if max(_ORDINARY, 2 * said.size) <= _ROOM:
                self._said[digest] = said
        return result

    def _read(self, document: bytes, now: float) -> tuple[Principal | Refusal, float, float]:
        issuer = self.issuer
        # What is looked at of a JWT's header and of its kind, the answer says in members of its own.
        verified = read_answer(document, replace(issuer, token_type="any"), now)
        if isinstance(verified, Refusal):
            return verified, 0.0, float("inf")
        principal = principal_of(verified, issuer)
        if isinstance(principal, Refusal):
            return principal, 0.0, float("inf")
        principal = replace(principal, issued=verified.times.issued, marks=marks(principal, None))
        earliest, latest = verified.times.window(issuer.leeway, issuer.max_lifetime)
        return principal, earliest, min(latest, verified.times.expires)

    def _log(self, why: str) -> None:
        at = self._ticks()
        if at - self._logged >= _TOLD_EVERY:
            self._logged = at
            parts = urlsplit(self._rule.url)
            logger.warning("introspection at %s://%s%s: %s", parts.scheme, parts.netloc, parts.path, why)
