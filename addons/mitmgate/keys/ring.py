"""The key ring: every issuer of the policy in force with its keys, and the tokens that were verified with them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple

from cachetools import LRUCache

from mitmgate.core.claims import ISSUER_UNKNOWN
from mitmgate.core.introspection import UNAVAILABLE, is_opaque
from mitmgate.core.principal import Principal
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer, KeySource
from mitmgate.core.token import WRONG_TYPE, SignedClaims, UnverifiedToken, read_token
from mitmgate.keys.fetch import ask_issuer
from mitmgate.keys.introspection import Ask, Introspector
from mitmgate.keys.material import key_set
from mitmgate.keys.remote import RemoteKeys
from mitmgate.keys.verify import KEYS_UNAVAILABLE, KeyStore, StaticKeys, Verified, Verifier

UNKNOWN_KEY_WAIT = 2.0
"""Seconds that a request with an unknown key id waits for the fetch that may bring it."""

FIRST_FETCH_WAIT = 5.0
"""Seconds that a start or a reload waits for key sets, failed fetches and their retries included. Then what can be
served is; requests that need a key set that is not there are denied."""

ORDINARY = 1024
"""Octets of a token that counts once in the memory of verified tokens; its claims take about twice as much."""

Result = Principal | Refusal


class _Edition(NamedTuple):
    """The verifiers of one policy, by the issuer's name and by each `iss`, which stands in a policy once."""

    issuers: Mapping[str, Issuer]
    verifiers: Mapping[str, Verifier]
    by_iss: Mapping[str, Verifier]
    introspectors: tuple[Introspector, ...] = ()
    """In the order in which they are asked whether a token is theirs: those with the longest prefix first."""


class _Entry(NamedTuple):
    """A token that was verified: by whom, and what it came to."""

    verifier: Verifier
    verified: Verified
    size: int = 0

    def counts_for(self) -> int:
        """Return the octets that it counts for, of the room that there is."""
        return max(self.size, ORDINARY)

    def principal(self, by_iss: Mapping[str, Verifier], now: float) -> Principal | None:
        """Return the principal where the entry still counts, for one of these verifiers at this time."""
        verifier, (principal, keys, earliest, latest), _ = self
        if (
            earliest <= now < latest
            and by_iss.get(verifier.issuer.issuer) is verifier
            and verifier.keys.current() is keys
        ):
            return principal
        return None


class KeySetState(NamedTuple):
    """An issuer's keys. age: seconds since they were fetched, None: never, or they came with the policy."""

    issuer: str  # the policy's name of it
    usable: bool
    age: float | None
    failed: int  # fetches, ever


