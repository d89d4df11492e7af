"""The recorder by itself: one record an exchange, rotation, sampling, a full disk; flows that mitmweb saves."""

import errno
import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from mitmproxy.flow import Error
from mitmproxy.http import HTTPFlow, Response
from mitmproxy.io import FlowReader, FlowWriter
from mitmproxy.test.tflow import tflow

from mitmgate import chain
from mitmgate.audit.mirror import mirror
from mitmgate.audit.trail import AuditSettings, open_trail
from mitmgate.core.api_key import make
from mitmgate.core.reason import Reason
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.enforcer import Enforcer
from mitmgate.pipeline.exchange import exchange_of, reject
from mitmgate.policy.loader import load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.offline import load_offline
from mitmgate.replay.recorder import Recorder, RecordingFile, recorder
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.run import replay
from mitmgate.replay.traffic import Recorded, Skipped
from mitmgate.services import Services
from mitmgate.stages.circuit_breaker import CircuitBreaker
from mitmgate.stores.memory import MemoryStore
from mitmgate.usage import UserError
from tests.live.harness import SECRET, Gateway, mint, policy, route, write_policy
from tests.live.harness_upstream import Raw, RecordingUpstream, Reply
from tests.live.harness_upstream import Recorded as Seen
from tests.protocol.certificates import Authority


class InForce:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot


