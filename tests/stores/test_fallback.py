"""What is counted without the store: begun with its last word, owed to it afterwards, the same whatever fails when."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mitmgate.core.limit import Limit
from mitmgate.core.sliding import Window
from mitmgate.core.window import Grant, Take, denies, new_window, settle
from mitmgate.stores.batches import Batches
from mitmgate.stores.fallback import Fallback
from mitmgate.stores.memory import MemoryStore
from mitmgate.stores.redis import _Question
from tests.stores.asking import NOW, limit_of, take_of

STEPS = st.sampled_from([0.0, 0.0, 0.001, 0.1, 0.25, 0.5, 0.999999, 1.0, 3.0])


class Server:
    """What the script does, by core: `tests/stores/test_redis_exact.py` shows that they are the same."""

    def __init__(self) -> None:
        self.windows: dict[str, Window] = {}

    def window(self, limit: Limit, key: str) -> Window:
        return self.windows.setdefault(key, new_window(limit))

    def carry_out(self, question: _Question, now: float) -> list[int]:
        takes = question.takes
        for grant in question.returned:
            self.window(grant.limit, grant.key).give_back(grant.spent, grant.limit.cost)
        windows = [self.window(take.limit, take.key) for take in takes]
        for take, window, debt in zip(takes, windows, question._debts, strict=True):
            window.look(round(now * 1e6), take.limit.length, 0)
            if debt:
                window.spend(round(now * 1e6), take.limit.length, debt)
        grants = settle(takes, windows, now)
        if denies(grants):
            for grant in question._held:
                if grant.spent and not grant.degraded:
                    self.window(grant.limit, grant.key).give_back(grant.spent, grant.limit.cost)
        numbers: list[int] = []
        for grant, window in zip(grants, windows, strict=True):
            wait = -1 if grant.retry_after == float("inf") else round(grant.retry_after * 1e6)
            numbers += [int(grant.admitted), window.live, wait, round(grant.reset * 1e6), grant.spent]
        return numbers


class Process:
    """One process: its fallback, and the ways in which a question to the server may go."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.fallback = Fallback()
        self.batches = cast(Batches, SimpleNamespace(pause=1.0, slow=False))
        self.admitted: dict[str, deque[float]] = {}

    def ask(self, way: str, now: float, takes: list[Take], held: list[Grant]) -> list[Grant]:
        if way == "away":
            return self.fallback.decide(takes, now, 1.0, held, shared=self.batches.slow)
        question = _Question(self.fallback, takes, now, held)
        numbers = None if way == "lost" else self.server.carry_out(question, now)
        if way == "answered" and numbers is not None:
            return question.answered(numbers)
        if way == "early":  # the answer comes when nobody has decided yet, and is late all the same
            question.late(numbers)
        grants = question.unanswered(self.batches)
        if way != "early":
            question.late(None if way == "carried out, not told" else numbers)
        return grants

    def note(self, grants: list[Grant], now: float) -> int:
        """Note what was admitted; return the most units that one window of one key has now."""
        most = 0
        for grant in grants:
            window = self.admitted.setdefault(grant.key, deque())
            if not denies(grants):
                window.extend([now] * grant.limit.cost)
            while window and round(now * 1e6) - round(window[0] * 1e6) >= grant.limit.length:
                window.popleft()
            most = max(most, len(window) - grant.limit.limit)
        return most


TOLD = ["answered", "answered", "late", "early"]
LOST = [*TOLD, "away", "lost", "carried out, not told"]


class OneProcess(RuleBasedStateMachine):
    """One process whose server is late as often as it likes decides as one that counts for itself."""

    @initialize(units=st.integers(1, 6))
    def begin(self, units: int) -> None:
        self.process, self.model, self.now = Process(Server()), MemoryStore(), NOW
        self.limits = [limit_of(units, 1.0), limit_of(units + 1, 3.0)]

    @rule(step=STEPS, way=st.sampled_from(TOLD), who=st.sampled_from("ab"), both=st.booleans(), cost=st.integers(1, 2))
    def ask(self, step: float, way: str, who: str, both: bool, cost: int) -> None:
        self.now += step
        limits = [replace(limit, cost=cost) for limit in self.limits[: 1 + both]]
        takes = [take_of(limit, who) for limit in limits]
        found = self.process.ask(way, self.now, takes, [])
        wanted = self.model.take(takes, self.now)
        assert [(g.admitted, g.remaining) for g in found] == [(g.admitted, g.remaining) for g in wanted]
        assert all(grant.degraded == (way != "answered") for grant in found)
        assert self.process.note(found, self.now) <= 0

    @rule(step=STEPS, way=st.sampled_from(TOLD), who=st.sampled_from("ab"))
    def in_two_steps(self, step: float, way: str, who: str) -> None:
        """Take a client's limit, then a route's: where that denies, the client's is as it was."""
        self.now += step
        client, route = (take_of(limit, who) for limit in self.limits)
        first = self.process.ask("answered", self.now, [client], [])
        wanted = self.model.take([client], self.now)
        assert first[0].admitted == wanted[0].admitted
        if first[0].admitted:
            found = self.process.ask(way, self.now, [route], first)
            second = self.model.take([route], self.now, wanted)
            assert [(g.admitted, g.remaining) for g in (*first, *found)] == [
                (g.admitted, g.remaining) for g in (*wanted, *second)
            ]


class ManyProcesses(RuleBasedStateMachine):
    """Whatever is answered, late or lost: no process admits more than the limit itself in any window."""

    @initialize(units=st.integers(1, 6), slow=st.booleans())
    def begin(self, units: int, slow: bool) -> None:
        server = Server()
        self.processes = [Process(server) for _ in range(3)]
        for process in self.processes:
            cast(Any, process.batches).slow = slow
        self.limit, self.now = limit_of(units, 1.0), NOW

    @rule(step=STEPS, way=st.sampled_from(LOST), which=st.integers(0, 2), cost=st.integers(1, 2))
    def ask(self, step: float, way: str, which: int, cost: int) -> None:
        self.now += step
        process = self.processes[which]
        found = process.ask(way, self.now, [take_of(replace(self.limit, cost=cost))], [])
        assert process.note(found, self.now) <= 0
        if found[0].retry_after and cost <= self.limit.limit:
            assert found[0].retry_after <= self.limit.window + 1e-6

    @rule(which=st.integers(0, 2))
    def all_was_told(self, which: int) -> None:
        """Two windows later nothing is left of it."""
        self.now += 2 * self.limit.window
        grant = self.processes[which].ask("answered", self.now, [take_of(self.limit)], [])[0]
        assert (grant.admitted, grant.remaining) == (True, self.limit.limit - 1)
        self.now += 2 * self.limit.window


TestOne = OneProcess.TestCase
TestMany = ManyProcesses.TestCase
TestOne.settings = TestMany.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_a_share_is_kept_where_the_server_is_only_ever_slow() -> None:
    server = Server()
    processes = [Process(server) for _ in range(2)]
    for process in processes:
        cast(Any, process.batches).slow = True
    take = take_of(limit_of(10, 2.0))
    now, admitted = NOW, 0
    for _ in range(5):  # five units of each are known to all
        for process in processes:
            assert process.ask("answered", now, [take], [])[0].admitted
    for _ in range(2):
        processes[0].ask("answered", now, [take], [])
        processes[1].ask("answered", now, [take], [])
    now += 2.0 - 0.25  # a new window is about to begin: each decides before the other's units are heard of
    for _ in range(40):
        now += 0.0125
        for process in processes:
            admitted += process.ask("away", now, [take], [])[0].admitted
    assert admitted <= 20, "without a share each would take all"
