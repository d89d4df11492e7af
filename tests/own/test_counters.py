"""State of a stage of the operator's own: exact, in memory and, for all processes, in a real Redis."""

import asyncio
from pathlib import Path

import pytest

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome
from mitmgate.policy.loader import PolicyError, load, load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.policy_case import PolicyCase
from mitmgate.review import lint
from mitmgate.stages.own import own_stage
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.protocol import CounterStore
from mitmgate.stores.redis import RedisStore
from tests.live.harness_http import free_port
from tests.redis_server import RedisServer
from tests.stages.exchanges import POLICY, routed

CODE = '''"""Scanner: those who are refused again and again."""
from mitmgate.stage import Counter, Facts, Options, Reason, Stage, Step

class ScannerOptions(Options):
    refusals: int = 3
    counter: str = "refusals"
    failing: str = "deny"

class Scanner(Stage[ScannerOptions]):
    reasons = (Reason("not-php", 404, "Not here"), Reason("scanner", 429, "Too many wrong paths"))

    def counters(self):
        return (Counter("refusals", self.options.refusals, 600.0, self.options.failing),)

    def warnings(self):
        return ["nobody is that patient"] if self.options.refusals > 1000 else ()

    async def decide(self, facts: Facts) -> Step:
        if not facts.path.endswith(".php"):
            return self.admit()
        count = await facts.take(self.options.counter, str(facts.client))
        return self.deny("not-php" if count.admitted else "scanner")
'''
OPEN = """\
version: 1
upstreams: {users: {endpoints: ["http://127.0.0.1:9"]}}
stages: {scanner: {use: scanner.py:Scanner, after: routing}}
routes: [{name: all, match: {prefix: /}, upstream: users, auth: none}]
"""


def snapshot_of(directory: Path, **options: object) -> Snapshot:
    (directory / "scanner.py").write_text(CODE)
    given = ", ".join(f"{name}: {value}" for name, value in {"timeout": "1h", **options}.items())
    stages = f"stages: {{scanner: {{use: scanner.py:Scanner, after: routing, {given}}}}}\n"
    (directory / "policy.yaml").write_text(POLICY + stages)
    return load_snapshot(directory / "policy.yaml", {})


async def reasons(snapshot: Snapshot, stores: list[CounterStore], count: int) -> list[Reason]:
    """Ask as many processes as there are stores, in turns and all at once; return what each has said."""
    stages = [own_stage(snapshot.own["scanner"], store, print) for store in stores]
    made = [routed(snapshot, path="/users/a.php") for _ in range(count)]
    pending = [stages[number % len(stages)].run(exchange) for number, exchange in enumerate(made)]
    await asyncio.gather(*(one for one in pending if one is not None))
    return [exchange.verdict.steps[-1].reason for exchange in made]


def of(reason: str) -> Reason:
    found = Reason.of(reason)
    assert found is not None
    return found


def test_memory(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)
    said = asyncio.run(reasons(snapshot, [MemoryStore()], 10))
    assert said == [of("not-php")] * 3 + [of("scanner")] * 7


def test_redis_counts_for_all_processes(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path)

    async def run(url: str) -> list[Reason]:
        stores = [RedisStore(url, timeout=30.0) for _ in range(2)]
        for store in stores:
            await store.start()
        try:
            return await reasons(snapshot, [*stores], 20)
        finally:
            for store in stores:
                await store.close()

    with RedisServer(tmp_path) as server:
        said = asyncio.run(run(server.url))
    assert said.count(of("not-php")) == 3
    assert said.count(of("scanner")) == 17


@pytest.mark.parametrize(("failing", "admitted"), [("deny", 0), ("allow", 5), ("local", 3)])
def test_redis_that_is_away(tmp_path: Path, failing: str, admitted: int) -> None:
    snapshot = snapshot_of(tmp_path, failing=failing)

    async def run() -> list[Reason]:
        store = RedisStore(f"redis://127.0.0.1:{free_port()}/0")
        await store.start()
        try:
            return await reasons(snapshot, [store], 5)
        finally:
            await store.close()

    assert asyncio.run(run()).count(of("not-php")) == admitted


def test_it_is_counted_in_a_recordings_time(tmp_path: Path) -> None:
    (tmp_path / "scanner.py").write_text(CODE)
    (tmp_path / "policy.yaml").write_text(OPEN)
    policy = PolicyCase(tmp_path / "policy.yaml")
    policy.request("GET", "/a.php").times(3).is_denied("not-php")
    policy.request("GET", "/a.php").is_denied("scanner")
    policy.request("GET", "/a.php").ip("192.0.2.9").is_denied("not-php")
    policy.request("GET", "/a.html").is_admitted()
    policy.request("GET", "/a.php").after(601).is_denied("not-php")


def test_what_is_not_declared_counts_nothing(tmp_path: Path) -> None:
    snapshot = snapshot_of(tmp_path, counter="others")

    async def ask() -> tuple[Outcome, Reason]:
        exchange = routed(snapshot, path="/users/a.php")
        await (own_stage(snapshot.own["scanner"], MemoryStore(), print).run(exchange) or asyncio.sleep(0))
        return exchange.verdict.steps[-1][1:3]

    assert asyncio.run(ask()) == (Outcome.DENY, Reason.STAGE_ERROR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refusals": 0}, "its counter refusals needs a limit from 1 on"),
        ({"failing": "no"}, "has no on_store_failure 'no'"),
    ],
)
def test_counters_that_count_nothing(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        snapshot_of(tmp_path, **options)


def test_what_it_warns_of_is_told_and_can_be_meant(tmp_path: Path) -> None:
    (tmp_path / "scanner.py").write_text(CODE)

    def warned(more: str) -> list[str]:
        path = tmp_path / "policy.yaml"
        path.write_text(OPEN.replace("after: routing", f"after: routing, refusals: 2000{more}"))
        return [str(problem).partition("warning: ")[2] for problem in lint(load(path, {})) if "scanner" in str(problem)]

    assert warned("") == ["stages.scanner: nobody is that patient [stage-warns]"]
    assert warned(", acknowledge: {stage-warns: they are}") == []
