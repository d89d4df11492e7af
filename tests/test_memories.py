"""Everything that may grow in a process: whose keys it has, and for what clients choose, how many bytes it may take."""

import ast
import gc
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mitmgate.audit import mirror
from mitmgate.core import address, authority, rewrite
from mitmgate.core.client_fields import _KNOWN_NAMES, ClientFields
from mitmgate.core.decision_service import DecisionService, Question, ServiceAnswer
from mitmgate.core.http1 import Bounds
from mitmgate.core.http1.known import KnownFields
from mitmgate.core.http1.names import _MOST, _Lowered
from mitmgate.core.http1.reader import RequestReader
from mitmgate.core.limit import Limit
from mitmgate.core.principal import Principal
from mitmgate.core.proof import UnverifiedProof
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Assertion, Proofs
from mitmgate.core.verdict import Outcome
from mitmgate.core.window import Take
from mitmgate.keys.assertion import Signer
from mitmgate.net.dialler import Dialler
from mitmgate.policy.condition import KNOWN, compile_condition
from mitmgate.replay.redaction import Redactor
from mitmgate.stages.decision_service import MOST_ANSWERS, LiveAnswers
from mitmgate.stages.quota import LONGEST_KEY
from mitmgate.stores.memory import DEFAULT_KEYS, MemoryStore
from mitmgate.stores.proofs import MOST, UsedProofs

ROOT: Final = Path(__file__).resolve().parents[1] / "addons/mitmgate"
MIB: Final = 1 << 20
KINDS: Final = frozenset(
    {"OrderedDict", "defaultdict", "Counter", "deque", "dict", "set"}
    | {"WeakSet", "WeakKeyDictionary", "WeakValueDictionary", "LRUCache", "TTLCache", "TLRUCache"}
)
FED: Final = 600
"""Keys of each length that each is fed with."""

CHOSEN_BY_CLIENTS: Final[dict[str, int]] = {
    "audit/mirror:_kept": MIB // 2,
    "audit/mirror:_shared_step": 6 * MIB,
    "core/address:address_text": 2 * MIB,
    "core/address:peer_address": 2 * MIB,
    "core/authority:_parse": 2 * MIB,
    "core/client_fields:ClientFields._known": MIB,
    "core/http1/names:_Lowered": 2 * MIB,
    "core/http1/known:KnownFields._former": 6 * MIB,  # the two generations together
    "core/http1/known:KnownFields._present": 6 * MIB,
    "core/rewrite:_header_safe": 4 * MIB,
    "keys/assertion:Signer._made": 8 * MIB,
    "policy/condition:CelCondition._known": 3 * MIB,
    "replay/redaction:Redactor._tokens": 8 * MIB,
    "stages/decision_service:LiveAnswers._kept": 8 * MIB,
    "stores/memory:MemoryStore._fresh": 120 * MIB,  # 100,000 keys; one limit's window each
    "stores/memory:MemoryStore._used": 120 * MIB,
    "stores/memory:MemoryStore._full": 120 * MIB,
    "stores/proofs:UsedProofs._issued": 24 * MIB,
}
"""What clients choose keys of, and what it may take at the most, in bytes; `FEEDS` fills each."""

