"""The commands as a user runs them: the same bytes every time, on every day, without a network; their exit statuses."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path

import pytest

from mitmgate.init_command import POLICY
from mitmgate.replay import tnetstring
from mitmgate.replay.commands import LARGE
from tests.live.harness import ROOT, SECRET, mint
from tests.replay.corpus import Corpus

OFFLINE = """
import sys, time

def refuse(event, arguments):
    if event.startswith("socket."):
        raise OSError(f"no network here: {event}")

sys.addaudithook(refuse)
if "TEST_DAYS" in __import__("os").environ:
    _now = time.time
    time.time = lambda: _now() + 86400 * float(__import__("os").environ["TEST_DAYS"])
"""


@pytest.fixture
def offline(tmp_path: Path) -> Path:
    """A directory for PYTHONPATH in which every use of a socket fails."""
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline" / "sitecustomize.py").write_text(OFFLINE)
    return tmp_path / "offline"


def mitmgate(*arguments: str | Path, expect: int = 0, **environment: str) -> str:
    """Run the command line; return what it printed to stdout, or to stderr where a failure is expected."""
    path = ":".join(filter(None, (environment.pop("site", ""), str(ROOT / "addons"))))
    done = subprocess.run(
        [sys.executable, "-m", "mitmgate", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    return done.stderr if expect == 2 else done.stdout


@pytest.mark.parametrize("form", ["table", "json", "junit"])
def test_the_same_bytes_twice_on_another_day_and_without_a_network(small: Corpus, offline: Path, form: str) -> None:
    mutant = small.mutated(f"again-{form}", lambda made: made["routes"][0]["require"].update(scopes_all=["x"]))
    arguments = ("replay", small.path, "--policy", mutant, "--format", form, "--coverage")
    first = mitmgate(*arguments, expect=1, site=str(offline))
    again = mitmgate(
        *arguments, expect=1, site=str(offline), TEST_DAYS="400", TZ="Asia/Tokyo", PYTHONHASHSEED="7", COLUMNS="60"
    )
    assert first == again
    assert "tightened" in first


def test_the_offline_test_would_notice(small: Corpus, offline: Path) -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(offline)}, capture_output=True, check=False
    )
    assert b"no network here" in done.stderr


def test_formats_say_the_same(small: Corpus) -> None:
    mutant = small.mutated("formats", lambda made: made["routes"][1]["require"].update(roles_any=["admin"]))
    table = mitmgate("replay", small.path, "--policy", mutant, expect=1)
    report = json.loads(mitmgate("replay", small.path, "--policy", mutant, "--format", "json", expect=1))
    suite = ET.fromstring(mitmgate("replay", small.path, "--policy", mutant, "--format", "junit", expect=1))
    total = report["differences"]["total"]
    assert total == report["differences"]["kinds"]["tightened"] > 200
    assert f"{report['compared']:,} compared: {total:,} differ ({total:,} tightened)" in table
    assert "2,000 decided, 0 skipped" in table
    failures = suite.findall(".//failure")
    assert [failure.get("type") for failure in failures] == ["tightened"]
    assert f"{total:,} requests" in (failures[0].get("message") or "")
    assert suite.find("testsuite[@failures='1']") is not None


def test_junit_keeps_to_the_schema_that_ci_servers_read(small: Corpus) -> None:
    """The order of elements and the attributes are those of Jenkins' JUnit schema; the counts are true."""
    mutant = small.mutated("junit", lambda made: made["routes"][1]["require"].update(roles_any=["admin", "<&>"]))
    text = mitmgate("replay", small.path, "--policy", mutant, "--format", "junit", "--min-coverage", "99.5", expect=1)
    root = ET.fromstring(text)
    assert (root.tag, [suite.tag for suite in root]) == ("testsuites", ["testsuite"])
    suite = root[0]
    cases = suite.findall("testcase")
    assert [child.tag for child in suite] == ["testcase"] * len(cases) + ["system-out"]
    assert set(suite.attrib) == {"name", "tests", "failures", "errors"}
    failed = [case for case in cases if case.find("failure") is not None]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == (str(len(cases)), str(len(failed)), "0")
    for case in cases:
        assert set(case.attrib) == {"classname", "name"}
        assert [child.tag for child in case] == ["failure"] * len(case.findall("failure")) + ["system-out"]
        assert all(set(failure.attrib) == {"type", "message"} for failure in case.findall("failure"))
    assert [case.get("name") for case in failed] == ["route orders", "coverage"]
    assert "principals: dev/alice (" in str(failed[0].findtext("failure"))
    assert "is below 99.5 %" in str(failed[1].find("failure").get("message"))  # type: ignore[union-attr]  # it is there


