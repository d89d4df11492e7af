"""What is remembered from request to request: a chain that remembers decides as one that remembers nothing."""

import ast
import gc
import random
from collections.abc import Awaitable, Iterator, Sequence
from functools import _lru_cache_wrapper, cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jwt
import pytest

from mitmgate.audit.writer import Denial
from mitmgate.chain import stages
from mitmgate.core.headers import DERIVED, Headers
from mitmgate.core.limit import Limit
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request
from mitmgate.core.revocation import Revocation, written
from mitmgate.core.rules import KeySource
from mitmgate.core.window import Grant, Take
from mitmgate.keys.keyset import KeySet, verification_key
from mitmgate.keys.minting import mint
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy import condition
from mitmgate.policy.condition import CelCondition
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.authorization import Requirements
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stages.decision_service import RecordedAnswers
from mitmgate.stores.api_keys import ApiKeys
from mitmgate.stores.fallback import Fallback
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.proofs import UsedProofs
from mitmgate.stores.revocations import Revocations
from tests.keys.signing import private_key, private_pem

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_800_000_000.0
SECRET = "a development secret of 32 bytes or more"
POLICY = Path(__file__).with_name("memory.yaml").read_text()
Fields = tuple[tuple[bytes, bytes], ...]


class Asked(NamedTuple):
    """Everything that a decision can depend on, but for the header fields: those stay, and are what is known again.

    host: in `:authority` or the target, where the fields have no Host. later: seconds. policy, keys: which of those
    that there are. store: whether it can be asked. room: whether the audit trail has any. answer: the upstream's
    status, which moves the circuit. revoked: what the list of revocations holds: nothing, the principal, or it can't
    be read.
    """

    method: str
    path: str
    query: str
    host: str
    scheme: str
    version: str
    peer: str
    certificate: str | None
    body: int | None
    later: float
    policy: int
    keys: int
    store: bool
    room: bool
    answer: int
    revoked: int


CHOICES: dict[str, tuple[Any, ...]] = {
    "method": ("GET", "DELETE", "OPTIONS"),
    "path": (
        *("/plain", "/plain/%41", "/plain/../x", "/plain%2Fx", "/other/a", "/other", "/told", "/counted", "/scoped"),
        *("/path/yes", "/path/no", "/query", "/method", "/host", "/all", "/address", "/certificate", "/ops", "/open"),
        *("/nowhere", "/health"),
        *("/stepped", "/.well-known/oauth-protected-resource/stepped"),
    ),
    "query": ("", "?yes", "?no"),
    "host": ("a.example", "b.example", "c.example", "a.example:8080", "A.example", ""),
    "scheme": ("http", "https"),
    "version": ("HTTP/2.0", "HTTP/1.1", "HTTP/1.0"),
    "peer": ("192.0.2.1", "192.0.2.2", "10.0.0.1", "203.0.113.9", "nobody"),
    "certificate": (None, "CN=one", "CN=two"),
    "body": (0, 11, None),
    "later": (0.0, 30.0, 250.0, 400.0),
    "policy": (0, 1, 2),
    "keys": (0, 1, 2),
    "store": (True, False),
    "room": (True, False),
    "answer": (200, 500),
    "revoked": (0, 1, 2),
}


ALICE = [Revocation("sub", issuer, "alice", 4e9, NOW + 1000) for issuer in ("dev", "ops", "pub")]
FIRST = Asked(**{name: options[0] for name, options in CHOICES.items()})


def walk(seed: int) -> Iterator[Asked]:
    """Yield requests: on every path each other member alone takes each of its values and goes back, then at random."""
    for path in CHOICES["path"]:
        here = FIRST._replace(path=path)
        for name, options in CHOICES.items():
            for option in options if name != "path" else ():
                yield here
                yield here._replace(**{name: option})
    chance = random.Random(seed)
    asked = FIRST
    for _ in range(700):
        name = chance.choice((*Asked._fields, "path", "body"))
        asked = asked._replace(**{name: chance.choice(CHOICES[name])})
        if chance.random() < 0.1:  # what denies at once must not hide for long what comes after it
            asked = FIRST._replace(path=chance.choice(CHOICES["path"]), later=asked.later, answer=asked.answer)
        yield asked


