"""Recordings of others: stock mitmproxy's flow files, HARs as browsers export them, audit files; order and damage."""

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.io import FlowWriter, tnetstring
from mitmproxy.test.tflow import tdnsflow, tflow, ttcpflow

from mitmgate.replay import ordered
from mitmgate.replay.offline import load_offline
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.run import replay
from mitmgate.replay.traffic import Recorded, Skipped
from mitmgate.usage import UserError
from tests.live.harness import SECRET, Gateway, audit_events, mint, policy, write_policy
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream
from tests.replay.corpus import Corpus


def written(path: Path, flows: list[Any]) -> Path:
    with path.open("wb") as file:
        writer = FlowWriter(file)
        for flow in flows:
            writer.add(flow)
    return path


def at(seconds: float, path: str = "/") -> Any:
    flow = tflow(resp=True)
    flow.request.timestamp_start, flow.request.path = seconds, path
    return flow


def entries(path: Path) -> list[Recorded]:
    return [entry for entry in open_traffic([str(path)]) if isinstance(entry, Recorded)]


def test_a_flow_file_saved_by_stock_mitmproxy(tmp_path: Path) -> None:
    port, saved = free_port(), tmp_path / "stock.mitm"
    with RecordingUpstream() as upstream:
        command = [str(Path(sys.executable).with_name("mitmdump")), "-q", "-w", str(saved), "--set", "keep_host_header"]
        command += ["--mode", f"reverse:{upstream.url}", "--listen-host", "127.0.0.1", "--listen-port", str(port)]
        process = subprocess.Popen(command)
        try:
            wait_for(lambda: answers(port), "mitmdump to answer")
            token = mint()
            request(port, "GET", "/api/v1/users/7?a=b", token=token)
            request(port, "POST", "/api/v1/orders", token=token, body=b"x" * 50)
            request(port, "GET", "/api/v1/users/8")
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
        path = write_policy(tmp_path, policy(tmp_path, upstream))
    found = [entry for entry in entries(saved) if entry.request.target != "/ready"]
    assert [entry.request.target for entry in found] == ["/api/v1/users/7?a=b", "/api/v1/orders", "/api/v1/users/8"]
    assert found[1].request.declared_body == 50
    assert {entry.request.peer for entry in found} == {"127.0.0.1"}

    refusing = replay(open_traffic([str(saved)]), load_offline(str(path), {}))
    assert refusing.answers["deny keys-unavailable"] == 2, "without the secret nothing is taken for good"
    assert any("--assume-signed" in note for note in refusing.notes)
    assert refusing.compared == 0 and any("nothing was compared" in note for note in refusing.notes)

    assuming = replay(open_traffic([str(saved)]), load_offline(str(path), {}), assume_signed=True)
    assert (assuming.answers["admit"], assuming.answers["deny credential-missing"]) == (2, assuming.decided - 2)
    assert any("2 decisions rest on --assume-signed" in note for note in assuming.notes)

    checking = replay(open_traffic([str(saved)]), load_offline(str(path), {"MITMGATE_TEST_SECRET": SECRET}))
    assert checking.answers["admit"] == 2 and not checking.notes[1:], "with the secret the signatures are checked"


def answers(port: int) -> bool:
    try:
        return request(port, "GET", "/ready").status > 0
    except OSError:
        return False


