"""What fails while a worker is killed, a policy or the code is loaded anew, under an open-loop load."""

import http.client
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import policy
from bench.finding import Finding
from bench.load import Ask, generator
from bench.paced import Plan
from bench.policy import Parts
from bench.processes import Process, StartError, links, queued
from bench.rig import Rig
from bench.subjects import READY, serve

SHARE = 0.4  # of the saturation that is seen first: busy, and yet with room for what is lost meanwhile
MOST = 1000.0  # requests a second
CONNECTIONS = 32
CLOSE_EVERY = 4  # a quarter of the requests ask to close, so that new connections are made all the time
PATIENCE = 60.0  # seconds, for a worker to be back
DRAIN = 30.0  # seconds that the last answers may take: who waits for a new worker is late, not lost
MARK = "X-Bench-Version"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway, and the directory of its policy."""

    process: Process
    directory: Path
    parts: Parts

    def workers(self) -> list[int]:
        """Return the processes below the first one that hold connections on the port."""
        return [pid for pid in self.process.tree()[1:] if _holds(pid, self.process.port)]


def _holds(pid: int, port: int) -> bool:
    try:
        return bool(links(pid, port))
    except (FileNotFoundError, ProcessLookupError):
        return False


def worker_killed(rig: Rig, seconds: int) -> Finding:
    """Kill one of two workers again and again. What it held may fail, at most once each; nothing else."""
    held: set[int] = set()
    killed = 0

    def kill(gateway: Gateway) -> None:
        nonlocal killed
        workers = gateway.workers()
        if not workers:
            return
        os.kill(workers[0], signal.SIGSTOP)  # so that what it holds stays as it is while it is read
        held.update(links(workers[0], gateway.process.port) | queued(gateway.process.port))
        os.kill(workers[0], signal.SIGKILL)
        killed += 1

    what = "kill -9 of one of 2 workers"
    bar = "only what it held fails, and it is started again"

    def judge(gateway: Gateway, told: dict[str, Any]) -> Finding:
        others = [(kind, local) for _, kind, local in told["failures"] if local not in held]
        mine = len(told["failures"]) - len(others)
        back = _within(lambda: _serving(gateway) and len(gateway.process.tree()) > 2)
        seen = f"{killed} killed with {len(held)} connections: {mine} requests failed on them, {len(others)} others"
        seen += f" ({_kinds(others)})" if others else ""
        seen += f", of {told['requests']:,}, worst latency {told['worst']:,.0f} ms"
        seen += "" if back else "; not started again"
        return Finding(f"{what}, {told['rate']:.0f} requests/s", seen, bar, killed > 0 and not others and back)

    return _under_load(rig, 2, seconds, kill, judge, what, bar)


def policy_reloaded(rig: Rig, seconds: int, workers: int = 2) -> Finding:
    """Change the policy and send SIGHUP again and again: no request fails, and the last version is in force."""
    version = 0

    def reload(gateway: Gateway) -> None:
        nonlocal version
        version += 1
        made = policy.document(rig.upstream.port, gateway.parts)
        made["response_headers"]["set"][MARK] = str(version)
        path = gateway.directory / "new.yaml"
        path.write_text(json.dumps(made))
        path.rename(gateway.directory / "policy.yaml")
        gateway.process.signal(signal.SIGHUP)

    what, bar = f"policy reloaded (SIGHUP), {workers} {'worker' if workers == 1 else 'workers'}", "0 failed, in force"

    def judge(gateway: Gateway, told: dict[str, Any]) -> Finding:
        # Twenty fresh connections: every worker is asked.
        forced = _within(lambda: all(_version(gateway) == str(version) for _ in range(20)))
        seen = f"{version} reloads: {_failed(told)}" + ("" if forced else "; the last version is not in force")
        passed = version > 0 and forced and not told["failures"]
        return Finding(f"{what}, {told['rate']:.0f} requests/s", seen, bar, passed)

    return _under_load(rig, workers, seconds, reload, judge, what, bar)


def code_reloaded(rig: Rig, seconds: int) -> Finding:
    """Send SIGUSR2 again and again: no request fails, and every worker is another process afterwards."""
    first: set[int] = set()
    sent = 0

    def reload(gateway: Gateway) -> None:
        nonlocal sent
        if not sent:
            first.update(gateway.workers())
        gateway.process.signal(signal.SIGUSR2)
        sent += 1

    what, bar = "code reloaded (SIGUSR2), 2 workers", "0 failed, every worker replaced"

    def judge(gateway: Gateway, told: dict[str, Any]) -> Finding:
        replaced = _within(lambda: not first & set(gateway.process.tree()))
        serving = _within(lambda: _serving(gateway))
        seen = f"{sent} reloads: {_failed(told)}" + ("" if replaced else "; old workers are still there")
        seen += "" if serving else "; it does not serve any more"
        passed = sent > 0 and bool(first) and replaced and serving and not told["failures"]
        return Finding(f"{what}, {told['rate']:.0f} requests/s", seen, bar, passed)

    return _under_load(rig, 2, seconds, reload, judge, what, bar, every=max(2.0, seconds / 4))


def _under_load(
    rig: Rig,
    workers: int,
    seconds: int,
    incident: Callable[[Gateway], None],
    judge: Callable[[Gateway, dict[str, Any]], Finding],
    what: str,
    bar: str,
    every: float | None = None,
) -> Finding:
    """Run a gateway and a load on it; let the incident happen about four times meanwhile; judge what was seen."""
    every = every or max(1.0, seconds / 5)
    parts = Parts(store=rig.redis_url) if workers > 1 else Parts()
    places: list[Path] = []

    def command(directory: Path, port: int) -> list[str]:
        places.append(directory)
        return serve(rig.upstream.port, parts, workers)(directory, port)

    try:
        cores = rig.cores.pair if workers > 1 else rig.cores.subject
        with rig.running(command, cores, READY) as process:
            gateway = Gateway(process, places[0], parts)
            ask = Ask(policy.PATH, bearers=(policy.bearer(),))
            rate = min(MOST, SHARE * rig.saturate(process, ask, 1).requests_per_second)
            plan = Plan(process.port, rate, seconds, CONNECTIONS, ask.requests(), CLOSE_EVERY, DRAIN)
            running = generator(plan, rig.cores.load)
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0.2:
                time.sleep(min(every, left))
                if time.monotonic() < end - 0.2:
                    incident(gateway)
            out, err = running.communicate(timeout=seconds + 90)
            if running.returncode:
                return Finding(what, f"the load generator failed: {err.strip()[-200:]}", bar, None)
            return judge(gateway, json.loads(out) | {"rate": rate})
    except StartError as error:
        return Finding(what, error.last_word, bar, None)
    except (ProcessLookupError, ConnectionError) as error:
        return Finding(what, f"the gateway is gone ({error})", bar, False)


def _failed(told: dict[str, Any]) -> str:
    kinds = f" ({', '.join(f'{kind}: {count}' for kind, count in told['kinds'].items())})" if told["kinds"] else ""
    failed = sum(told["kinds"].values())
    return f"{failed} failed of {told['requests']:,}{kinds}, worst latency {told['worst']:,.0f} ms"


def _kinds(failures: list[tuple[str, int]]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in Counter(kind for kind, _ in failures).items())


def _get(gateway: Gateway) -> http.client.HTTPResponse:
    link = http.client.HTTPConnection("127.0.0.1", gateway.process.port, timeout=5)
    try:
        link.request("GET", policy.PATH, headers={"Authorization": policy.bearer()})
        response = link.getresponse()
        response.read()
        return response
    finally:
        link.close()


def _version(gateway: Gateway) -> str | None:
    return _get(gateway).headers.get(MARK)


def _serving(gateway: Gateway) -> bool:
    return _get(gateway).status == 200


def _within(condition: Callable[[], bool]) -> bool:
    """Say whether a condition comes true before patience ends. A connection that is refused says no."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    return False
