"""A user's mistake: exit status 2, one readable message on stderr that says where, and no traceback."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import ROOT, SECRET, Gateway, policy, write_policy

Change = Callable[[dict[str, Any]], None]


def start(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "MITMGATE_TEST_SECRET": SECRET, **environment}
    command = [sys.executable, "-m", "mitmgate", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=surroundings)


def assert_mistake(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for text in expected:
        assert text in done.stderr


def keys(made: dict[str, Any], **source: str) -> None:
    made["identity"]["issuers"]["dev"]["keys"] = source


CHANGES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "unknown member": (lambda made: made["routes"][0].update(upstrem="users"), ("upstrem", "upstream")),
    "dangling upstream": (lambda made: made["routes"][0].update(upstream="usres"), ("usres", "users")),
    "unset variable": (lambda made: keys(made, secret_env="MITMGATE_NOT_SET"), ("MITMGATE_NOT_SET",)),
    "unreadable key file": (lambda made: keys(made, secret_file="missing.key"), ("missing.key",)),
}


@pytest.mark.parametrize("host", ["serve", "web"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_policy(tmp_path: Path, name: str, host: str) -> None:
    change, expected = CHANGES[name]
    made = policy(tmp_path, "http://127.0.0.1:9")
    change(made)
    path = write_policy(tmp_path, made)
    assert_mistake(start(host, "--policy", str(path)), "policy.yaml:", *expected)


@pytest.mark.parametrize("word", ["record", "file", "spill"])
def test_a_pipe_in_the_place_of_what_is_written(tmp_path: Path, word: str) -> None:
    """Nobody reads it: a process that waits for that would neither start nor say why."""
    pipe = tmp_path / "a pipe"
    os.mkfifo(pipe)
    made, arguments = policy(tmp_path, "http://127.0.0.1:9"), []
    if word == "record":
        arguments = ["--record", str(pipe)]
    elif word == "file":
        made["audit"]["sinks"] = [{"file": str(pipe)}]
    else:
        made["store"] = {"url": "redis://127.0.0.1:9/0"}
        made["audit"]["sinks"] = [{"redis_stream": "audit", "spill": str(pipe)}]
    assert_mistake(start("serve", "--policy", str(write_policy(tmp_path, made)), *arguments), "a pipe")


def test_a_secret_under_256_bits(tmp_path: Path) -> None:
    path = write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9"))
    assert_mistake(start("serve", "--policy", str(path), MITMGATE_TEST_SECRET="short"), "256", "MITMGATE_TEST_SECRET")


def test_a_duplicate_key(tmp_path: Path) -> None:
    path = write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9"))
    path.write_text(json.dumps(json.loads(path.read_text()))[:-1] + ', "version": 1}')
    assert_mistake(start("serve", "--policy", str(path)), "policy.yaml:", "version")


def test_no_such_policy(tmp_path: Path) -> None:
    for host in ("serve", "web"):
        assert_mistake(start(host, "--policy", str(tmp_path / "none.yaml")), "none.yaml")


def test_an_echo_service_on_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_mistake(start("echo", "--port", str(port)), f"127.0.0.1:{port}", "in use")


def test_a_port_in_use(tmp_path: Path) -> None:
    path = write_policy(tmp_path, policy(tmp_path, "http://127.0.0.1:9"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_mistake(start("serve", "--policy", str(path), "--listen", f"127.0.0.1:{port}"), str(port), "in use")


def test_an_admin_port_in_use_in_stock_mitmproxy_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made = policy(tmp_path, "http://127.0.0.1:9001", admin={"port": taken.getsockname()[1]})
        stock = Gateway(write_policy(tmp_path, made), host="stock")
        surroundings = {**os.environ, "MITMGATE_TEST_SECRET": SECRET}
        done = subprocess.run(
            stock.command, capture_output=True, text=True, timeout=60, check=False, env=surroundings, cwd=tmp_path
        )
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert told.count("the admin listener can't listen on 127.0.0.1:") == 1
    assert "RecursionError" not in told
    assert len(told) < 10_000, "it was 600 KB; a thread that logs while mitmproxy ends may leave a traceback of its own"
