"""Signals: no other than SIGTERM, SIGINT and SIGQUIT ends a process of the gateway; what means nothing is logged."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import Front, Gateway, policy_file
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.workers.processes import children, events, workers

PROCESSES: dict[str, tuple[Front, tuple[str, ...]]] = {
    "single": ("serve", ()),
    "supervisor": ("serve", ("--workers", "1")),
    "worker": ("serve", ("--workers", "1")),
    "web": ("web", ()),
}
CRASHES = {"SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGSYS", "SIGKILL", "SIGSTOP", "SIGTSTP"}
GOES_ON = {"SIGCONT"}  # with which the kernel drops SIGTTIN and SIGTTOU that wait
SILENT = {"SIGCHLD", "SIGURG", "SIGPIPE", "SIGXFSZ"}
MEANT = {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"}
NAMES = {member.name for member in signal.Signals} - CRASHES - GOES_ON - MEANT


@pytest.fixture(params=PROCESSES)
def running(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: RecordingUpstream
) -> Iterator[tuple[Gateway, int]]:
    """Run a gateway; yields it with the process that signals go to."""
    host, arguments = PROCESSES[request.param]
    with Gateway(policy_file(tmp_path, upstream), host=host, arguments=arguments) as gateway:
        (process,) = workers(gateway, 1) if request.param == "worker" else [gateway.process.pid]
        yield gateway, process


def test_what_has_no_meaning_is_ignored_and_logged(running: tuple[Gateway, int]) -> None:
    gateway, process = running
    supervised = children(gateway.process.pid)
    restarts = "SIGUSR2" if supervised and process == gateway.process.pid else ""
    names = NAMES - {restarts}
    for name in names:
        os.kill(process, signal.Signals[name])
    assert gateway.get("/public").status == 200
    assert gateway.process.poll() is None
    assert children(gateway.process.pid) == supervised
    for name in names - SILENT:
        wait_for(lambda name=name: f"{name} is ignored" in gateway.log, f"the word on {name}")  # type: ignore[misc]
    os.kill(gateway.process.pid, signal.SIGQUIT)
    assert gateway.process.wait(20) == 0
    kinds = [event["event"] for event in events(gateway.policy_path.with_name("audit.jsonl"))]
    assert kinds == ["gateway-started", "request", "gateway-stopped"]


@pytest.mark.parametrize("host", ["serve", "web"])
def test_signals_to_a_process_that_starts_wait(tmp_path: Path, upstream: RecordingUpstream, host: Front) -> None:
    """Also SIGHUP, for which most programs at their start have no ear: the policy is loaded again once it can be."""
    gateway = Gateway(policy_file(tmp_path, upstream), host=host)
    gateway.launch()
    try:
        wait_for(lambda: blocks(gateway.process.pid, signal.SIGUSR1), "the process to hold signals back", 60)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGALRM):
            gateway.process.send_signal(number)
        gateway.await_start()
        for text in ("SIGUSR1 is ignored", "SIGUSR2 is ignored", "SIGALRM is ignored", "is in force"):
            wait_for(lambda text=text: text in gateway.log, text)  # type: ignore[misc]
        assert gateway.get("/public").status == 200
        assert gateway.stop() == 0
    finally:
        gateway.kill()


def blocks(process: int, number: signal.Signals) -> bool:
    """Tell whether a process holds a signal back (proc(5), SigBlk)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (mask,) = (line.split()[1] for line in lines if line.startswith("SigBlk:"))
    return bool(int(mask, 16) >> (number - 1) & 1)
