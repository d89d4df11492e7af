"""`mitmgate top`: what an operator sees at a terminal, of a real gateway."""

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from rich.cells import cell_len

from mitmgate.top_command import MOST, Seen, frame
from tests.admin.asking import AdminGateway
from tests.live.harness import ROOT, mint, policy
from tests.live.harness_http import free_port
from tests.live.harness_upstream import PATIENCE, RecordingUpstream, Reply

SECRET = "an operator's secret of 32 bytes!"
TOP = [sys.executable, "-m", "mitmgate", "top"]
HOSTILE = "\x1b[31mred\u202e" + "w" * 300


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator["SecretGateway"]:
    """A gateway that shows its status for a secret, with an open circuit, someone at a limit, and denials."""
    directory = tmp_path_factory.mktemp("top")
    with RecordingUpstream(Reply(500)) as upstream:
        made = policy(directory, upstream)
        made["rate_limits"]["per-user"]["limit"] = 1
        made["upstreams"]["users"]["circuit"] = {"failures": 2, "window": "60s", "open_for": "600s", "probes": 1}
        with SecretGateway(directory, made, environment={"MITMGATE_TOP": SECRET}) as running:
            for name in ("alice", "bob", "carol"):
                running.get("/api/v1/users/7", token=mint(name))
            assert running.get("/api/v1/users/7", token=mint("alice")).status == 429
            assert running.get("/api/v1/users/8", token=mint("mallory", scope="orders.read")).status == 403
            yield running


class SecretGateway(AdminGateway):
    def with_admin(self, made: dict[str, Any]) -> dict[str, Any]:
        return {**made, "admin": {"port": self.admin_port, "token_env": "MITMGATE_TOP"}}

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"


def environment(**more: str) -> dict[str, str]:
    made = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TOP": SECRET, "TERM": "xterm", **more}
    return {name: value for name, value in made.items() if name not in {"COLUMNS", "LINES"} or name in more}


def once(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TOP, "--once", *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 60), (40, 8)])
def test_one_frame_says_what_is_wrong_and_fits(gateway: SecretGateway, columns: int, rows: int) -> None:
    done = once(gateway.admin_url, "--token-env", "MITMGATE_TOP", COLUMNS=str(columns), LINES=str(rows))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < rows
    assert all(cell_len(line) <= columns for line in lines)
    assert lines[0].startswith(f"✕ Degraded  127.0.0.1:{gateway.admin_port}")
    assert "✕ Circuit open: users" in done.stdout
    if rows < 24:
        return
    for told in ("✕ open  users http://", "opened", "status 500", "● closed  orders", "per-user (1 in 1 min)", "● dev"):
        assert told in done.stdout, done.stdout
    for told in ("Requests  ", "Latency   ", "Store     ● counts", "429 quota-exceeded  GET /api/v1/users/7  alice"):
        assert told in done.stdout, done.stdout
    assert "403 scope-missing  GET /api/v1/users/8  mallory" in done.stdout


def test_several_listeners_and_one_that_is_away(gateway: SecretGateway) -> None:
    away = f"127.0.0.1:{free_port()}"
    done = once(gateway.admin_url, away, "--token-env", "MITMGATE_TOP")
    assert done.returncode == 1
    assert f"✕ {away}  away: connection refused" in done.stdout
    assert f"127.0.0.1:{gateway.admin_port}  users http://" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "more", "said"),
    [
        ((), {}, "wants a token: --token-env NAME"),
        (("--token-env", "WRONG"), {"WRONG": "x" * 32}, "does not take the token in WRONG"),
    ],
)
def test_the_secret_is_asked_for(
    gateway: SecretGateway, arguments: tuple[str, ...], more: Mapping[str, str], said: str
) -> None:
    done = once(gateway.admin_url, *arguments, **more)
    assert (done.returncode, said in done.stdout) == (1, True), done.stdout


def test_what_is_no_admin_listener_is_said(gateway: SecretGateway) -> None:
    with RecordingUpstream(Reply(body=b"data: {}\n\n", headers=(("Content-Type", "text/event-stream"),))) as other:
        done = once(other.url, COLUMNS="120")
    assert done.returncode == 1
    assert "what answers there is no admin listener of mitmgate" in done.stdout