OTHERS: Final[dict[str, str]] = {
    name: why
    for why, names in {
        "routes, reasons, limits and endpoints of the policy, methods and causes of closed lists": """
            admin/metrics:Metrics._deciding admin/metrics:Metrics._decisions admin/metrics:Metrics._durations
            admin/metrics:Metrics._grants admin/metrics:Metrics._own
            admin/metrics:Metrics._answers admin/metrics:Metrics._asking
            stages/decision_service:LiveAnswers._questions
            admin/metrics:Metrics._requests admin/metrics:Metrics._upstream
            core/openapi:Api.operations core/openapi:Api.methods core/openapi:Api._plain core/openapi:_Node.literal
            policy/openapi:OpenApis.apis policy/openapi:_Compiler._schemas policy/openapi:_Compiler._seen
            policy/openapi:_compiled pipeline/networks:_alone
            core/routing:_Place._named core/routing:_Place._under keys/assertion:signer_of net/http:_trust
            proxy/pool:UpstreamPool._shared proxy/pool:UpstreamPool._sharing
            keys/ring:KeyRing._remotes proxy/pool:UpstreamPool._dials proxy/pool:UpstreamPool._idle
            proxy/pool:UpstreamPool._learned proxy/tls:_client_context proxy/transaction:FailureLog._seldom
            stages/circuit_breaker:CircuitBreaker._breakers stages/circuit_breaker:CircuitBreaker._names
            stages/circuit_breaker:CircuitBreaker._silent stages/circuit_breaker:CircuitBreaker._turns
            stages/circuit_breaker:CircuitBreaker.turned admin/feed:Feed._latest
            policy/files:Files.stamps policy/watcher:PolicySource._stamps""",
        "names that the policy has, and what DNS says of them": """
            core/reason:_DECLARED policy/own_stages:_MODULES policy/own_stages:OwnStages.stages
            stages/own:_Counters.limits policy/schema:_docstrings
            net/dialler:Dialler._avoided net/resolver:Resolver._names net/resolver:_HostsFile._names""",
        "one entry for each that is there now: connections, streams, requests, tasks, workers": """
            admin/metrics:Metrics._unknown admin/workers:Workers._links admin/workers:_Link._answers
            admin/feed:Feed._seen admin/listener:_Server._waiting audit/writer:AuditTrail._waiters
            core/circuit:Breaker._probing chain:Gateway._asking host/lifetime:Lifetime._reloads
            inspect/commands:GatewayCommands._reloads host/supervisor:Supervisor._living
            host/supervisor:Supervisor._tasks keys/ring:KeyRing._closing proxy/acceptor:_Acceptor._starting
            proxy/upstream_http2:Http2UpstreamConnection._streams
            proxy/http2:Http2Connection._open proxy/http2:Http2Connection._sending
            proxy/http2:Http2Connection._streams proxy/http2:Http2Connection._waiting
            proxy/limits:Connections._by_address proxy/listener:Listener.clients proxy/memory:Memory._addresses
            proxy/memory:Memory._holding proxy/transaction:Transaction._queue proxy/websocket:Relay._queue
            proxy/websocket:Relay._sizes
            stages/decision_service:LiveAnswers._asking
            stages/audit:Audit._unknown stages/own:OwnStage._left pipeline/exchange:_LIVE stores/batches:Batches._queue
            stores/batches:Batches._tasks replay/recorder:Recorder._begun replay/recorder:Recorder._done
            replay/recorder:Recorder._heads replay/shadow:Shadow._flows replay/shadow:Shadow._waiting""",
        "of one field section, which is bounded": "core/headers:Headers._derived",
        "times within a window": "core/circuit:Breaker._failures core/circuit:Breaker._successes",
        "a number of records, of seconds, of texts": """
            audit/sink:SinkThread._queue audit/event:_second audit/ended:_TEXTS policy/history:History.rejections
            stores/fallback:Fallback.returns admin/feed:Feed._points admin/feed:Feed._rows admin/feed:Feed._totals
            stages/circuit_breaker:CircuitBreaker.turns policy/history:History.accepted
            descriptors:SeldomEach._kinds""",
        "the last of what was denied, by number, and by the octets of a head": """
            admin/denials:Denials._kept admin/denials:Denials._at_limits""",
        "what operators and issuers have revoked, by number": "stores/revocations:Revocations._held",
        "what operators have listed, by number": "stores/api_keys:ApiKeys._keys stores/api_keys:ApiKeys._revoked",
        "keys that tokens of an issuer are bound to, by number": "keys/proof:ProofKeys._parsed",
        "tokens that an issuer has signed, by their octets": "keys/ring:KeyRing._cache",
        "an issuer's answers, by their octets, and questions that are on their way, by number": """
            keys/introspection:Introspector._said keys/introspection:Introspector._asking""",
        "flows that are kept, by number and octets": """
            inspect/annotate:Annotate._written inspect/bounded:BoundedView._finished inspect/kept:_KEPT
            replay/canary:Canary._recent""",
        "options and commands of mitmproxy": "inspect/guard:OptionGuard._commands inspect/guard:OptionGuard._frozen",
        "of a command that reads a recording, or an audit file, and ends": """
            audit/statistics:Frequent.counts audit/statistics:Statistics.by_route
            replay/coverage:Coverage.counts
            replay/coverage:Coverage.outside replay/learn_openapi:Document.operations
            replay/differences:Tally._groups replay/differences:Tally.kinds
            replay/evidence:_Peaks._logs replay/evidence:_Peaks.highest replay/expectations:Expectations._met
            stages/decision_service:RecordedAnswers.missing
            replay/presented:PresentedTokens._known replay/ring:OfflineRing._accepted
            replay/ring:OfflineRing.assumed replay/ring:OfflineRing.unverified replay/what_if:Line.buckets
            replay/what_if:Timeline.lines""",
        "kinds of differences": "replay/shadow:Shadow.counts",
    }.items()
    for name in names.split()
}
"""What has keys of another kind, and so why it is bounded."""