class Live:
    """The chain on flows, without sockets: what a host does with each request."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        snapshot = load_snapshot(path, {"MITMGATE_TEST_SECRET": SECRET})
        self.ring = KeyRing()
        self.ring.configure(snapshot.issuers)
        source = InForce(snapshot)
        services = Services(MemoryStore(), self.ring, open_trail(AuditSettings(on_full="drop")))
        self.stages = chain.stages(source, services, clock, clock)
        self.breaker = next(stage for stage in self.stages if isinstance(stage, CircuitBreaker))
        self.enforcer = Enforcer(source, chain.REQUIRED)

    def request(self, method: str, path: str, token: str | None = None, fields: Any = ()) -> HTTPFlow:
        flow = tflow()
        flow.live = True
        flow.request.method, flow.request.path, flow.request.content = method, path, b""
        given = [(b"Host", b"gateway.test"), *fields]
        given += [] if token is None else [(b"Authorization", b"Bearer " + token.encode())]
        flow.request.headers.fields = tuple(given)
        return flow

    def decide(self, flow: HTTPFlow) -> HTTPFlow:
        for stage in self.stages:
            assert stage.requestheaders(flow) is None
        self.enforcer.requestheaders(flow)
        return flow

    def answer(self, flow: HTTPFlow, recording: Recorder, status: int = 200) -> HTTPFlow:
        if flow.response is None:
            flow.response = Response.make(status, b"hello", {"Set-Cookie": "s=secret-cookie"})
        self.breaker.responseheaders(flow)
        recording.responseheaders(flow)
        recording.response(flow)
        recording.response(flow)
        recording.error(flow)
        return flow


@pytest.fixture
def now() -> list[float]:
    return [1_795_000_000.25]


@pytest.fixture
def live(tmp_path: Path, now: list[float]) -> Live:
    def clock() -> float:
        now[0] += 0.001
        return now[0]

    return Live(write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9")), clock)


def token_at(now: list[float], **claims: Any) -> str:
    return mint(iat=int(now[0]), exp=int(now[0]) + 300, **claims)


def read(path: Path) -> list[Recorded]:
    return [entry for entry in open_traffic([str(path)]) if isinstance(entry, Recorded)]


def test_a_path_is_recorded_in_its_canonical_form(tmp_path: Path, live: Live, now: list[float]) -> None:
    """What nobody needs to encode is no secret, and what is to be hidden is found however it is written."""
    path, policy_path = tmp_path / "traffic.mitm", str(tmp_path / "policy.yaml")
    recording = recorder(str(path), ring=live.ring)
    token = token_at(now, email="alice.jones@example.com")
    asked = [
        "/%70ublic", "/public/%7e%61", "/public/%2570", "/public/%zz", "/public/%2e%2e/admin", "/%70ublic?a=%41",
        "/api/v1/users/%61lice.jones%40example.com", "/api/v1/users/alice%2ejones@example.com",
    ]  # fmt: skip
    for target in asked:
        live.answer(live.decide(live.request("GET", target, token)), recording)
    recording.done()
    assert [entry.request.target for entry in read(path)][:2] == ["/public", "/public/~a"]
    assert b"jones" not in path.read_bytes()
    report = replay(open_traffic([str(path)]), load_offline(policy_path, {}))
    assert (report.decided, report.tally.total) == (len(asked), 0)


def test_what_was_denied_for_what_is_hidden_is_denied_again(tmp_path: Path, live: Live, now: list[float]) -> None:
    path, policy_path = tmp_path / "traffic.mitm", str(tmp_path / "policy.yaml")
    recording = recorder(str(path), ring=live.ring)
    token, key = token_at(now), "aB3xZ9qLm2Kp7VtY4wRc8NdQ1sHf6Jg"
    users = "/api/v1/users"
    denied = [
        f"{users}/{key}%2F{key}", f"{users}/token=a%2Fb", f"/no/{key}%2Fa/", f"{users}/https://u:p;x@h", f"{users}/https://u:p//x@h",
        f"{users}/eyJhbGciOiJIUzI1NiJ9.eyJhbGciOiJIUzI1NiJ9%2F.abc", f"{users}?token=a#b", "/public?token=a#b&x=1",
        f"{users}?x={key}#{key}", "/public?token=\xe9",
    ]  # fmt: skip
    asked = [*denied, f"{users}/token=a%3Bb", f"{users}/{key}%3Fx", f"{users}/token=a", f"{users}?token=a"]
    for target in asked:
        live.answer(live.decide(live.request("GET", target, token)), recording)
    recording.done()
    decided = [entry.decision for entry in read(path)]
    assert [one is not None and one.outcome == "deny" for one in decided] == [target in denied for target in asked]
    assert key.encode() not in path.read_bytes()
    report = replay(open_traffic([str(path)]), load_offline(policy_path, {}))
    assert (report.decided, report.tally.total) == (len(asked), 0), [
        (group.before, group.after) for group in report.tally.groups
    ]


def test_a_key_in_a_target_is_refused_again_whatever_stands_beside_it(tmp_path: Path, now: list[float]) -> None:
    made = policy(tmp_path, "http://127.0.0.1:9", api_keys={"file": "keys.jsonl"})
    made["routes"].append({"name": "open", "match": {"prefix": "/open"}, "upstream": "users", "auth": "none"})
    path, policy_path = tmp_path / "traffic.mitm", write_policy(tmp_path, made)
    live, key = Live(policy_path, lambda: now[0]), make()
    recording = recorder(str(path), ring=live.ring)
    encoded = key.replace("_", "%5F")
    texts = [key, f"a{key}", f"{key}~b", f"{key}%3Bx", f"a-{encoded}", f"token=a{key}"]
    asked = [f"/open{before}{text}" for text in texts for before in ("/", "?a=", "?token=", "?x=1&a=")]
    for target in [*asked, "/open/a", f"/open?token={'a' * 70}"]:
        live.answer(live.decide(live.request("GET", target)), recording)
    recording.done()
    reasons = [None if entry.decision is None else entry.decision.reason for entry in read(path)]
    assert reasons == [*["credential-ambiguous"] * len(asked), "ok", "ok"]
    assert key[-49:].encode() not in path.read_bytes()
    report = replay(open_traffic([str(path)]), load_offline(str(policy_path), {}))
    assert (report.decided, report.tally.total) == (len(asked) + 2, 0)


def test_a_path_of_two_routes_is_refused_again_though_it_is_hidden(tmp_path: Path, now: list[float]) -> None:
    made = policy(tmp_path, "http://127.0.0.1:9")
    open_to_all = {"upstream": "users", "auth": "none", "allow_encoded_slash": True}
    made["routes"] += [
        {"name": "open", "match": {"prefix": "/open"}, **open_to_all},
        {"name": "closed", "match": {"prefix": "/open/k"}, "upstream": "users"},
    ]
    path, policy_path = tmp_path / "traffic.mitm", write_policy(tmp_path, made)
    live, key = Live(policy_path, lambda: now[0]), "aB3xZ9qLm2Kp7VtY4wRc8NdQ1sHf6Jg"
    recording = recorder(str(path), ring=live.ring)
    refused = [f"/open/k%2F{key}", f"/open/k%3B{key}"]
    for target in [*refused, f"/open/a%2F{key}", f"/open/{key}"]:
        live.answer(live.decide(live.request("GET", target, token_at(now))), recording)
    live.answer(live.decide(live.request("GET", refused[0], fields=[(b"Authorization", b"Basic x")])), recording)
    recording.done()
    reasons = [None if entry.decision is None else entry.decision.reason for entry in read(path)]
    assert reasons == ["path-ambiguous", "path-ambiguous", "ok", "ok", "scheme-unsupported"]
    report = replay(open_traffic([str(path)]), load_offline(str(policy_path), {}))
    differ = [(group.before, group.after) for group in report.tally.groups]
    assert (report.decided, differ) == (5, [("deny scheme-unsupported", "deny path-ambiguous")])


def test_a_certificate_that_a_proxy_passes_on_is_decided_on_again(tmp_path: Path, now: list[float]) -> None:
    made = policy(tmp_path, "http://127.0.0.1:9", trusted_proxies=["127.0.0.1"])
    made["identity"]["certificates"] = {"dns": "*.jobs.example", "header": "X-Cert"}
    made["routes"].append(
        {"name": "machines", "match": {"prefix": "/machines"}, "upstream": "users", "auth": "certificate"}
    )
    path, policy_path = tmp_path / "traffic.mitm", write_policy(tmp_path, made)
    now[0] = time.time()
    live = Live(policy_path, lambda: now[0])
    recording = recorder(str(path), ring=live.ring)
    pair = Authority(tmp_path).issue("night", client=True, names=[x509.DNSName("night.jobs.example")])
    pem = Path(pair[0]).read_text()
    encoded = "".join(pem.strip().splitlines()[1:-1])
    values = [quote(pem), f":{encoded}:", f":{encoded[:-8]}:", f":{encoded}:, :{encoded}:", "::", "", f"x{encoded}"]
    for value in values:
        fields = [(b"X-Cert", value.encode()), (b"X-Forwarded-For", b"10.0.0.1")]
        live.answer(live.decide(live.request("GET", "/machines", None, fields)), recording)
    recording.done()
    admitted = [entry.decision is not None and entry.decision.outcome == "admit" for entry in read(path)]
    assert admitted == [True, True, *[False] * 5]
    report = replay(open_traffic([str(path)]), load_offline(str(policy_path), {}))
    assert (report.decided, report.tally.total) == (len(values), 0)


def test_one_record_for_each_exchange_however_it_ends(tmp_path: Path, live: Live, now: list[float]) -> None:
    path = tmp_path / "traffic.mitm"
    recording = recorder(str(path), ring=live.ring)
    live.answer(live.decide(live.request("GET", "/public")), recording)
    live.answer(live.decide(live.request("GET", "/api/v1/users/7")), recording)
    cut = live.decide(live.request("GET", "/api/v1/users/7", token_at(now)))
    exchange = exchange_of(cut)
    assert exchange is not None
    exchange.failure, cut.error = Reason.UPSTREAM_CLOSED, Error("gone")
    live.breaker.error(cut)
    recording.error(cut)
    unfinished = live.decide(live.request("GET", "/public"))
    recording.requestheaders(unfinished)
    recording.done()
    assert (recording.written, recording.failed) == (4, 0)
    found = read(path)
    assert [entry.decision.label for entry in found if entry.decision] == [
        *("admit", "deny credential-missing", "admit", "admit")
    ]
    assert found[0].aftermath is not None and found[0].aftermath.status == 200
    assert found[2].aftermath is not None and found[2].aftermath.failure is Reason.UPSTREAM_CLOSED
    assert found[3].aftermath is not None and found[3].aftermath.known is None, "the circuit never learnt"
    assert b"secret-cookie" not in path.read_bytes() and b"hello" not in path.read_bytes()
    report = replay(open_traffic([str(path)]), load_offline(str(tmp_path / "policy.yaml"), {}))
    assert (report.decided, report.tally.total) == (4, 0)


def test_what_the_protocol_layer_refused_is_counted_and_not_decided(tmp_path: Path, live: Live) -> None:
    recording = recorder(str(tmp_path / "traffic.mitm"))
    flow = live.request("GET", "/")
    reject(flow, Reason.HEAD_MALFORMED, "The head is malformed.")
    live.answer(live.decide(flow), recording)
    recording.done()
    (entry,) = open_traffic([str(tmp_path / "traffic.mitm")])
    assert isinstance(entry, Skipped) and "protocol layer" in entry.reason


def test_files_rotate_and_old_ones_go(tmp_path: Path, live: Live) -> None:
    path = tmp_path / "traffic.mitm"
    recording = recorder(str(path), rotate_at=22_000, keep=2)
    for _ in range(40):
        live.answer(live.decide(live.request("GET", "/public")), recording)
    recording.done()
    assert sorted(file.name for file in tmp_path.glob("traffic.mitm*")) == [
        *("traffic.mitm", "traffic.mitm.1", "traffic.mitm.2")
    ]
    assert all(file.stat().st_size < 30_000 for file in tmp_path.glob("traffic.mitm*"))
    times = [entry.at for entry in read(path)]
    assert times == sorted(times) and 8 < len(times) < 40


def test_a_new_recording_does_not_stand_behind_a_torn_one(tmp_path: Path, live: Live) -> None:
    path = tmp_path / "traffic.mitm"
    path.write_bytes(b"123:torn")
    recording = recorder(str(path))
    live.answer(live.decide(live.request("GET", "/public")), recording)
    recording.done()
    assert (tmp_path / "traffic.mitm.1").read_bytes() == b"123:torn"
    with path.open("rb") as file:
        assert len(list(FlowReader(file).stream())) == 1


def test_a_sample_is_of_requests_and_says_so(tmp_path: Path, live: Live) -> None:
    path = tmp_path / "traffic.mitm"
    recording = recorder(str(path), sample=0.25)
    for _ in range(400):
        live.answer(live.decide(live.request("GET", "/public")), recording)
    recording.done()
    assert 60 < len(read(path)) < 140
    report = replay(open_traffic([str(path)]), load_offline(str(tmp_path / "policy.yaml"), {}))
    assert report.sample == 0.25
    assert any("the recording is a sample (0.25 of all requests)" in note for note in report.notes)
    with pytest.raises(UserError, match="more than 0"):
        recorder(str(path), sample=0)


class FullDisk:
    """A file that takes part of a record and then no more."""

    def __init__(self, file: Any) -> None:
        self.file, self.full = file, False

    def write(self, data: bytes) -> int:
        if not self.full:
            return int(self.file.write(data))
        self.file.write(data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_leaves_whole_records_and_lets_requests_go_on(
    tmp_path: Path, live: Live, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traffic.mitm"
    file = RecordingFile(str(path), 1 << 20, 1)
    file._file = disk = FullDisk(file._file)  # type: ignore[assignment]  # a disk that fills up
    recording = recorder(str(tmp_path / "other.mitm"))
    recording._file.close()
    recording._file = file
    live.answer(live.decide(live.request("GET", "/public")), recording)
    disk.full = True
    for _ in range(3):
        live.answer(live.decide(live.request("GET", "/public")), recording)
    disk.full = False
    live.answer(live.decide(live.request("GET", "/public")), recording)
    recording.done()
    assert (recording.written, recording.failed) == (2, 3)
    assert len(read(path)) == 2
    assert len(caplog.records) == 1, "said once, then counted"


def test_a_file_that_cant_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--record .*/file/in/x\.mitm: not a directory"):
        recorder(str(tmp_path / "file" / "in" / "x.mitm"))


def test_the_folder_of_a_recording_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "recorded" / "today" / "traffic.mitm"
    recorder(str(path)).done()
    assert path.exists()
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("token", "signature"),
    [
        ({}, "good"),
        ({"key": SECRET + "!"}, "bad"),
        ({"iss": "https://other.example"}, "unchecked"),
        ({"algorithm": "HS512"}, "unchecked"),
    ],
)
def test_tokens_that_no_stage_looked_at_are_checked_for_the_recording(
    tmp_path: Path, live: Live, now: list[float], token: dict[str, Any], signature: str
) -> None:
    recording = recorder(str(tmp_path / "traffic.mitm"), ring=live.ring)
    live.answer(live.decide(live.request("GET", "/public", token_at(now, **token))), recording)
    recording.done()
    (entry,) = read(tmp_path / "traffic.mitm")
    assert entry.presented is not None
    assert entry.presented.signature == signature
    assert len(entry.presented.text) == len(token_at(now, **token))


def test_flows_as_mitmweb_saves_them_replay_without_a_key(tmp_path: Path, live: Live, now: list[float]) -> None:
    """They hold real tokens; the verdict that goes with them says what the signature was."""
    path = tmp_path / "saved.mitm"
    tokens = [token_at(now), token_at(now, key=SECRET + "!"), None, token_at(now, aud="api://other"), "garbage"]
    with path.open("wb") as file:
        for token in tokens:
            flow = live.decide(live.request("GET", "/api/v1/users/7", token))
            exchange = exchange_of(flow)
            assert exchange is not None
            flow.response = flow.response or Response.make(200)
            flow.response.timestamp_start = now[0] + 0.01
            flow.metadata["mitmgate"] = mirror(exchange)
            FlowWriter(file).add(flow)
    report = replay(open_traffic([str(path)]), load_offline(str(tmp_path / "policy.yaml"), {}))
    assert (report.decided, report.compared, report.tally.total) == (5, 5, 0), report.tally.groups
    assert len(report.notes) == 1


def test_serve_records(tmp_path: Path) -> None:
    """The flag of the production host: what it writes replays without a difference."""
    path = tmp_path / "traffic.mitm"
    with RecordingUpstream() as upstream:
        made = policy(tmp_path, upstream)
        made["rate_limits"]["per-user"]["limit"] = 3
        with Gateway(write_policy(tmp_path, made), arguments=("--record", str(path))) as gateway:
            for number in range(5):
                gateway.get(f"/api/v1/users/{number}", token=mint())
            gateway.get("/public", token=mint())
            gateway.get("/nothing")
    report = replay(open_traffic([str(path)]), load_offline(str(tmp_path / "policy.yaml"), {}))
    assert (report.decided, report.compared, report.tally.total) == (7, 7, 0), report.tally.groups
    assert report.answers == {"admit": 4, "deny quota-exceeded": 2, "deny credential-missing": 1}
    stricter = {**made, "routes": [*made["routes"][:2], {**made["routes"][2], "auth": {"issuers": ["dev"]}}]}
    report = replay(open_traffic([str(path)]), load_offline(str(write_policy(tmp_path, stricter, "new.yaml")), {}))
    assert [group.kind for group in report.tally.groups] == ["headers"], "the token on the public route was checked"


def test_serve_samples_by_request_id_and_rotates(tmp_path: Path) -> None:
    """Which requests are in a sample depends on their ids alone, and it is never more than the newest files."""
    path = tmp_path / "traffic.mitm"
    with RecordingUpstream() as upstream:
        made = policy(tmp_path, upstream) | {"trusted_proxies": ["127.0.0.1/32"]}
        options = ("--record", str(path), "--record-sample", "0.5", "--record-rotate", "24KiB", "--record-keep", "2")
        with Gateway(write_policy(tmp_path, made), arguments=options) as gateway:
            for number in range(200):
                gateway.get("/public", headers={"X-Request-ID": f"request-{number}"})
    files = [path, tmp_path / "traffic.mitm.1", tmp_path / "traffic.mitm.2"]
    assert sorted(tmp_path.glob("traffic.mitm*")) == files
    assert all(file.stat().st_size < 34_000 for file in files) and all(file.stat().st_size for file in files[1:])
    kept = [entry.request_id for entry in read(path)]
    chooser = recorder(str(tmp_path / "unused.mitm"), sample=0.5)
    chosen = [f"request-{number}" for number in range(200) if chooser._chosen(f"request-{number}")]
    chooser.done()
    assert 60 < len(chosen) < 140
    assert kept == chosen[-len(kept) :] and len(kept) > 10


def cut(request: Seen) -> Raw | Reply:
    """Answer the first paths with a head and half a body, the others in full."""
    return Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf") if "cut" in request.target else Reply()


def test_a_circuit_that_opened_for_broken_bodies_opens_again_in_replay(tmp_path: Path) -> None:
    path = tmp_path / "traffic.mitm"
    with RecordingUpstream(cut) as upstream:
        made = policy(tmp_path, upstream)
        made["upstreams"]["users"] |= {"circuit": {"failures": 3, "open_for": "60s"}, "retries": 0}
        route(made, "public", match={"prefix": "/public"})
        with Gateway(write_policy(tmp_path, made), arguments=("--record", str(path))) as gateway:
            for number in range(3):
                with suppress(http.client.IncompleteRead):
                    gateway.get(f"/public/cut/{number}")
            assert [gateway.get("/public/whole").status for _ in range(2)] == [503] * 2
    report = replay(open_traffic([str(path)]), load_offline(str(tmp_path / "policy.yaml"), {}))
    assert (report.decided, report.tally.total) == (5, 0), report.tally.groups
    assert report.answers == {"admit": 3, "deny circuit-open": 2}


def test_a_slow_body_of_a_client_is_not_taken_for_a_slow_upstream(tmp_path: Path) -> None:
    """The rule `slow` asks how long the upstream took; what the recording says of it decides again."""

    def slowly() -> Iterator[bytes]:
        yield b"x"
        time.sleep(3)
        yield b"y"

    path = tmp_path / "traffic.mitm"
    with RecordingUpstream() as upstream:
        made = policy(tmp_path, upstream)
        made["upstreams"]["users"] |= {"circuit": {"failures": 1, "share": 0, "slow": "2s", "open_for": "60s"}}
        with Gateway(write_policy(tmp_path, made), arguments=("--record", str(path))) as gateway:
            assert [gateway.request("POST", "/public", body=slowly()).status for _ in range(2)] == [200, 200]
            upstream.reply = Reply(delay=2.5)
            assert [gateway.get("/public").status for _ in range(2)] == [200, 503]
    report = replay(open_traffic([str(path)]), load_offline(str(tmp_path / "policy.yaml"), {}))
    assert (report.decided, report.tally.total) == (4, 0), report.tally.groups
    made["upstreams"]["users"]["circuit"]["slow"] = "1m"
    report = replay(open_traffic([str(path)]), load_offline(str(write_policy(tmp_path, made, "new.yaml")), {}))
    assert [(group.before, group.after, group.count) for group in report.tally.groups] == [
        ("deny circuit-open", "admit", 1)
    ]
