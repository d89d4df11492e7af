"""Files that nest without end, or are of no kind: one message each, exit status 2, and no half-made output."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.io import FlowWriter, tnetstring
from mitmproxy.test.tflow import tflow

from mitmgate.cli import main
from tests.live.harness import ROOT, SECRET, policy, write_policy

DEPTH = 20_000


def nested(depth: int, mapping: bool) -> bytes:
    """Make a tnetstring of lists, or of mappings, in one another."""
    made = b"0:~"
    for _ in range(depth):
        made = b"%d:1:a;%b}" % (len(made) + 4, made) if mapping else b"%d:%b]" % (len(made), made)
    return made


def a_flow_with(metadata: bytes) -> bytes:
    """Make a flow that is as it should be but for its metadata."""
    members = ((b"version", b"2:21#"), (b"type", b"4:http;"), (b"id", b"1:x;"), (b"metadata", metadata))
    inner = b"".join(b"%d:%b;%b" % (len(name), name, value) for name, value in members)
    return b"%d:%b}" % (len(inner), inner)


def real_flows() -> bytes:
    file = io.BytesIO()
    FlowWriter(file).add(tflow(resp=True))
    return file.getvalue()


FILES = {
    "lists": nested(DEPTH, mapping=False),
    "mappings": nested(DEPTH, mapping=True),
    "metadata": a_flow_with(nested(5000, mapping=True)),
    "second": real_flows() + nested(DEPTH, mapping=True),
    "json": b'{"log":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "har": b'{"log":{"entries":[' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"]}}",
    "audit": b'{"event":"request","request_id":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "noise": bytes(range(256)) * 20,
    "huge": b"999999999999:abc",
}
COMMANDS = {
    "redact": ("redact", "FILE", "OUT"),
    "replay": ("replay", "FILE", "--policy", "POLICY", "--write-expected", "--annotate", "OUT"),
    "learn": ("learn", "FILE", "--out", "OUT"),
    "explain": ("explain", "--policy", "POLICY", "--flow", "FILE#x"),
    "check": ("check", "FILE"),
    "verify": ("audit", "verify", "FILE"),
    "show": ("audit", "show", "FILE"),
    "keys": ("explain", "--policy", "POLICY", "--jwks", "dev=FILE", "GET", "/public"),
}


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; return its status and all that it said."""
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)  # it would keep this process's garbage

    def command(*words: str) -> tuple[int, str]:
        status = main(words)
        said = capsys.readouterr()
        return status, said.out + said.err

    return command


# Each command with the files that its readers differ in; each file with `redact`, which reads them all.
CASES = [("redact", name) for name in FILES] + [(command, "mappings") for command in COMMANDS if command != "redact"]
CASES += [("learn", "second"), ("replay", "metadata"), ("verify", "audit"), ("check", "json"), ("keys", "json")]


@pytest.mark.parametrize(("command", "name"), CASES, ids=[f"{command}-{name}" for command, name in CASES])
def test_one_message_and_no_output(tmp_path: Path, run: Run, command: str, name: str) -> None:
    file, out = tmp_path / name, tmp_path / "out"
    file.write_bytes(FILES[name])
    out.write_text("what was there before")
    places = {"FILE": str(file), "OUT": str(out), "POLICY": str(write_policy(tmp_path, policy(tmp_path, "http://h:1")))}
    words = [places.get(word, word.replace("FILE", str(file))) for word in COMMANDS[command]]
    before = set(tmp_path.iterdir())
    status, said = run(*words)
    assert "Traceback" not in said and "RecursionError" not in said, said[-3000:]
    if (command, name) in {("learn", "second"), ("replay", "metadata"), ("show", "mappings")}:
        # A recording whose later part is damaged is a recording; a file without an event has none to show.
        assert status in {0, 1, 2}
    else:
        assert status == 2, said
        assert len(said.splitlines()) == 1, said
        assert out.read_text() == "what was there before"
        assert set(tmp_path.iterdir()) == before, "no file is left"