def on_a_terminal(*words: str | Path, expect: int = 0) -> tuple[bytes, bytes]:
    """Run a command whose stderr is a terminal; return what that shows, and the output."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "TERM": "xterm"}
    command = [sys.executable, "-m", "mitmgate", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        with suppress(OSError):  # the terminal is gone when the process is
            while part := os.read(leader, 65536):
                shown += part
        out = process.communicate()[0]
    os.close(leader)
    assert process.returncode == expect, shown
    return shown, out


def test_a_long_replay_shows_its_progress_on_a_terminal(small: Corpus, tmp_path: Path) -> None:
    """Three workers' recordings are one recording; the bar goes to stderr, the report does not."""
    copies = [shutil.copy(small.path, tmp_path / f"traffic.{number}.mitm") for number in range(3)]
    shown, out = on_a_terminal(
        "replay", *copies, "--policy", str(small.policy), "--format", "json", "--fail-on", "none"
    )
    assert b"deciding" in shown and b"/6000" in shown
    assert json.loads(out)["decided"] == 6_000


def test_redaction_of_a_large_file_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    recording = (ROOT / "addons" / "mitmgate" / "demo" / "orders.mitm").read_bytes()
    copies = -(-LARGE // len(recording))
    (tmp_path / "traffic.mitm").write_bytes(recording * copies)
    shown, out = on_a_terminal("redact", str(tmp_path / "traffic.mitm"), str(tmp_path / "redacted.mitm"))
    assert b"redacting" in shown and b"MB" in shown
    assert f"{copies * 10} requests".encode() in out


def test_explaining_a_late_request_shows_its_progress_on_a_terminal(tmp_path: Path) -> None:
    """All that came before is decided first."""
    recording = ROOT / "addons" / "mitmgate" / "demo" / "orders.mitm"
    (tmp_path / "gateway.yaml").write_text(POLICY)
    (tmp_path / "traffic.mitm").write_bytes(recording.read_bytes() * 500)
    flow = f"{tmp_path / 'traffic.mitm'}#nothing"
    shown, _ = on_a_terminal("explain", "--policy", str(tmp_path / "gateway.yaml"), "--flow", flow, expect=2)
    assert b"deciding" in shown and b"/5000" in shown


@pytest.mark.parametrize(("fail_on", "status"), [("any", 1), ("tightened", 1), ("loosened", 0), ("none", 0)])
def test_fail_on(small: Corpus, fail_on: str, status: int) -> None:
    mutant = small.mutated(
        f"fail-{fail_on}", lambda made: made["networks"].update(deny=["127.0.0.3/32", "127.0.0.13/32"])
    )
    mitmgate("replay", small.path, "--policy", mutant, "--fail-on", fail_on, expect=status)


def test_against_another_policy(small: Corpus) -> None:
    mutant = small.mutated("against", lambda made: made["rate_limits"]["per-user"].update(limit=4))
    text = mitmgate("replay", small.path, "--policy", small.policy, "--against", mutant, "--format", "json", expect=1)
    report = json.loads(text)
    assert report["compared_with"] == str(mutant)
    assert 30 < report["differences"]["kinds"]["loosened"] <= 60, "up to six more for each of ten principals"
    (group,) = report["differences"]["groups"]
    assert (group["before"], group["after"], group["route"]) == ("deny quota-exceeded", "admit", "limited")


def test_what_if_with_a_plot(small: Corpus, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    arguments = ("replay", small.path, "--policy", small.policy, "--what-if", "per-user.limit=4", "--plot", plot)
    text = mitmgate(*arguments)
    assert "10 principals would have been limited otherwise" in text
    assert re.search(r"dev/user-3 +6 +0 ", text)
    svg = ET.fromstring(plot.read_text())
    assert svg.tag.endswith("svg") and "dev/user-3" in plot.read_text()
    before = plot.read_bytes()
    assert mitmgate(*arguments) == text and plot.read_bytes() == before


def test_what_if_of_a_circuit(small: Corpus) -> None:
    arguments = ("replay", small.path, "--policy", small.policy, "--what-if", "flaky.failures=10000")
    report = json.loads(mitmgate(*arguments, "--format", "json"))
    assert report["differences"]["kinds"]["loosened"] > 5
    (line,) = (line for line in report["what_if"].values() if line["no_longer_limited"])
    assert line["no_longer_limited"] == report["differences"]["total"]


def test_expectations(small: Corpus, tmp_path: Path) -> None:
    traffic = tmp_path / "traffic.mitm"
    traffic.write_bytes(small.path.read_bytes())
    mitmgate("replay", traffic, "--policy", small.policy, "--write-expected")
    expected = tmp_path / "traffic.mitm.expect.yaml"
    lines = expected.read_text().splitlines()
    assert sum(": admit, route users" in line for line in lines) > 200
    assert "compared with" in mitmgate("replay", traffic, "--policy", small.policy)
    at = next(number for number, line in enumerate(lines) if line.endswith(": deny role-missing, route orders"))
    lines[at] = lines[at].replace("deny role-missing", "admit")
    expected.write_text("\n".join([*lines, '  "gone": admit', ""]))
    report = json.loads(mitmgate("replay", traffic, "--policy", small.policy, "--format", "json", expect=1))
    assert report["compared_with"] == str(expected)
    (group,) = report["differences"]["groups"]
    assert (group["count"], group["before"], group["after"]) == (1, "admit", "deny role-missing")
    assert "1 expectations are of requests that the recording does not have" in report["notes"]
    lines[at] = lines[at].replace("admit", "perhaps")
    expected.write_text("\n".join(lines))
    assert "must be admit, deny REASON" in mitmgate("replay", traffic, "--policy", small.policy, expect=2)


def test_coverage(small: Corpus, tmp_path: Path) -> None:
    annotated = tmp_path / "annotated.txt"
    text = mitmgate("replay", small.path, "--policy", small.policy, "--coverage", "--annotate", annotated)
    assert re.search(r"coverage of \S+: [89]\d\.\d % \(\d+ of \d+ branches of rules\)", text)
    for rule in ("network 127.0.0.4/32", "role admin", "scope reports.read"):
        assert rule in text, rule
    assert "network 127.0.0.13/32" not in text
    margins = [line.partition("|")[0].strip() for line in annotated.read_text().splitlines()]
    assert len(margins) == len(small.policy.read_text().splitlines())
    assert "matched #####" in margins
    assert any(re.fullmatch(r"held \d+ failed \d+", margin) for margin in margins)
    mitmgate("replay", small.path, "--policy", small.policy, "--min-coverage", "80")
    mitmgate("replay", small.path, "--policy", small.policy, "--min-coverage", "99.5", expect=1)


def test_learn_proposes_what_check_accepts_and_replay_admits(small: Corpus, tmp_path: Path) -> None:
    learnt = tmp_path / "learnt.yaml"
    mitmgate("learn", small.path, "--out", learnt)
    assert learnt.read_text() == mitmgate("learn", small.path)
    text = learnt.read_text()
    assert "scopes_all: [orders.read, users.read]" in text and "rewrite: {strip_prefix: true}" in text
    assert "replace_prefix:" in text and "/svc" in text
    mitmgate("check", learnt, MITMGATE_DEV_SECRET=SECRET)
    report = json.loads(mitmgate("replay", small.path, "--policy", learnt, "--format", "json", "--fail-on", "none"))
    # What the upstream answered with an error taught nothing, and preflights of requests that nobody made then.
    refused = [group for group in report["differences"]["groups"] if group["kind"] == "tightened"]
    assert {(group["before"], group["route"]) for group in refused} <= {
        ("admit", "flaky"),
        ("admit", "dead"),
        ("answer preflight", "users"),
    }


def test_redact(small: Corpus, tmp_path: Path) -> None:
    again = tmp_path / "again.mitm"
    assert "2,000 requests" in mitmgate("redact", small.path, again)
    assert "no difference" in mitmgate("replay", again, "--policy", small.policy)
    assert "name another file" in mitmgate("redact", again, again, expect=2)


def test_explain(small: Corpus) -> None:
    claims = json.dumps({"sub": "alice", "role": "user", "scope": "users.read"})
    explain = ("explain", "--policy", small.policy, "--claims", claims)
    text = mitmgate(*explain, "DELETE", "/api/v1/users/7")
    assert text.startswith("deny condition-false (403): DELETE /api/v1/users/7")
    assert 'false    "admin" in principal.roles' in text and 'principal.roles = ["user"]' in text
    line = 1 + next(n for n, line in enumerate(small.policy.read_text().splitlines()) if '"when"' in line)
    assert f"routes[0].require.when  {small.policy}:{line}:" in text
    members = json.loads(mitmgate(*explain, "--format", "json", "DELETE", "/api/v1/users/7"))
    stages = {stage["stage"]: stage for stage in members["stages"]}
    assert stages["authorization"]["failing"][0]["predicate"] == 'request.method != "DELETE"'
    assert members["decision"] == "deny condition-false"
    admitted = json.loads(mitmgate(*explain, "--format", "json", "GET", "/api/v1/users/7?token=abcdef"))
    assert admitted["decision"] == "admit" and "abcdef" not in json.dumps(admitted)


def test_explain_a_real_token(small: Corpus) -> None:
    explain = ("explain", "--policy", small.policy, "--token", mint(), "GET", "/api/v1/users/7")
    assert mitmgate(*explain, MITMGATE_TEST_SECRET=SECRET).startswith("admit (200)")
    assert mitmgate(*explain, MITMGATE_TEST_SECRET=SECRET + "!").startswith("deny token-signature-invalid")
    assert mitmgate(*explain).startswith("deny keys-unavailable"), "without the secret nothing is taken for good"
    bound = ("explain", "--policy", small.policy, "--token", mint(cnf={"jkt": "x"}), "GET", "/api/v1/users/7")
    assert mitmgate(*bound, MITMGATE_TEST_SECRET=SECRET).startswith("deny token-proof-unsupported")
    assert mitmgate(*explain, "--assume-signed").startswith("admit (200)")
    old = ("explain", "--policy", small.policy, "--token", mint(lifetime=-100), "GET", "/api/v1/users/7")
    told = mitmgate(*old, MITMGATE_TEST_SECRET=SECRET)
    assert re.search(r"a fresh token: this one expired [1-9]\d\d s before the request", told), told


def test_explain_a_recorded_request_with_the_limits_of_its_time(small: Corpus) -> None:
    mutant = small.mutated("explained", lambda made: made["rate_limits"]["per-user"].update(limit=4))
    report = json.loads(mitmgate("replay", small.path, "--policy", mutant, "--format", "json", expect=1))
    identity = report["differences"]["groups"][0]["examples"][0]
    text = mitmgate("explain", "--policy", mutant, "--flow", f"{small.path}#{identity[:13]}")
    assert text.startswith("deny quota-exceeded (429): GET /limited/x")
    assert re.search(r"change +wait \d+\.\d+ s, or raise per-user \(4 in any 600 s\)", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("replay", "{policy}", "--policy", "{policy}"), "starts like JSON, and is no HAR"),
        (("replay", "/nowhere.mitm", "--policy", "{policy}"), "no such file"),
        (("replay", "{traffic}", "--policy", "/nowhere.yaml"), "can't be read"),
        (
            ("replay", "{traffic}", "--policy", "{policy}", "--what-if", "per-usr.limit=5"),
            "did you mean per-user.limit?",
        ),
        (
            ("replay", "{traffic}", "--policy", "{policy}", "--what-if", "per-user.limit=0"),
            "rate_limits.per-user.limit",
        ),
        (("replay", "{traffic}", "--policy", "{policy}", "--plot", "x.svg"), "only with --what-if"),
        (("replay", "{traffic}", "--policy", "{policy}", "--jwks", "corp"), "must be NAME=FILE"),
        (("explain", "--policy", "{policy}"), "give METHOD and URL"),
        (("explain", "--policy", "{policy}", "--claims", "[]", "GET", "/"), "must be a JSON object"),
        (("explain", "--policy", "{policy}", "--flow", "{traffic}#nothing"), "has no request nothing"),
        (("explain", "--policy", "{policy}", "GET", "ftp://x"), "http://"),
        (("redact", "{traffic}", "/nowhere/out.mitm"), "no such file"),
        (("learn", "/nowhere.mitm"), "no such file"),
    ],
)
def test_a_users_mistake_is_one_sentence(small: Corpus, arguments: tuple[str, ...], message: str) -> None:
    filled = [each.format(policy=small.policy, traffic=small.path) for each in arguments]
    assert message in mitmgate(*filled, expect=2)


