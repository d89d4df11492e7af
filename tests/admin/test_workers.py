"""Real worker processes report to their supervisor over socket pairs, end, and leave their totals behind."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mitmgate.admin.readiness import Condition
from mitmgate.admin.report import Report
from mitmgate.admin.workers import Workers
from tests.admin.figures import exported, value
from tests.live.harness import ROOT

OK = {"route": "users", "method": "GET", "status": "200", "reason": "ok"}

WORKER = """
import asyncio, signal, socket, sys
from mitmgate.admin.workers import Reporter
from tests.admin.figures import worker

async def run():
    count, stopped = int(sys.argv[2]), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    asked = 0
    def snapshot():
        nonlocal asked
        asked += 1
        return worker(count * asked)
    reporter = Reporter(socket.socket(fileno=int(sys.argv[1])), snapshot)
    await reporter.start()
    print("started", flush=True)
    await stopped.wait()
    await reporter.close()

asyncio.run(run())
"""
"""Counts COUNT requests more each time it is asked; on SIGTERM it counts once more, and says so."""


def spawned(link: socket.socket, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(link.fileno()), str(count)],
        pass_fds=[link.fileno()],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'addons'}{os.pathsep}{ROOT}"},
    )


@asynccontextmanager
async def started(workers: Workers, count: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    here, there = socket.socketpair()
    process = spawned(there, count)
    there.close()
    assert process.stdout is not None
    try:
        assert await asyncio.to_thread(process.stdout.readline) == b"started\n"
        await workers.add(process.pid, here)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def requests(report: Report) -> float:
    return value(exported(report), "mitmgate_requests_total", **OK)


def test_workers_are_asked_and_added() -> None:
    async def run() -> None:
        workers = Workers()
        async with started(workers, 10) as one, started(workers, 100) as other:
            report = await workers.report()
            assert requests(report) == 110
            assert report.readiness == ()
            assert value(exported(report), "mitmgate_workers") == 2
            assert requests(await workers.report()) == 220
            for process in (one, other):
                process.terminate()
                await asyncio.to_thread(process.wait)
                await workers.remove(process.pid)
            report = await workers.report()
            assert requests(report) == 330, "each counted once more before it ended"
            assert report.readiness[0].condition is Condition.WORKERS

    asyncio.run(run())


def test_totals_do_not_fall_when_a_worker_is_killed_and_replaced() -> None:
    async def run() -> None:
        workers = Workers()
        async with started(workers, 10) as one:
            assert requests(await workers.report()) == 10
            one.kill()
            await asyncio.to_thread(one.wait)
            assert requests(await workers.report()) == 10, "before the supervisor knows"
            await workers.remove(one.pid)
            assert requests(await workers.report()) == 10
        async with started(workers, 100) as other:
            assert requests(await workers.report()) == 110
            await workers.remove(other.pid)

    asyncio.run(run())


def test_totals_do_not_fall_while_leave_is_taken() -> None:
    async def run() -> None:
        workers = Workers()
        async with started(workers, 10) as one:
            seen = [requests(await workers.report())]
            leaving = asyncio.create_task(workers.remove(one.pid))  # it lives: its end is waited for
            while not leaving.done():
                seen.append(requests(await workers.report()))
                await asyncio.sleep(0.01)
            one.kill()
            seen.append(requests(await workers.report()))
            assert seen == sorted(seen)
            assert len(seen) > 2

    asyncio.run(run())


def test_a_worker_that_hangs_is_not_ready_and_holds_nobody_up() -> None:
    async def run() -> None:
        workers = Workers()
        async with started(workers, 10) as one, started(workers, 100) as other:
            assert requests(await workers.report()) == 110
            one.send_signal(signal.SIGSTOP)
            report = await workers.report()
            assert requests(report) == 210
            assert report.readiness == (), "the other one is ready"
            other.send_signal(signal.SIGSTOP)
            (missing,) = (await workers.report()).readiness
            assert missing.condition is Condition.WORKERS
            for process in (one, other):
                process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                while (await workers.report()).readiness:  # noqa: ASYNC110 - until they have said what was asked
                    await asyncio.sleep(0.01)
            for process in (one, other):
                process.kill()
                await workers.remove(process.pid)

    asyncio.run(run())


def test_a_worker_that_hangs_is_asked_once_until_it_says_something() -> None:
    """Pages take turns: each would have waited for it anew, and the last of many for them all."""

    async def run() -> None:
        workers = Workers()
        here, there = socket.socketpair()
        with there:
            await workers.add(1, here)
            for _ in range(3):
                await workers.report()
            assert there.recv(100) == b"?"
        await workers.remove(1)

    asyncio.run(run())


def test_what_can_t_be_read_takes_nothing_s_place() -> None:
    async def run() -> None:
        workers = Workers()
        here, there = socket.socketpair()
        await workers.add(1, here)
        there.sendall((3).to_bytes(4, "big") + b"xyz")
        report = await workers.report()
        assert report.readiness[0].condition is Condition.WORKERS
        await workers.remove(1)
        there.close()

    asyncio.run(run())