def growing() -> set[str]:
    """Name every cache of a function, every kind of container, and each of a module or an object that begins empty."""
    found: set[str] = set()
    for path in sorted(ROOT.rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").as_posix()
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any("cache" in ast.unparse(each) for each in node.decorator_list):
                found.add(f"{module}:{node.name}")
            if isinstance(node, ast.ClassDef):
                if any(ast.unparse(base).partition("[")[0].rpartition(".")[2] in KINDS for base in node.bases):
                    found.add(f"{module}:{node.name}")
                for target, value in assigned(node):
                    if isinstance(target, ast.Attribute) and begins_empty(value):
                        found.add(f"{module}:{node.name}.{target.attr}")
        for statement in tree.body:
            for target, value in assigned(statement) if isinstance(statement, ast.Assign | ast.AnnAssign) else ():
                if isinstance(target, ast.Name) and begins_empty(value):
                    found.add(f"{module}:{target.id}")
    return found


def assigned(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Return the targets and values of the assignments in a piece of code."""
    made: list[tuple[ast.expr, ast.expr]] = []
    for each in ast.walk(node):
        if isinstance(each, ast.Assign):
            made += [(target, each.value) for target in each.targets]
        elif isinstance(each, ast.AnnAssign) and each.value is not None:
            made.append((each.target, each.value))
    return made


def begins_empty(value: ast.expr) -> bool:
    """Tell whether a value is a mapping, set or queue without anything in it, or a cache."""
    if isinstance(value, ast.Dict):
        return not value.keys
    if not isinstance(value, ast.Call):
        return False
    name = ast.unparse(value.func).rpartition(".")[2]
    if "lru_cache" in ast.unparse(value.func):
        return True
    return name in KINDS and not (name in {"dict", "set"} and value.args)


def test_everything_that_may_grow_is_in_a_table() -> None:
    """A new cache, or a container that begins empty, says here whose keys it has."""
    found = growing()
    assert len(found) > 70
    assert found - CHOSEN_BY_CLIENTS.keys() - OTHERS.keys() == set(), "in neither table"
    assert (CHOSEN_BY_CLIENTS.keys() | OTHERS.keys()) - found == set(), "not in the source any more"


def texts(count: int, length: int) -> list[str]:
    """Make texts as a client may make them up: of hexadecimal digits, which are letters, digits and names alike."""
    return [f"{number:x}".rjust(length, "a") for number in range(count)]


def feed_words(made: list[str]) -> object:
    return [mirror._shared(text) for text in made] and None


def feed_steps(made: list[str]) -> object:
    return [mirror._step("stage", Outcome.DENY, Reason.NO_ROUTE, text, 0.001) for text in made] and None


def feed_addresses(made: list[str]) -> object:
    """A peer's address is read from the socket, and has no length of the client's choice."""
    for number in range(len(made)):
        found = address.peer_address(f"2001:db8:1111:2222:3333:4444:5555:{number:x}")
        assert found is not None
        address.address_text(found)
    return None


def feed_authorities(made: list[str]) -> object:
    return [authority.parse_authority(f"{text[:60]}.{text[60:]}") for text in made] and None


def feed_values(made: list[str]) -> object:
    return [rewrite.header_safe(text) for text in made] and None


def feed_names(made: list[str]) -> object:
    fields = ClientFields(())
    for text in made:
        fields.disposition(text.encode())
    return fields


def feed_lowered(made: list[str]) -> object:
    names = _Lowered()
    for text in made:
        assert names[text.upper().encode()] == text.encode()
    return names


def feed_sections(made: list[str]) -> object:
    known = KnownFields()
    for text in made:
        reader = RequestReader(Bounds(), known)
        reader.feed(b"GET / HTTP/1.1\r\nHost: h\r\nX-%b: y\r\n\r\n" % text.encode())
    return known


def feed_assertions(made: list[str]) -> object:
    key = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signer = Signer(Assertion(b"x-a", key, 30.0, "mitmgate"))
    for text in made:
        signer.assertion(Principal(text, "corp", (text, text[1:]), frozenset(), {}, 2e9), "users", "GET", "/", 1e9)
    return signer


def feed_conditions(made: list[str]) -> object:
    condition = compile_condition('"admin" in principal.roles')
    for text in made:
        condition.holds({"principal": {"roles": [text]}})
    return condition


def feed_tokens(made: list[str]) -> object:
    redactor = Redactor()
    for text in made:
        redactor._fields(((b"Authorization", b"Bearer " + text.encode()),), lambda token: "bad", {})
    return redactor


def feed_limits(made: list[str]) -> object:
    store = MemoryStore()
    limit = Limit("l", 10, 60.0, ("header:x",))
    for text in made:  # of longer ones stages/quota.py makes a digest
        store.take([Take(limit, text[-LONGEST_KEY:])], 1e9)
    return store


def feed_proofs(made: list[str]) -> object:
    used = UsedProofs()
    for text in made:
        proof = UnverifiedProof("ES256", {}, "A" * 43, b"", b"", text[-255:], "GET", "/", time.time() + 60.0, "x", None)
        used.use(proof, Proofs(), time.time(), 0.0)
    return used


def feed_answers(made: list[str]) -> object:
    answers, service = LiveAnswers(Dialler()), DecisionService("opa", "opa", "http://127.0.0.1:1/", cache=60.0)
    for text in made:
        digest = Question("POST", "/", (), text.encode()).digest
        answers._kept[service, digest] = ServiceAnswer("opa", "allow")
    return answers


FEEDS: Final[dict[Callable[[list[str]], object], tuple[int, tuple[str, ...]]]] = {
    feed_words: (mirror._kept.cache_info().maxsize or 0, ("audit/mirror:_kept",)),
    feed_steps: (mirror._shared_step.cache_info().maxsize or 0, ("audit/mirror:_shared_step",)),
    feed_addresses: (
        max(address.address_text.cache_info().maxsize or 0, address.peer_address.cache_info().maxsize or 0),
        ("core/address:address_text", "core/address:peer_address"),
    ),
    feed_authorities: (authority._parse.cache_info().maxsize or 0, ("core/authority:_parse",)),
    feed_values: (rewrite._header_safe.cache_info().maxsize or 0, ("core/rewrite:_header_safe",)),
    feed_names: (_KNOWN_NAMES, ("core/client_fields:ClientFields._known",)),
    feed_lowered: (_MOST, ("core/http1/names:_Lowered",)),
    feed_sections: (FED, ("core/http1/known:KnownFields._former", "core/http1/known:KnownFields._present")),
    feed_assertions: (FED, ("keys/assertion:Signer._made",)),
    feed_conditions: (KNOWN, ("policy/condition:CelCondition._known",)),
    feed_tokens: (FED, ("replay/redaction:Redactor._tokens",)),
    feed_answers: (MOST_ANSWERS, ("stages/decision_service:LiveAnswers._kept",)),
    feed_limits: (DEFAULT_KEYS, tuple(f"stores/memory:MemoryStore.{shelf}" for shelf in ("_fresh", "_used", "_full"))),
    feed_proofs: (MOST, ("stores/proofs:UsedProofs._issued",)),
}
"""How each is filled, and how many keys it holds at the most; FED where octets alone bound it."""


def test_everything_that_clients_choose_keys_of_is_fed() -> None:
    assert {name for _, names in FEEDS.values() for name in names} == CHOSEN_BY_CLIENTS.keys()


@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.__name__)
def test_what_clients_make_up_takes_no_more_than_its_bound(feed: Callable[[list[str]], object]) -> None:
    """Short keys, some as long as those that are just kept, and long ones."""
    most, names = FEEDS[feed]
    bound = max(CHOSEN_BY_CLIENTS[name] for name in names)
    feed(texts(2, 20))  # imports
    for length in (64, 200, 500, 30_000):
        made = texts(FED, length)
        gc.collect()
        tracemalloc.start()
        try:
            held = feed(made)
            taken = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        del held
        assert most > 0
        assert taken * max(1.0, most / FED) < bound, (length, taken)