def test_what_fails_in_the_middle_leaves_the_former_output(tmp_path: Path, run: Run) -> None:
    """The second flow can't be read: what redacted the first one is not kept, and not under another name."""
    source, out = tmp_path / "traffic.mitm", tmp_path / "out.mitm"
    source.write_bytes(real_flows())
    assert run("redact", str(source), str(out))[0] == 0
    good = out.read_bytes()
    for bad in (nested(DEPTH, mapping=True), b"12:nonsense", real_flows()[:-20]):
        source.write_bytes(real_flows() + bad)
        assert run("redact", str(source), str(out))[0] == 2
        assert out.read_bytes() == good
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mitm", "traffic.mitm"]


def test_an_output_may_be_a_device(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "traffic.mitm"
    source.write_bytes(real_flows())
    assert run("redact", str(source), "/dev/null")[0] == 0
    assert not Path("/dev/null").is_file()


EXAMPLE = ROOT / "policies" / "example-tests"
ODD: list[tuple[tuple[str | int, ...], object]] = [
    (("request", "timestamp_start"), float("inf")),
    (("request", "timestamp_start"), 10**400),
    (("metadata", "mitmgate", "now"), 1e308),
    (("metadata", "mitmgate", "now"), float("nan")),
    (("metadata", "mitmgate", "ingress", "scheme"), "\u00e9"),
    (("metadata", "mitmgate", "ingress", "declared_body"), 10**400),
    (("metadata", "mitmgate", "ingress", "target"), "//[x]/a://"),
    (("metadata", "mitmgate", "request_id"), "\u00e9"),
    (("response", "status_code"), float("inf")),
    (("client_conn", "timestamp_start"), 10**400),
]


@pytest.mark.parametrize(("path", "value"), ODD)
def test_a_flow_with_values_that_no_recorder_writes_costs_nobody_the_others(
    tmp_path: Path, run: Run, path: tuple[str | int, ...], value: object
) -> None:
    """Before: a traceback, and nothing of the recording. A target like that any client may send."""
    recording = (EXAMPLE / "traffic.mitm").read_bytes()
    states: list[Any] = []
    file = io.BytesIO(recording)
    while file.tell() < len(recording):
        states.append(tnetstring.load(file))
    place = states[1]
    for member in path[:-1]:
        place = place[member]
    place[path[-1]] = value
    odd = tmp_path / "odd.mitm"
    odd.write_bytes(b"".join(map(tnetstring.dumps, states)))
    policy_path = str(EXAMPLE / "gateway.yaml")
    commands = {
        "replay": ("replay", str(odd), "--policy", policy_path, "--fail-on", "none"),
        "learn": ("learn", str(odd), "--out", str(tmp_path / "learnt.yaml")),
        "redact": ("redact", str(odd), str(tmp_path / "redacted.mitm")),
    }
    for name, words in commands.items():
        status, said = run(*words)
        assert "Traceback" not in said, name
        assert status == 0 or (name == "redact" and said.startswith("mitmgate: ")), said


def test_a_client_has_no_way_to_keep_learn_from_reading(tmp_path: Path, run: Run) -> None:
    """Audit files, and HARs of others: what stands in their lines is anybody's word."""
    event: dict[str, Any] = {
        "event": "request",
        "request_id": "a",
        "time": "2026-11-30T10:00:00Z",
        "method": "GET",
        "decision": "admit",
    }
    event |= {"path": "//[x]/a://", "stage": "rewrite", "reason": "ok", "status": 200, "host": "x"}
    lines = [event, event | {"time": "0001-01-01T00:00:00"}, event | {"upstream_ms": 1e308}]
    (tmp_path / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    request = {"method": "GET", "url": "http://a/", "headers": []}
    entry = {"startedDateTime": "9999-12-31T23:59:59-14:00", "request": request, "response": {"status": 200}}
    (tmp_path / "a.har").write_text(json.dumps({"log": {"entries": [entry, entry | {"time": 10**400}]}}))
    for name in ("audit.jsonl", "a.har"):
        status, said = run("learn", str(tmp_path / name), "--out", str(tmp_path / "out.yaml"))
        assert "Traceback" not in said
        assert status in {0, 2}, said
