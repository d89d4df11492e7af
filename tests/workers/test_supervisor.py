"""The supervisor: what it does about workers that crash, and what becomes of workers without it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from mitmgate.host import child
from mitmgate.host.child import Child, start_child
from mitmgate.host.slot import Slot, bind, pause
from mitmgate.usage import UserError
from tests.live.harness import Gateway, policy, policy_file, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.workers.processes import NotifySocket, children, events, workers
from tests.workers.test_drain import refuses


def test_a_worker_that_can_not_start(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """New code or a policy that does not start: the old worker stays; without one, restarts come slower and slower."""
    path = policy_file(tmp_path, upstream)
    good = path.read_text()
    with Gateway(path, arguments=("--workers", "1")) as gateway:
        (before,) = workers(gateway, 1)
        path.write_text("version: 1\nroutes: []\n")
        gateway.process.send_signal(signal.SIGUSR2)
        wait_for(lambda: "the old one stays, the restart ends" in gateway.log, "the failure to be told")
        assert children(gateway.process.pid) == [before]
        assert gateway.get("/public").status == 200
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: gateway.log.count("is started again in") >= 2, "two pauses")
        assert gateway.process.poll() is None
        path.write_text(good)
        # Sent while nobody works: it waits in the socket's queue, and is answered.
        assert gateway.get("/public").status == 200
        audit = tmp_path / "audit.jsonl"
        wait_for(lambda: any(event["event"] == "worker-lost" for event in events(audit)), "the record of the crash")
        assert [event["pid"] for event in events(audit) if event["event"] == "worker-lost"] == [before]


def test_a_policy_that_does_not_start_ends_the_supervisor(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """What keeps the first worker from starting is said once, and is the exit status."""
    made = policy(tmp_path, upstream, audit={"sinks": [{"file": "/proc/nobody/audit.jsonl"}]})
    gateway = Gateway(write_policy(tmp_path, made), arguments=("--workers", "1"))
    with pytest.raises(AssertionError, match="ended with status 2"):
        gateway.start()
    assert gateway.log.count("audit.jsonl can't be written") == 1
    assert "Traceback" not in gateway.log


def test_what_the_service_manager_is_told_and_the_end_of_the_supervisor(
    tmp_path: Path, upstream: RecordingUpstream
) -> None:
    path = policy_file(tmp_path, upstream)
    with NotifySocket(str(tmp_path / "notify")) as manager:
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
        gateway = Gateway(path, arguments=("--workers", "1"), environment=environment).start()
        try:
            (ready,) = manager.wait("READY")
            assert ready == {"READY": "1", "STATUS": "1 of 1 workers are ready"}
            manager.wait("WATCHDOG", 3)
            gateway.process.send_signal(signal.SIGHUP)
            (reloading,) = manager.wait("RELOADING")
            assert reloading["MONOTONIC_USEC"].isdecimal()
            gateway.process.send_signal(signal.SIGHUP)  # also while the first is under way: the file may have changed
            manager.wait("RELOADING", 2)
            manager.wait("READY", 3)
            (worker,) = workers(gateway, 1)
            gateway.process.kill()
            gateway.process.wait(10)
            wait_for(lambda: refuses(gateway.port), "the worker to accept no more")
            wait_for(lambda: not Path(f"/proc/{worker}").exists(), "the worker's end")
        finally:
            gateway.kill()
    assert events(tmp_path / "audit.jsonl")[-1]["event"] == "gateway-stopped"


def test_a_single_process_tells_the_service_manager(tmp_path: Path, upstream: RecordingUpstream) -> None:
    path = policy_file(tmp_path, upstream)
    with NotifySocket(f"@mitmgate-test-{os.getpid()}") as manager:
        with Gateway(path, environment={"NOTIFY_SOCKET": manager.address}) as gateway:
            (ready,) = manager.wait("READY")
            assert ready["STATUS"].startswith("serving with policy ")
            gateway.process.send_signal(signal.SIGHUP)
            manager.wait("RELOADING")
            manager.wait("READY", 2)
        assert [message["STOPPING"] for message in manager.wait("STOPPING")] == ["1"]
        assert manager.all("WATCHDOG") == []  # it was not asked for


def test_pauses_grow_up_to_a_bound() -> None:
    assert pause(1, 1.0) == 0.0
    assert [pause(failures, 1.0) for failures in range(2, 10)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [pause(failures, 0.0) for failures in (2, 3, 1000)] == [0.25, 0.5, 15.0]


def test_a_worker_that_ran_well_is_replaced_at_once() -> None:
    with bind("127.0.0.1", 0, shared=True) as listening:
        slot = Slot(0, listening)
        assert [slot.failed(0.1) > 0 for _ in range(3)] == [False, True, True]
        assert slot.failed(60.0) == 0.0


def test_an_empty_slot_gets_no_clients() -> None:
    first = Slot(0, bind("127.0.0.1", 0, shared=True))
    address = first.listening.getsockname()
    with bind(*address, shared=True) as other:
        first.listening.listen()
        other.listen()
        first.renew()
        other.settimeout(5)
        for _ in range(16):
            with socket.create_connection(address, timeout=5):
                other.accept()[0].close()
        first.listening.close()


def test_an_address_that_is_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"can't listen on 127\.0\.0\.1"),
    ):
        bind(*taken.getsockname(), shared=True)


def with_worker(script: str, test: Callable[[Child], Coroutine[None, None, None]]) -> None:
    """Run a test with a process in a worker's place. The script finds its end of the link as `link`."""
    prologue = "import socket, sys, time; link = socket.socket(fileno=int(sys.argv[-1].split(':')[2]))\n"

    async def run() -> None:
        with bind("127.0.0.1", 0, shared=False) as listening:
            started = await start_child(0, listening, [sys.executable, "-c", prologue + script])
            try:
                await test(started)
            finally:
                started.kill()
                await started.ended()
                started.figures.close()

    asyncio.run(run())


def test_a_worker_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SILENCE", 0.4)

    async def hangs(started: Child) -> None:
        watch = asyncio.create_task(started.ended())
        assert await started.started()
        assert await asyncio.wait_for(watch, 10) == -signal.SIGKILL

    with_worker("link.sendall(b'ready\\n'); time.sleep(60)", hangs)


def test_a_worker_that_is_never_ready_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_PATIENCE", 0.4)

    async def never(started: Child) -> None:
        assert not await started.started()
        assert await asyncio.wait_for(started.ended(), 10) == -signal.SIGKILL

    with_worker("time.sleep(60)", never)


def test_nonsense_from_a_worker_does_no_harm() -> None:
    async def babbles(started: Child) -> None:
        watch = asyncio.create_task(started.ended())
        assert await started.started()
        assert not await started.reload(0.2)
        started.report_lost(1, "signal 9")
        assert await asyncio.wait_for(watch, 10) == 7

    with_worker("link.sendall(b'ready\\n\\xff\\x00\\nbeat\\n' + b'x' * 300_000); time.sleep(0.5); sys.exit(7)", babbles)


def test_a_worker_option_that_nobody_should_write(tmp_path: Path, upstream: RecordingUpstream) -> None:
    gateway = Gateway(policy_file(tmp_path, upstream), arguments=("--worker", "mine"))
    with pytest.raises(AssertionError, match="ended with status 2"):
        gateway.start()
    assert "Traceback" not in gateway.log
