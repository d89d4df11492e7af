"""Canary: a changed policy is replayed over the last requests before it is in force, and refused where it drifts."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

from mitmproxy.http import HTTPFlow

from mitmgate.core.introspection import is_opaque
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Request
from mitmgate.core.token import read_token
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Exchange, exchange_of
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.deciding import Decider
from mitmgate.replay.decision import decided
from mitmgate.replay.differences import Kind, Tally, compare
from mitmgate.replay.offline import unsigned
from mitmgate.replay.recorder import checked_signature, introspected, of_token
from mitmgate.replay.redaction import found_signature
from mitmgate.replay.ring import OfflineRing
from mitmgate.replay.shown_keys import found
from mitmgate.replay.traffic import Presented, Recorded
from mitmgate.stores.api_keys import ApiKeys

MOST_BYTES: Final = 64 * 1024 * 1024
_EXCHANGE_BYTES: Final = 4096
"""What an exchange takes beside its head: verdict, principal, route; about, and rather more."""
_FIELD_BYTES: Final = 200
"""What a header field takes beside its bytes, as the client sent it and as it was forwarded."""


class Allowance(NamedTuple):
    """The drift that a new policy may have: parts of the remembered requests, from 0 to 1."""

    loosened: float = 0.0
    tightened: float = 0.01


DEFAULT: Final = Allowance()


@dataclass(frozen=True, slots=True)
class Drift:
    """How a candidate decides the remembered requests. decided: how many there were."""

    decided: int
    tally: Tally

    @property
    def loosened(self) -> int:
        """Requests that were refused, and would be let in."""
        return self.tally.kinds[Kind.LOOSENED]

    @property
    def tightened(self) -> int:
        """Requests that were let in, and would be refused."""
        return self.tally.kinds[Kind.TIGHTENED]

    def refusal(self, allowed: Allowance) -> str | None:
        """Say why the candidate must not be put in force; None where it may."""
        for count, part, word in (
            (self.loosened, allowed.loosened, "lets in"),
            (self.tightened, allowed.tightened, "refuses"),
        ):
            if count > part * self.decided:
                kind = Kind.LOOSENED if word == "lets in" else Kind.TIGHTENED
                group = next(group for group in self.tally.groups if group.kind is kind)
                return (
                    f"it {word} {count} of the last {self.decided} requests that were decided otherwise "
                    f"({part:.1%} may be), such as {group.before} → {group.after} on route {group.route}, "
                    f"request {group.examples[0]}"
                )
        return None


class Canary:
    """Remember the last requests as they arrived, in memory alone, credentials included; decide them again on demand.

    Stands behind the chain and decides nothing on live requests. Fewer than `size` are remembered where their heads
    are so large that all of them would take more than `most_bytes`.
    """

    name: ClassVar[str] = "mitmgate-canary"

    def __init__(
        self,
        size: int,
        ring: KeyRing | None = None,
        most_bytes: int = MOST_BYTES,
        api_keys: ApiKeys | None = None,
    ) -> None:
        """size: requests to remember.

        ring, api_keys: the gateway's, to find out about tokens and keys that no stage has looked at.
        """
        self._api_keys = api_keys
        self.bytes = 0
        self._size = size
        self._most_bytes = most_bytes
        self._ring = ring
        self._recent: deque[tuple[int, Exchange]] = deque()

    def __len__(self) -> int:
        """Count the remembered requests."""
        return len(self._recent)

    def use(self, ring: KeyRing) -> None:
        """Take the gateway's ring, where it was made after this addon."""
        self._ring = ring

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Remember a request; one that the protocol layer refused is none."""
        exchange = exchange_of(flow)
        if exchange is not None and exchange.verdict.steps and exchange.verdict.steps[0].stage != "protocol":
            size = _bytes_of(exchange.request)
            self._recent.append((size, exchange))
            self.bytes += size
            while len(self._recent) > self._size or self.bytes > self._most_bytes:
                self.bytes -= self._recent.popleft()[0]

    async def check(self, candidate: Snapshot, current: Snapshot) -> Drift:
        """Decide the remembered requests under both policies, and compare. In a thread, some 200 µs a request."""
        recorded = []
        for number, exchange in enumerate(
            sorted((exchange for _, exchange in self._recent), key=lambda exchange: exchange.started)
        ):
            recorded.append(self._recorded(exchange))  # here, because the ring belongs to the event loop
            if number % 64 == 63:
                await asyncio.sleep(0)
        return await asyncio.to_thread(drift, recorded, candidate, current)

    def _recorded(self, exchange: Exchange) -> Recorded:
        return Recorded(
            exchange.request_id,
            exchange.now,
            exchange.request,
            exchange.request_id,
            presented=self._presented(exchange),
            service_answer=exchange.service_answer,
            key=found(exchange, self._api_keys),
        )

    def _presented(self, exchange: Exchange) -> Presented | None:
        scheme, _, rest = (exchange.request.headers.one(b"authorization") or b"").partition(b" ")
        token = rest.strip(b" ")
        if scheme.lower() not in {b"bearer", b"dpop"}:
            return None
        final = exchange.verdict.final
        found = found_signature(
            None if final is None else final.reason.code,
            None if final is None else final.stage,
            of_token(exchange) is not None,
        )
        if found == "unchecked":
            found = checked_signature(token, exchange, self._ring)
        read = introspected(token, exchange, self._ring) if is_opaque(token) else read_token(token)
        if isinstance(read, Refusal):
            return Presented(token, found, refusal=read)
        return Presented(token, found, token=read)


def _bytes_of(request: Request) -> int:
    """Estimate what a remembered exchange takes: its head twice, as it came and as it was forwarded."""
    size = 2 * len(request.target)
    for name, content in request.headers.fields:
        size += _FIELD_BYTES + 2 * (len(name) + len(content))
    return _EXCHANGE_BYTES + size


def drift(recorded: Sequence[Recorded], candidate: Snapshot, current: Snapshot) -> Drift:
    """Decide requests under two policies, each from a fresh start, and compare.

    Counters and circuits of before are not remembered, so the verdicts of then would not do.
    """
    first = Decider(unsigned(current), OfflineRing(assume_signed=True), "allow")
    second = Decider(unsigned(candidate), OfflineRing(assume_signed=True), "allow")
    tally = Tally()
    for entry in recorded:
        before, after = decided(first.decide(entry)), decided(second.decide(entry))
        difference = compare(before, after)
        if difference is not None:
            tally.add(entry.id, difference, before, after)
    return Drift(len(recorded), tally)