class Switched:
    """A store that can be away."""

    def __init__(self) -> None:
        self.available = True
        self._counters, self._fallback = MemoryStore(), Fallback()

    def take(self, takes: Sequence[Take], now: float, held: Sequence[Grant] = ()) -> list[Grant]:
        return self._counters.take(takes, now, held) if self.available else self._fallback.decide(takes, now, 1.0)

    def take_one(self, limit: Limit, key: str, now: float) -> Grant | None:
        return self._counters.take_one(limit, key, now) if self.available else None


class Published:
    """A key set that changes, or is not there."""

    def __init__(self, source: KeySource) -> None:
        self.source = source
        self.edition = 0
        self.editions = (*key_sets(), None)

    def current(self) -> KeySet | None:
        return self.editions[self.edition]

    def refetch(self) -> None:
        return None


@cache
def key_sets() -> tuple[KeySet, KeySet]:
    """Return two editions of a key set; a token of the first is worth nothing under the second."""
    one, other = (KeySet([verification_key(private_key("ES256", n).public_key(), "k")]) for n in (0, 1))
    return one, other


class Gate:
    """The whole chain, with a clock, policies, keys, a store and a trail that the test sets."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self.snapshots = snapshots
        self.snapshot = snapshots[0]
        self.now = NOW
        self._denial: Denial | None = None
        self._published: list[Published] = []
        self._store = Switched()
        self._ring = KeyRing(open_keys=self._open)
        self._ring.configure(self.snapshot.issuers)
        trail = SimpleNamespace(pressure=lambda: self._denial, emit=lambda event: None)
        self._revocations = Revocations(cast(Any, object()))
        services: Any = SimpleNamespace(
            trail=trail,
            store=self._store,
            ring=self._ring,
            revocations=self._revocations,
            proofs=UsedProofs(),
            api_keys=ApiKeys(),
            decisions=RecordedAnswers(),
        )
        self._arrival, *self._rest = stages(self, services, lambda: self.now, lambda: self.now)

    def _open(self, source: KeySource) -> Any:
        made = Published(source)
        self._published.append(made)
        return made

    def decide(self, asked: Asked, headers: Headers) -> Exchange:
        """Decide on one request, and let the upstream answer it where it was let through."""
        if self.snapshot is not self.snapshots[asked.policy]:
            self.snapshot = self.snapshots[asked.policy]
            self._ring.configure(self.snapshot.issuers)
        self.now = NOW + asked.later
        self._store.available = asked.store
        lists: tuple[list[bytes], ...] = ([], [written(one) for one in ALICE], [b"nonsense"])
        self._revocations.heard(lists[asked.revoked], self.now, anew=True)
        self._denial = None if asked.room else Denial(Reason.AUDIT_UNAVAILABLE, "No room.")
        for published in self._published:
            published.edition = asked.keys
        arrival, rest = cast(Arrival, self._arrival), self._rest
        request = Request(
            method=asked.method,
            target=asked.path + asked.query,
            version=asked.version,
            headers=headers,
            scheme=asked.scheme,
            authority=asked.host,
            peer=asked.peer,
            declared_body=asked.body,
            certificate=asked.certificate,
        )
        made = arrival.begin(request)
        for stage in (arrival, *rest):
            assert not isinstance(stage.run(made), Awaitable), "nothing here waits"
        made.admitted = made.verdict.final is None  # as Enforcer says
        if made.permit is not None:
            breaker = next(stage for stage in rest if isinstance(stage, CircuitBreaker))
            breaker.conclude(made, asked.answer if made.verdict.final is None else None)
        return made


def told(made: Exchange) -> dict[str, object]:
    """Write down all that was decided, with the request's own ids as such."""
    ids = {made.request_id.encode(): b"(id)", made.traceparent.encode(): b"(trace)"}
    forward, endpoint = made.forward, made.endpoint
    return {
        "steps": [step[:4] for step in made.verdict.steps],
        "answer": made.answer,
        "challenge": made.challenge,
        "cors": made.cors,
        "client": made.client,
        "public": (made.public_host, made.public_port),
        "scheme": made.scheme,
        "route": None if made.route is None else made.route.name,
        "principal": made.principal,
        "grants": [(one.limit.name, one.limit.limit, one.admitted, one.remaining, one.degraded) for one in made.grants],
        "max_body": made.max_body,
        "endpoint": None if endpoint is None else endpoint.url,
        "line": None if forward is None else (forward.method, forward.target, forward.host),
        "fields": None if forward is None else [(name, ids.get(value, value)) for name, value in forward.fields],
    }