class KeyRing:
    """Authenticates tokens for the issuers of a policy.

    The cache of verified tokens is keyed by a digest, so that no credential is kept, and an entry counts only for the
    verifier that made it, the key set that it was made with, and the times of the token: a change of the issuer's
    policy or of its keys makes it void without anyone having to remember to clear it. Refusals are not cached.
    """

    def __init__(
        self,
        *,
        cached_tokens: int = 10_000,
        open_keys: Callable[[KeySource], RemoteKeys] = RemoteKeys,
        ask: Ask | None = ask_issuer,
    ) -> None:
        """cached_tokens: the most verified tokens to remember, of ordinary size; large ones count for several.

        ask: asks issuers about opaque tokens; None: nobody can be asked.
        """
        self._cache: LRUCache[bytes, _Entry] = LRUCache(cached_tokens * ORDINARY, getsizeof=_Entry.counts_for)
        self._open_keys = open_keys
        self._ask = ask
        self._remotes: dict[KeySource, RemoteKeys] = {}
        self._started = False
        self._closing: set[asyncio.Task[None]] = set()
        self._edition = self._former = _Edition({}, {}, {})

    def configure(self, issuers: Mapping[str, Issuer]) -> None:
        """Take the issuers of a new snapshot: `snapshot.issuers` itself, which `authenticate` knows again by identity.

        Verifiers and fetched keys whose issuer or source did not change are kept. Requests that still hold the
        snapshot before this one are served as well. Raises ValueError where key material is not usable
        (`material.problem` says so beforehand), and then changes nothing.
        """
        remotes: dict[KeySource, RemoteKeys] = {}
        verifiers = {name: self._verifier(name, issuer, remotes) for name, issuer in issuers.items()}
        dropped = [remote for source, remote in self._remotes.items() if source not in remotes]
        by_iss = {url: verifier for verifier in verifiers.values() for url in verifier.issuer.urls}
        introspectors = self._introspectors(issuers)
        self._former, self._edition = self._edition, _Edition(issuers, verifiers, by_iss, introspectors)
        self._remotes = remotes
        if self._started:
            for remote in remotes.values():
                remote.start()
            for remote in dropped:
                task = asyncio.create_task(remote.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def _verifier(self, name: str, issuer: Issuer, remotes: dict[KeySource, RemoteKeys]) -> Verifier:
        source = issuer.keys
        if source.kind == "jwks_url" and source not in remotes:
            remotes[source] = self._remotes.get(source) or self._open_keys(source)
            remotes[source].source = source  # with the authorities of now
        known = self._edition.verifiers.get(name)
        if known is not None and known.issuer == issuer:
            return known
        keys: KeyStore = remotes[source] if source in remotes else StaticKeys(key_set(source, issuer.algorithms))
        return Verifier(issuer, keys)

    def _introspectors(self, issuers: Mapping[str, Issuer]) -> tuple[Introspector, ...]:
        """Make who asks issuers about opaque tokens; one whose issuer has not changed keeps what it has been told."""
        known = {one.issuer.name: one for one in self._edition.introspectors}
        made = []
        for name, issuer in issuers.items():
            if issuer.introspection is not None:
                kept = known.get(name)
                made.append(
                    kept
                    if kept is not None and kept.issuer == issuer
                    else Introspector(issuer, self._ask or ask_issuer)
                )
        return tuple(sorted(made, key=lambda one: -len(one.prefix)))

    async def prepare(self, issuers: Mapping[str, Issuer]) -> None:
        """Fetch the key sets that a snapshot will need and that are not known yet, before `configure` takes it.

        With it a reload has no moment without keys; without it, requests of a new issuer are denied until they are
        there.
        """
        sources = {issuer.keys for issuer in issuers.values() if issuer.keys.kind == "jwks_url"}
        new = [self._open_keys(source) for source in sources.difference(self._remotes)]
        self._remotes |= {remote.source: remote for remote in new}
        if self._started:
            await _first_keys(new)

    async def start(self) -> None:
        """Start to fetch published key sets; returns when every one is there, or after FIRST_FETCH_WAIT."""
        self._started = True
        await _first_keys(self._remotes.values())

    async def close(self) -> None:
        """Stop fetching."""
        self._started = False
        asked = [one for edition in (self._edition, self._former) for one in edition.introspectors]
        closing = [remote.close() for remote in self._remotes.values()] + [one.close() for one in asked]
        await asyncio.gather(*closing, *self._closing)

    def states(self) -> list[KeySetState]:
        """Say of each issuer of the policy in force whether tokens could be verified now, for readiness and metrics."""
        states = []
        for name, verifier in self._edition.verifiers.items():
            keys, usable = verifier.keys, verifier.keys.current() is not None
            age, failed = (keys.age(), keys.failed) if isinstance(keys, RemoteKeys) else (None, 0)
            states.append(KeySetState(name, usable, age, failed))
        return states

    def authenticate(
        self, issuers: Mapping[str, Issuer], names: tuple[str, ...], token: bytes, now: float
    ) -> Result | Awaitable[Result]:
        """Authenticate a token for one of the issuers `names` of a snapshot's `issuers`, at `now` (Unix seconds).

        One of another issuer of the snapshot is verified all the same, and then refused as of an unknown one: what is
        said of a token that is not good does not depend on `names`.
        Returns an awaitable only where the token's key is not known and a fetch may bring it, which takes at most
        UNKNOWN_KEY_WAIT seconds, or where its issuer has to be asked about it, at most the `timeout` of that.
        """
        edition = self._edition
        if edition.issuers is not issuers:
            edition = self._former
            if edition.issuers is not issuers:
                return KEYS_UNAVAILABLE
        digest = blake2b(token, digest_size=32).digest()
        try:
            principal = self._cache[digest].principal(edition.by_iss, now)
        except KeyError:
            principal = None
        if principal is not None:
            return _accepted(principal, names)
        return self._verify(edition, names, token, digest, now)

    async def signed(self, raw: bytes, kind: str) -> tuple[Issuer, SignedClaims] | Refusal:
        """Check who has signed a token that is no access token, but of this `typ`: of the issuers in force.

        Waits as `authenticate` does.
        """
        token = read_token(raw)
        if isinstance(token, Refusal):
            return token
        if token.type is None or token.type.lower().removeprefix("application/") != kind:
            return WRONG_TYPE
        verifier = self._edition.by_iss.get(token.issuer)
        if verifier is None:
            return ISSUER_UNKNOWN
        result = verifier.signed(token)
        fetch = verifier.awaits(token, result) if isinstance(result, Refusal) else None
        if fetch is not None:
            await asyncio.wait({fetch}, timeout=UNKNOWN_KEY_WAIT)
            result = verifier.signed(token)
        return result if isinstance(result, Refusal) else (verifier.issuer, result)

    def _verify(
        self, edition: _Edition, names: tuple[str, ...], raw: bytes, digest: bytes, now: float
    ) -> Result | Awaitable[Result]:
        token = read_token(raw)
        if isinstance(token, Refusal):
            introspector = self._introspector(edition, raw)
            if introspector is None:
                return token
            known = introspector.known(digest, now)
            if known is None and self._ask is None:
                return UNAVAILABLE
            return self._introspected(introspector, raw, digest, names, now) if known is None else _of(known, names)
        verifier = edition.by_iss.get(token.issuer)
        if verifier is None:
            return ISSUER_UNKNOWN
        result = verifier.verify(token, now)
        if isinstance(result, Refusal):
            fetch = verifier.awaits(token, result)
            return result if fetch is None else self._verify_after(fetch, verifier, token, names, digest, now)
        return _accepted(self._remember(digest, verifier, result, len(token.signing_input)), names)

    def _introspector(self, edition: _Edition, raw: bytes) -> Introspector | None:
        """Return who asks about a token. One issuer alone is shown it, whatever the route accepts."""
        found = next((one for one in edition.introspectors if raw.startswith(one.prefix)), None)
        return found if found is not None and is_opaque(raw) else None

    async def _introspected(
        self, introspector: Introspector, raw: bytes, digest: bytes, names: tuple[str, ...], now: float
    ) -> Result:
        return _of(await introspector.answer(raw, digest, now), names)

    async def _verify_after(
        self,
        fetch: asyncio.Task[None],
        verifier: Verifier,
        token: UnverifiedToken,
        names: tuple[str, ...],
        digest: bytes,
        now: float,
    ) -> Result:
        await asyncio.wait({fetch}, timeout=UNKNOWN_KEY_WAIT)
        result = verifier.verify(token, now)
        if isinstance(result, Refusal):
            return result
        return _accepted(self._remember(digest, verifier, result, len(token.signing_input)), names)

    def _remember(self, digest: bytes, verifier: Verifier, verified: Verified, size: int) -> Principal:
        self._cache[digest] = _Entry(verifier, verified, size)
        return verified.principal


def _accepted(principal: Principal, names: tuple[str, ...]) -> Result:
    return principal if principal.issuer in names else ISSUER_UNKNOWN


def _of(result: Result, names: tuple[str, ...]) -> Result:
    return result if isinstance(result, Refusal) else _accepted(result, names)


async def _first_keys(remotes: Iterable[RemoteKeys]) -> None:
    remotes = list(remotes)
    for remote in remotes:
        remote.start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_FETCH_WAIT):
            await asyncio.gather(*(remote.arrived() for remote in remotes))