@pytest.mark.parametrize("status", [200, 503])
def test_one_that_nests_without_end_is_none(status: int) -> None:
    body = b"data: " * (status == 200) + b"[" * 60_000 + b"\n\n"
    with RecordingUpstream(Reply(status, body=body, headers=(("Content-Type", "text/event-stream"),))) as other:
        done = once(other.url, COLUMNS="120")
    assert (done.returncode, done.stderr) == (1, "")
    assert ("what answers there is no admin listener of mitmgate" if status == 200 else "refuses: ") in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:8090/status"], "is no address of an admin listener"),
        (["ftp://127.0.0.1"], "is no address of an admin listener"),
        (["127.0.0.1:99999"], "is no address of an admin listener"),
        (["--token-env", "NOT_THERE"], "the variable NOT_THERE has no secret"),
        ([f"127.0.0.1:{port}" for port in range(1, MOST + 2)], "are too many"),
    ],
)
def test_a_users_mistake_is_one_message(arguments: list[str], said: str) -> None:
    done = once(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_at_a_terminal_with_its_keys(gateway: SecretGateway) -> None:
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 80))
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(
            [*TOP, gateway.admin_url, "--token-env", "MITMGATE_TOP"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(),
        )
        shown = b""

        def until(text: str) -> None:
            nonlocal shown
            end = time.monotonic() + PATIENCE
            while text.encode() not in shown:
                assert time.monotonic() < end, shown[-3000:]
                if select.select([ours], [], [], 0.2)[0]:
                    shown = (shown + os.read(ours, 1 << 16))[-(1 << 16) :]

        try:
            until("Circuit open: users")
            until("scope-missing")
            os.write(ours, b"p")
            until("paused; p goes on, q quits")
            os.write(ours, b"p")
            shown = b""
            until("p pauses, q quits")
            os.write(ours, b"q")
            end = time.monotonic() + PATIENCE
            while process.poll() is None:
                assert time.monotonic() < end
                if select.select([ours], [], [], 0.2)[0]:
                    with suppress(OSError):
                        shown += os.read(ours, 1 << 16)
            assert process.returncode == 0
            assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(ours)
        os.close(theirs)


def test_nothing_that_a_listener_says_reaches_the_terminal_as_it_is() -> None:
    row = dict.fromkeys(("time", "user", "client", "method", "path", "reason", "status", "outcome"), HOSTILE)
    row["time"] = "2026-11-30T18:00:00Z"
    status = {
        "version": HOSTILE,
        "uptime_seconds": None,
        "workers": 2,
        "connections": 3,
        "store_available": False,
        "circuits": [
            {"upstream": HOSTILE, "endpoint": HOSTILE, "state": state} for state in ("closed", None, "open") * 20
        ],
        "key_sets": [{"issuer": HOSTILE, "usable": False}],
        "audit": [{"sink": HOSTILE, "failing": True, "dropped": 0}],
        "policy": [HOSTILE],
    }
    limit = {"limit": HOSTILE, "of": 1, "window_seconds": 60.0, "who": HOSTILE, "denied": 1, "time": row["time"]}
    event = {
        "state": "degraded",
        "status": status,
        "concerns": [{"severity": "bad", "what": HOSTILE, "detail": HOSTILE}] * 20,
        "limits": [limit] * 50,
        "turned": {},
        "points": [{"rates": {HOSTILE: ["denied", 1.0]}, "latency": {name: [None, 0.1, 2.0] for name in WHERE}}],
        "denials": [row] * 500,
    }
    all_seen = [Seen(f"http://127.0.0.1:{port}") for port in (1, 2, 3)]
    for seen in all_seen:
        seen.take(event)
        assert len(seen.denials) == 200
    for name, broken in (("denials", [{}, *[row] * 199]), ("limits", [*[limit] * 4, {"time": ""}])):
        with pytest.raises(KeyError):  # not later, by the thread that draws, of a higher terminal
            all_seen[0].take({**event, name: broken})
    for width in (20, 80, 300):
        for height in (2, 10, 24, 100):
            lines = frame(all_seen, width, height, 0.0)
            assert len(lines) <= height
            for line in lines:
                assert line.plain.isprintable()
                assert cell_len(line.plain) <= width
    assert "✕ open" in "\n".join(line.plain for line in frame(all_seen, 300, 100, 0.0)), "the worst come first"


WHERE = ("gateway", "upstream", "whole")
