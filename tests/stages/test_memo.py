"""What is remembered with fields that come again: every decision is the one that new fields would have got."""

import random
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

import pytest

from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.request import Request
from mitmgate.keys.minting import mint
from mitmgate.keys.ring import KeyRing
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.authentication import Authentication
from mitmgate.stages.authorization import Authorization
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.exchange import Exchange
from mitmgate.stages.hygiene import Hygiene
from mitmgate.stages.rewrite import Rewrite
from mitmgate.stages.routing import Routing

NOW = 1_800_000_000.0
SECRET = "a development secret of 32 bytes or more"
POLICY = Path(__file__).with_name("memo.yaml").read_text()
TARGETS = [
    *("/plain", "/plain/%41", "/plain/../x", "/other/a", "/other", "/told", "/scoped", "/path/yes", "/path/no"),
    *("/query?yes", "/query?no", "/method", "/address", "/ops", "/open", "/nowhere"),
]


class Asked(NamedTuple):
    """A request: at which time, under which of two policies, from where."""

    method: str
    target: str
    later: float
    policy: int
    peer: str


CHOICES = Asked(("GET", "DELETE"), TARGETS, (0.0, 250.0, 400.0), (0, 1), ("192.0.2.1", "192.0.2.2", "10.0.0.1"))  # type: ignore[arg-type]  # of each member, what it can be


def walk(steps: int) -> Iterator[Asked]:
    """Yield requests of which each differs from the one before in one member, or in none."""
    chance = random.Random(7)
    asked = Asked("GET", "/plain", 0.0, 0, "192.0.2.1")
    for _ in range(steps):
        name = chance.choice(Asked._fields)
        asked = asked._replace(**{name: chance.choice(getattr(CHOICES, name))})
        yield asked


class Gate:
    """The stages that remember, with a clock and a policy that the test sets."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self.snapshots = snapshots
        self.snapshot = snapshots[0]
        self.now = NOW
        self._ring = KeyRing()
        self._ring.configure(self.snapshot.issuers)
        self._arrival = Arrival(self, lambda: None, lambda: self.now)
        self._breaker = CircuitBreaker(lambda: self.now)
        self._stages = (
            Hygiene(),
            Routing(),
            Authentication(self._ring),
            Authorization(),
            self._breaker,
            Rewrite(),
        )

    def decide(self, asked: Asked, headers: Headers) -> Exchange:
        """Decide on one request."""
        if self.snapshot is not self.snapshots[asked.policy]:
            self.snapshot = self.snapshots[asked.policy]
            self._ring.configure(self.snapshot.issuers)
        self.now = NOW + asked.later
        made = self._arrival.begin(Request(asked.method, asked.target, "HTTP/1.1", headers, "http", "", asked.peer, 0))
        for stage in self._stages:
            assert stage.run(made) is None, "nothing here waits"
        return made


def told(made: Exchange) -> tuple[object, ...]:
    """Write down what was decided, but for what is made anew for each request, and for whose turn it is."""
    forward, principal = made.forward, made.principal
    ids = {b"X-Request-ID", b"traceparent", b"x-id", b"Host"}
    return (
        [step[:4] for step in made.verdict.steps],
        made.challenge,
        None if forward is None else (forward.method, forward.target),
        None if forward is None else [field for field in forward.fields if field[0] not in ids],
        None if not isinstance(principal, Principal) else (principal.subject, principal.issuer),
        made.client,
    )


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> list[Snapshot]:
    directory = tmp_path_factory.mktemp("policies")
    made = []
    for number, (subject, header, scope) in enumerate(
        [("sub", "X-User-ID", "read"), ("email", "X-Heard-From", "write")]
    ):
        path = directory / f"{number}.yaml"
        path.write_text(POLICY.replace("SUBJECT", subject).replace("HEADER", header).replace("SCOPE", scope))
        made.append(load_snapshot(path, {"DEV": SECRET, "OPS": SECRET[::-1]}))
    return made


@pytest.fixture(scope="module")
def fields(snapshots: list[Snapshot]) -> list[tuple[tuple[bytes, bytes], ...]]:
    issuers = snapshots[0].issuers
    claims = {"scope": "read", "email": "a@example.org", "role": "user"}
    tokens = [mint(issuers[name], "alice", now=NOW, lifetime=300.0, claims=claims) for name in ("dev", "ops")]
    host, echo = (b"Host", b"api.example"), (b"X-Echo", b"heard")
    bearers = [(b"Authorization", b"Bearer " + token.encode()) for token in tokens]
    forwarded = (
        *((b"X-Forwarded-For", b"192.0.2.2:4711"), (b"X-Forwarded-Proto", b"https")),
        *((b"X-Forwarded-Host", b"shop.example"), (b"X-Forwarded-Port", b"8443")),
    )
    return [
        (host, bearers[0], echo),
        (host, bearers[1]),
        (host, bearers[0], *forwarded),
        (host, echo, (b"X-User-ID", b"root")),
        (host, (b"Bad name", b"x")),
    ]


@pytest.mark.parametrize("which", range(5))
def test_decisions_are_those_of_new_fields(
    snapshots: list[Snapshot], fields: list[tuple[tuple[bytes, bytes], ...]], which: int
) -> None:
    remembering, forgetful = Gate(snapshots), Gate(snapshots)
    known = Headers(fields[which])
    known.memo = {}
    for asked in walk(6000):
        again, anew = remembering.decide(asked, known), forgetful.decide(asked, Headers(fields[which]))
        assert told(again) == told(anew), asked
        if again.forward is not None:
            sent = dict(again.forward.fields)
            assert sent[b"X-Request-ID"] == again.request_id.encode()
            assert sent[b"traceparent"] == again.traceparent.encode()
            assert sent.get(b"x-id", sent[b"X-Request-ID"]) == sent[b"X-Request-ID"]
            assert b"Authorization" not in sent


def test_something_is_remembered(snapshots: list[Snapshot], fields: list[tuple[tuple[bytes, bytes], ...]]) -> None:
    gate, headers = Gate(snapshots), Headers(fields[0])
    headers.memo = {}
    asked = Asked("GET", "/plain", 0.0, 0, "192.0.2.1")
    first, second = gate.decide(asked, headers), gate.decide(asked._replace(target="/plain/7"), headers)
    assert first.head is not None
    assert second.head is not None
    assert second.head.headers is first.head.headers
    assert second.head.path == "/plain/7"
    memo = first.head.headers.memo
    assert memo is not None
    assert len(memo) == 3  # Authentication, Authorization, Rewrite
    assert first.client == IPv4Address("192.0.2.1")