def memories() -> "list[_lru_cache_wrapper[Any]]":
    """Find every function of the gateway that remembers what it has returned."""
    gc.unfreeze()  # a test before may have started what freezes, and frozen objects are not listed
    return [one for one in gc.get_objects() if isinstance(one, _lru_cache_wrapper) and "mitmgate" in one.__module__]


def forget(gate: Gate, functions: "list[_lru_cache_wrapper[Any]]") -> None:
    """Make a gate forget all that it may have remembered, but for what it counts."""
    gate._ring._cache.clear()
    for snapshot in gate.snapshots:
        requirements = snapshot.compiled["authorization"]
        assert isinstance(requirements, Requirements)
        for required in requirements.of_routes.values():
            if isinstance(required.requirement.when, CelCondition):
                required.requirement.when._known.clear()
    for function in functions:
        function.cache_clear()


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Snapshot], list[Snapshot]]:
    """Load three policies, twice: for who remembers, and for who does not."""
    directory = tmp_path_factory.mktemp("policies")
    variants = [
        {"SUBJECT": "sub", "HEADER": "X-User-ID", "SCOPE": "read", "MODE": "enforce"},
        {"SUBJECT": "email", "HEADER": "X-Heard-From", "SCOPE": "write", "MODE": "enforce"},
        {"SUBJECT": "sub", "HEADER": "X-User-ID", "SCOPE": "write", "MODE": "report"},
    ]
    made: tuple[list[Snapshot], list[Snapshot]] = ([], [])
    for number, variant in enumerate(variants):
        text = POLICY
        for name, value in variant.items():
            text = text.replace(name, value)
        path = directory / f"{number}.yaml"
        path.write_text(text)
        for of in made:
            of.append(load_snapshot(path, {"DEV": SECRET, "OPS": SECRET[::-1]}))
    return made


@pytest.fixture(scope="module")
def fields(snapshots: tuple[list[Snapshot], list[Snapshot]]) -> list[Fields]:
    issuers = snapshots[0][0].issuers
    claims = {"scope": "read", "email": "a@example.org", "role": "user", "acr": "mfa", "auth_time": int(NOW)}
    claims["org"] = {"ids": ["o-1"]}
    plans: dict[str, dict[str, object]] = {"dev": {"plan": {"name": "pro"}}, "ops": {"plan": {"name": 7}}}
    tokens = [
        mint(issuers[name], "alice", now=NOW, lifetime=300.0, claims=claims | plan) for name, plan in plans.items()
    ]
    members = {"iss": "https://pub.example", "aud": "api", "sub": "alice", "iat": int(NOW), "exp": int(NOW) + 300}
    key = private_pem(private_key("ES256", 0)).decode()
    tokens.append(jwt.encode(members | claims, key, "ES256", {"kid": "k"}))
    host, echo, origin = (b"Host", b"a.example"), (b"X-Echo", b"heard"), (b"Origin", b"https://app.example")
    dev, ops, pub = ((b"Authorization", b"Bearer " + token.encode()) for token in tokens)
    forwarded = [
        (b"X-Forwarded-" + name, value)
        for name, value in zip(
            (b"For", b"Proto", b"Host", b"Port"), (b"192.0.2.2", b"https", b"c.example", b"8443"), strict=True
        )
    ]
    return [
        (dev, echo),
        (dev, origin, (b"Access-Control-Request-Method", b"GET")),
        (host, dev, echo),
        (ops,),
        (pub, echo),
        (host, dev, *forwarded, (b"X-User-ID", b"root")),
    ]