CHROME = {
    "log": {
        "version": "1.2",
        "creator": {"name": "WebInspector", "version": "537.36"},
        "pages": [],
        "entries": [
            {
                "_initiator": {"type": "script"},
                "_priority": "High",
                "_resourceType": "fetch",
                "cache": {},
                "connection": "31",
                "request": {
                    "method": "GET",
                    "url": "https://api.example/api/v1/users/7?page=2",
                    "httpVersion": "http/2.0",
                    "headers": [
                        {"name": ":authority", "value": "api.example"},
                        {"name": ":method", "value": "GET"},
                        {"name": ":path", "value": "/api/v1/users/7?page=2"},
                        {"name": ":scheme", "value": "https"},
                        {"name": "authorization", "value": "Bearer TOKEN"},
                        {"name": "user-agent", "value": "Mozilla/5.0"},
                    ],
                    "queryString": [{"name": "page", "value": "2"}],
                    "cookies": [],
                    "headersSize": -1,
                    "bodySize": 0,
                },
                "response": {
                    "status": 200,
                    "statusText": "",
                    "httpVersion": "http/2.0",
                    "headers": [{"name": "content-type", "value": "application/json"}],
                    "cookies": [],
                    "content": {"size": 2, "mimeType": "application/json"},
                    "redirectURL": "",
                    "headersSize": -1,
                    "bodySize": -1,
                },
                "serverIPAddress": "192.0.2.1",
                "startedDateTime": "2026-03-30T00:00:54.253Z",
                "time": 41.2,
                "timings": {
                    "blocked": 1.0,
                    "dns": -1,
                    "ssl": -1,
                    "connect": -1,
                    "send": 0.2,
                    "wait": 39.0,
                    "receive": 1,
                },
            },
            {
                "request": {
                    "method": "POST",
                    "url": "http://api.example:8080/public",
                    "httpVersion": "HTTP/1.1",
                    "headers": [
                        {"name": "Host", "value": "api.example:8080"},
                        {"name": "Content-Length", "value": "5"},
                    ],
                    "postData": {"mimeType": "text/plain", "text": "hello"},
                    "bodySize": 5,
                },
                "response": {"status": 0, "headers": [], "content": {"size": 0}},
                "startedDateTime": "2026-03-30T00:00:53.000+00:00",
                "time": 0,
                "timings": {},
            },
            {
                "request": {"method": "GET", "url": "data:text/plain,x", "httpVersion": "", "headers": []},
                "response": {"status": 200, "headers": [], "content": {}},
                "startedDateTime": "2026-03-30T00:00:55.000Z",
                "time": 0,
                "timings": {},
            },
            {"request": {}},
        ],
    }
}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "with a byte order mark"])
def test_a_har_as_a_browser_exports_it(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "session.har"
    path.write_text(mark + json.dumps(CHROME, indent=2).replace("TOKEN", mint()), encoding="utf-8")
    read = list(open_traffic([str(path)]))
    skipped = [entry.reason for entry in read if isinstance(entry, Skipped)]
    assert sorted(skipped) == ["damaged", "no HTTP request"]
    first, second = (entry for entry in read if isinstance(entry, Recorded))
    assert (first.request.method, first.request.target, first.request.declared_body) == ("POST", "/public", 5)
    assert first.aftermath is None, "the browser got no answer"
    assert second.request.authority == "api.example" and second.request.version == "HTTP/2.0"
    assert not any(name.startswith(b":") for name in second.request.headers.names())
    assert second.aftermath is not None and second.aftermath.known is not None
    assert second.aftermath.known - second.at == pytest.approx(0.0402)
    made = policy(tmp_path, "http://127.0.0.1:9")
    report = replay(open_traffic([str(path)]), load_offline(str(write_policy(tmp_path, made)), {}), assume_signed=True)
    # The token was minted now, and the page was loaded in spring.
    assert report.answers == Counter({"admit": 1, "deny token-not-yet-valid": 1}), report.answers
    assert (report.decided, report.skipped.total()) == (2, 2)


def test_an_audit_file_replays_headers_only(tmp_path: Path) -> None:
    with RecordingUpstream() as upstream:
        path = write_policy(tmp_path, policy(tmp_path, upstream))
        with Gateway(path) as gateway:
            token = mint(roles="user")
            for number in range(5):
                gateway.get(f"/api/v1/orders/{number}", token=token)
            gateway.get("/public")
            gateway.get("/api/v1/users/7")
            gateway.get("/api/v1/users/7", token=token)
            gateway.get("/api/v1/users/7", token=mint(lifetime=-3600))
            audit = tmp_path / "audit.jsonl"
            audit_events(audit, 9)
    report = replay(open_traffic([str(audit)]), load_offline(str(path), {}))
    assert report.tally.total == 0, [(g.before, g.after, g.route) for g in report.tally.groups]
    assert report.answers == Counter({"admit": 6, "deny token-expired": 1})
    # Scopes and the absence of a token are not in an audit file, so nothing is said of what rests on them.
    assert report.skipped["an audit event says nothing of the claims that this rests on"] == 2
    stricter = policy(tmp_path, "http://127.0.0.1:9")
    stricter["routes"][1]["require"]["roles_any"] = ["admin"]
    report = replay(open_traffic([str(audit)]), load_offline(str(write_policy(tmp_path, stricter, "new.yaml")), {}))
    assert [(g.after, g.route, g.count) for g in report.tally.groups if g.kind == "tightened"] == [
        ("deny role-missing", "orders", 5)
    ]


def test_requests_come_in_the_order_of_their_arrival(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows are written when they end: nearly sorted, with stragglers that took very long."""
    monkeypatch.setattr(ordered, "WINDOW", 16)
    dice = random.Random(1)
    starts = [1.7e9 + number / 10 for number in range(500)]
    ends = {start: start + (200 if dice.random() < 0.05 else dice.random()) for start in starts}
    path = written(tmp_path / "mixed.mitm", [at(start) for start in sorted(starts, key=ends.__getitem__)])
    traffic = open_traffic([str(path)])
    for _ in range(2):
        assert [entry.at for entry in traffic if isinstance(entry, Recorded)] == starts
    assert len(traffic) == 500


def test_rotated_files_and_several_workers_are_one_recording(tmp_path: Path) -> None:
    for name, times in (("a.mitm.2", (1, 4)), ("a.mitm.1", (3, 6)), ("a.mitm", (5, 9)), ("b.mitm", (2, 7, 8))):
        written(tmp_path / name, [at(1.7e9 + time) for time in times])
    traffic = open_traffic([str(tmp_path / "a.mitm"), str(tmp_path / "b.mitm")])
    assert [entry.at - 1.7e9 for entry in traffic if isinstance(entry, Recorded)] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_other_protocols_and_damage_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "mixed.mitm", [at(1.7e9), ttcpflow(), tdnsflow(), at(1.7e9 + 1)])
    damaged = path.read_bytes()
    state = at(1.7e9 + 2).get_state()
    state["request"] = {"method": b"GET", "timestamp_start": 1.7e9 + 2}
    path.write_bytes(damaged + tnetstring.dumps(state) + damaged[:100])
    read = list(open_traffic([str(path)]))
    assert [entry.at for entry in read if isinstance(entry, Recorded)] == [1.7e9, 1.7e9 + 1]
    assert Counter(entry.reason for entry in read if isinstance(entry, Skipped)) == Counter(
        {"no HTTP request": 2, "damaged": 1, "cut short: the recorder was ended in the middle of it": 1}
    )


def test_flows_of_an_older_format(tmp_path: Path) -> None:
    """Mitmproxy converts what it wrote in former versions; here one of format 20."""
    state = at(1.7e9, "/old").get_state()
    state["version"] = 20
    (tmp_path / "old.mitm").write_bytes(tnetstring.dumps(state))
    assert [entry.request.target for entry in entries(tmp_path / "old.mitm")] == ["/old"]
    state["version"] = 999
    (tmp_path / "new.mitm").write_bytes(tnetstring.dumps(state))
    with pytest.raises(UserError, match="update mitmproxy"):
        open_traffic([str(tmp_path / "new.mitm")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "no flow file of mitmproxy, no HAR and no audit file"),
        (b"{}", "no HAR"),
        (b'{"log": {"entries": 3}}', "no HAR"),
        (b"3:abc,", "no flow file"),
    ],
)
def test_other_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "what").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_traffic([str(tmp_path / "what")])


def test_a_missing_file() -> None:
    with pytest.raises(UserError, match="no such file"):
        open_traffic(["/nowhere/traffic.mitm"])


def test_an_empty_recording_decides_nothing_and_fails(tmp_path: Path, corpus: Corpus) -> None:
    (tmp_path / "empty.mitm").write_bytes(b"")
    report = replay(open_traffic([str(tmp_path / "empty.mitm")]), load_offline(str(corpus.policy), {}))
    assert (report.decided, report.failed("none")) == (0, True)