def later(raw: bytes, seconds: int) -> bytes:
    """Move a recorded flow in time, in place."""
    span = tnetstring.span_of(raw)
    for key in (b"metadata", b"mitmgate", b"now"):
        found = tnetstring.find(raw, span, key)
        assert found is not None
        span = found
    at, end, _ = span
    whole = raw[at:end].partition(b".")[0]
    new = b"%d" % (int(whole) + seconds)
    moved = raw[:at] + new + raw[at + len(whole) :]
    assert moved.count(b'"at":' + whole) == 1, "the front says it too"
    return moved.replace(b'"at":' + whole, b'"at":' + new)


MEASURE = """
import resource, sys, time
from mitmgate.cli import main
status = main(["replay", sys.argv[1], "--policy", sys.argv[2], "--format", "json", "--fail-on", "none"])
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_maxrss, time.process_time(), status, file=sys.stderr)
"""


def test_memory_is_flat_and_the_speed_is_that_of_the_chain(small: Corpus, tmp_path: Path) -> None:
    """Ten times the recording takes no more memory. The bar of 5,000 decisions a second is measured by bench/."""
    large = tmp_path / "large.mitm"
    with small.path.open("rb") as source, large.open("wb") as target:
        records = iter(lambda: tnetstring.read_record(source), None)
        flows = list(records)
        for copy in range(10):
            target.writelines(later(raw, copy * 90) for raw in flows)
    measured = []
    for path in (small.path, large):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path), str(small.policy)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "addons")},
            capture_output=True,
            text=True,
            check=True,
        )
        decided = json.loads(done.stdout)["decided"]
        kilobytes, seconds, status = done.stderr.split()[-3:]
        assert status == "0"
        measured.append((decided, int(kilobytes) / 1024, float(seconds)))
    (small_count, first, begun), (many, second, ended) = measured
    assert (small_count, many) == (2_000, 20_000)
    assert second - first < 12, f"{first:.0f} MB for {small_count:,} requests, {second:.0f} MB for {many:,}"
    speed = (many - small_count) / (ended - begun)
    print(f"{speed:.0f} decisions a second of CPU; {first:.0f} and {second:.0f} MB")
    assert speed > 2500, f"{speed:.0f} decisions a second of CPU"
