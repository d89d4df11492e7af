"""`mitmgate web` as a process: its one line, a user's mistakes, and stock mitmweb with the script."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.inspect.webapi import WebApi
from tests.live.harness import ROOT, SECRET, mint, policy_file
from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mitmgate web` to its end."""
    command = [sys.executable, "-m", "mitmgate", "web", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False)


@contextmanager
def running(*command: str, directory: Path) -> Iterator[Path]:
    """Run a command until the block ends; yields the file that it writes to."""
    out = directory / "out"
    with out.open("wb") as file:
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield out
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_one_line_with_both_addresses_and_the_token(tmp_path: Path) -> None:
    listen, web = free_port(), free_port()
    policy = policy_file(tmp_path, "http://127.0.0.1:9", listen={"host": "127.0.0.1", "port": listen})
    command = (sys.executable, "-m", "mitmgate", "web", "--policy", str(policy), "--web-port", str(web))
    with running(*command, directory=tmp_path) as out:
        wait_for(lambda: re.search(r"^mitmgate web: .*\n", out.read_text(), re.MULTILINE) is not None, "the line")
        (line,) = [line for line in out.read_text().splitlines(keepends=True) if line.startswith("mitmgate web: ")]
        found = re.fullmatch(
            rf"mitmgate web: gateway on http://127\.0\.0\.1:{listen}; "
            rf"its decisions on http://127\.0\.0\.1:{web}/\?token=([0-9a-f]{{32}})\n",
            line,
        )
        assert found, line
        assert WebApi(web, found[1]).get("/state")["contentViews"]
        assert request(listen, "GET", "/api/v1/users").status == 401
        assert out.read_text().count(found[1]) == 1


@pytest.mark.parametrize("which", ["--listen", "--web-port"])
def test_a_port_in_use(tmp_path: Path, which: str) -> None:
    policy = policy_file(tmp_path, "http://127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--listen": f"127.0.0.1:{free_port()}", "--web-port": str(free_port())}
        ports[which] = f"127.0.0.1:{port}" if which == "--listen" else str(port)
        done = run("--policy", str(policy), *(word for pair in ports.items() for word in pair))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"mitmgate: can't listen on 127\.0\.0\.1:{port}: .*\n", done.stderr), done.stderr


def test_no_such_policy(tmp_path: Path) -> None:
    done = run("--policy", str(tmp_path / "none.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_stock_mitmweb_with_the_script(tmp_path: Path) -> None:
    with RecordingUpstream() as upstream:
        listen, web = free_port(), free_port()
        options = {
            "mitmgate_policy": str(policy_file(tmp_path, upstream)),
            "mitmgate_keep_flows": "3",
            "web_open_browser": "false",
            "web_port": str(web),
            "web_password": "a-password-for-tests",
            "confdir": str(tmp_path / "confdir"),
        }
        command = [str(Path(sys.executable).with_name("mitmweb")), "--mode", "reverse:http://upstream.invalid"]
        command += ["--listen-host", "127.0.0.1", "--listen-port", str(listen), "-s", "addons/gateway.py"]
        command += [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        with running(*command, directory=tmp_path) as out:
            # mitmproxy's own server listens before it loads the script, and what it accepts is closed.
            wait_for(lambda: "mitmgate is listening on" in out.read_text(), "the gateway to listen")
            wait_for(lambda: "Web server listening" in out.read_text(), "mitmweb to start")
            assert request(listen, "GET", "/api/v1/users/7", token=mint()).status == 200
            for _ in range(4):
                assert request(listen, "GET", "/api/v1/users/7").status == 401
            upstream.assert_saw_only(1)
            api = WebApi(web)
            assert api.comments == ["DENY 401 credential-missing at authentication (route users)"] * 3
            assert api.get("/options")["web_columns"]["value"][-1] == "comment"
            assert api.call("PUT", "/options", {"scripts": []})[0] == 400
            assert request(listen, "GET", "/api/v1/users/7").status == 401


def test_stock_mitmweb_refuses_to_show_itself_to_others(tmp_path: Path) -> None:
    policy = policy_file(tmp_path, "http://127.0.0.1:9")
    command = [str(Path(sys.executable).with_name("mitmweb")), "--mode", "reverse:http://upstream.invalid"]
    command += ["--listen-host", "127.0.0.1", "--listen-port", str(free_port()), "-s", "addons/gateway.py"]
    command += ["--set", f"mitmgate_policy={policy}", "--set", "web_host=0.0.0.0", "--set", "web_open_browser=false"]
    command += ["--set", f"web_port={free_port()}", "--set", f"confdir={tmp_path / 'confdir'}"]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "web_host 0.0.0.0 is not a loopback address" in done.stdout + done.stderr