@pytest.mark.parametrize("which", range(6))
def test_decisions_are_those_of_a_chain_that_remembers_nothing(
    snapshots: tuple[list[Snapshot], list[Snapshot]], fields: list[Fields], which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "LONGEST", 60.0)  # a condition that is held up on a busy machine is denied
    remembering, forgetful = Gate(snapshots[0]), Gate(snapshots[1])
    known = Headers(fields[which])
    known.come_again()
    # One after the other: what is cleared for the one would be forgotten by the other, too.
    remembered = [told(remembering.decide(asked, known)) for asked in walk(which)]
    functions = memories()
    assert len(functions) > 3
    reasons: set[Reason] = set()
    for asked, again in zip(walk(which), remembered, strict=True):
        forget(forgetful, functions)
        anew = told(forgetful.decide(asked, Headers(fields[which])))
        assert again == anew, asked
        reasons |= {step[2] for step in cast(list[Any], again["steps"])}
        sent = dict(cast(Any, again["fields"] or ()))
        assert b"Authorization" not in sent
        if sent:
            assert (sent[b"X-Request-ID"], sent[b"traceparent"]) == (b"(id)", b"(trace)")
    if which == 0:  # the walk goes everywhere
        assert reasons >= {
            *(Reason.AUDIT_UNAVAILABLE, Reason.HOST_INVALID, Reason.PATH_AMBIGUOUS, Reason.NO_ROUTE),
            *(Reason.ADDRESS_DENIED, Reason.ADDRESS_UNKNOWN, Reason.BODY_TOO_LARGE, Reason.TOKEN_EXPIRED),
            *(Reason.TOKEN_ISSUER_UNKNOWN, Reason.SCOPE_MISSING, Reason.CONDITION_FALSE, Reason.QUOTA_EXCEEDED),
            *(Reason.STORE_UNAVAILABLE, Reason.CIRCUIT_OPEN, Reason.HEALTH, Reason.OK),
            *(Reason.RESOURCE_METADATA, Reason.AUTHENTICATION_INSUFFICIENT),
            *(Reason.TOKEN_REVOKED, Reason.REVOCATIONS_UNKNOWN),
        }


def test_something_is_remembered(snapshots: tuple[list[Snapshot], list[Snapshot]], fields: list[Fields]) -> None:
    gate, headers = Gate(snapshots[0]), Headers(fields[2])
    headers.come_again()
    asked = FIRST._replace(version="HTTP/1.1", path="/plain", host="")
    first, second = gate.decide(asked, headers), gate.decide(asked._replace(path="/other/7"), headers)
    assert first.head is not None
    assert second.head is not None
    assert second.head.headers is first.head.headers
    assert (first.head.path, second.head.path) == ("/plain", "/other/7")
    assert first.forward is not None
    assert second.forward is not None
    assert (b"X-Echo", b"heard") in first.forward.fields
    assert (b"X-Echo", b"heard") not in second.forward.fields, "the route removes it"


def test_what_is_derived_is_bounded() -> None:
    headers = Headers(())
    headers.come_again()
    calls = []

    def named(headers: Headers, name: int) -> int:
        calls.append(name)
        return name

    assert [headers.derive(named, number % 3) for number in range(30)] == [number % 3 for number in range(30)]
    assert calls == [0, 1, 2]
    for number in range(10 * DERIVED):
        assert headers.derive(named, number) == number
        assert headers._derived is not None
        assert len(headers._derived) <= DERIVED


def test_only_functions_of_modules_are_derived() -> None:
    """A closure or a method could read what is not compared; a function of core is given all that it reads."""
    found = []
    for path in sorted((ROOT / "addons/mitmgate").rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name: node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "derive":
                assert isinstance(node.args[0], ast.Name), (path, node.lineno)
                name = node.args[0].id
                assert (imported.get(name) or "").startswith("mitmgate.core."), (path, name)
                found.append(name)
            if isinstance(node, ast.Attribute) and node.attr == "_derived":
                assert path.name == "headers.py", (path, node.lineno)
    assert sorted(found) == ["client_fields", "screen"]
