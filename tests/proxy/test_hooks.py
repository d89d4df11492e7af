"""The hook table: order, one guard for each callable, awaiting, and a chain that changes."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.options import Options
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook
from mitmproxy.test import tflow

from mitmgate.host.master import LeanMaster
from mitmgate.proxy.hooks import HookTable, StockHooks

Body = Callable[[list[str]], Any]


class Entry:
    """An addon that notes that it ran, then does what the test says."""

    def __init__(self, name: str, seen: list[str], body: Body = lambda seen: None) -> None:
        self.name = name
        self._seen, self._body = seen, body

    def requestheaders(self, flow: Any) -> Any:
        self._seen.append(self.name)
        return self._body(self._seen)


class Group:
    """An addon with sub-addons."""

    def __init__(self, *addons: Any) -> None:
        self.name = "group"
        self.addons = list(addons)


def fail(kind: type[Exception]) -> Body:
    def body(seen: list[str]) -> None:
        raise kind("broken")

    return body


async def wait(seen: list[str]) -> None:
    await asyncio.sleep(0)
    seen.append("waited")


async def wait_and_fail(seen: list[str]) -> None:
    await asyncio.sleep(0)
    raise ValueError("broken")


def run(*addons: Any) -> bool:
    """Run one hook over a chain; returns whether it had to wait."""

    async def main() -> bool:
        master = LeanMaster(Options())
        master.addons.add(*addons)
        table = master.addons
        assert isinstance(table, HookTable)
        pending = table.start(HttpRequestHeadersHook(tflow.tflow()))
        if pending is not None:
            await pending
        master.addons.get("errorcheck").finish()
        return pending is not None

    return asyncio.run(main())


def test_sub_addons_run_in_the_order_of_the_chain_without_waiting() -> None:
    seen: list[str] = []
    assert run(Group(Entry("a", seen), Entry("b", seen)), Entry("c", seen)) is False
    assert seen == ["a", "b", "c"]


@pytest.mark.parametrize("kind", [ValueError, exceptions.AddonHalt, exceptions.OptionsError])
def test_what_fails_is_logged_and_the_rest_runs(kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    with caplog.at_level(logging.ERROR):
        run(Group(Entry("a", seen, fail(kind)), Entry("b", seen)), Entry("enforcer", seen))
    assert seen == ["a", "b", "enforcer"]
    assert "hook requestheaders failed" in caplog.text


def test_what_waits_is_awaited_before_the_next_runs() -> None:
    seen: list[str] = []
    assert run(Group(Entry("a", seen, wait), Entry("b", seen, wait)), Entry("c", seen)) is True
    assert seen == ["a", "waited", "b", "waited", "c"]


@pytest.mark.parametrize("body", [fail(ValueError), fail(exceptions.AddonHalt), wait_and_fail])
def test_a_failure_behind_a_wait_keeps_nothing_from_running(body: Body, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    with caplog.at_level(logging.ERROR):
        run(Group(Entry("a", seen, wait), Entry("b", seen, body)), Entry("enforcer", seen))
    assert seen == ["a", "waited", "b", "enforcer"]
    assert "hook requestheaders failed" in caplog.text


def test_cancelling_is_not_swallowed() -> None:
    seen: list[str] = []

    async def cancelled(_: list[str]) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run(Entry("a", seen, cancelled), Entry("b", seen))
    assert seen == ["a"]


def test_the_table_follows_the_chain() -> None:
    seen: list[str] = []

    async def main() -> None:
        master = LeanMaster(Options())
        group = Group(Entry("a", seen))
        master.addons.add(group)
        hook = HttpRequestHeadersHook(tflow.tflow())
        await master.addons.handle_lifecycle(hook)
        late = Entry("late", seen)
        master.addons.add(late)
        await master.addons.handle_lifecycle(hook)
        group.addons.append(Entry("b", seen))
        master.options.update(listen_port=1)  # a configure event
        await master.addons.handle_lifecycle(hook)
        master.addons.remove(late)
        await master.addons.handle_lifecycle(hook)
        master.addons.get("errorcheck").finish()

    asyncio.run(main())
    assert seen == ["a", "a", "late", "a", "b", "late", "a", "b"]


@pytest.mark.parametrize("body", [lambda seen: None, wait], ids=["at once", "later"])
@pytest.mark.parametrize("stock", [False, True])
def test_a_flow_that_a_hook_has_intercepted_waits_until_it_is_resumed(body: Body, stock: bool) -> None:
    seen: list[str] = []

    class Intercepts(Entry):
        def requestheaders(self, flow: Any) -> Any:
            flow.intercept()
            return super().requestheaders(flow)

    async def main() -> None:
        master = LeanMaster(Options())
        master.addons.add(Intercepts("a", seen, body), Entry("b", seen))
        table = StockHooks(master.addons) if stock else master.addons
        assert isinstance(table, HookTable)
        flow = tflow.tflow()
        pending = table.start(HttpRequestHeadersHook(flow))
        assert pending is not None
        task = asyncio.ensure_future(pending)
        for _ in range(5):
            await asyncio.sleep(0)
        assert [name for name in seen if name != "waited"] == ["a", "b"]
        assert not task.done(), "nothing goes on before somebody lets it"
        flow.resume()
        await task
        master.addons.get("errorcheck").finish()

    asyncio.run(main())


@pytest.mark.parametrize("result", [None, 1, "word", object()])
@pytest.mark.parametrize("first", [lambda seen: None, wait], ids=["at once", "later"])
def test_what_a_hook_returns_that_nobody_can_await_is_not_awaited(first: Body, result: object) -> None:
    seen: list[str] = []
    run(Entry("a", seen, first), Entry("b", seen, lambda seen: result), Entry("c", seen))
    assert [name for name in seen if name != "waited"] == ["a", "b", "c"]


def test_a_host_of_mitmproxys_own_is_asked_for_its_addons_each_time() -> None:
    """They are added, taken out and replaced behind the table's back, Enforcer among them."""
    seen: list[str] = []

    async def main() -> None:
        manager = LeanMaster(Options()).addons
        first, second, third = (Entry(name, seen) for name in "abc")
        manager.chain[:] = [first]
        table = StockHooks(manager)
        for chain in ([first], [first, second], [first, third], [third], [second]):
            manager.chain[:] = chain
            seen.clear()
            assert table.run(HttpRequestHeadersHook, tflow.tflow()) is None
            assert seen == [addon.name for addon in chain]

    asyncio.run(main())


def test_whoever_shows_flows_is_told_of_each() -> None:
    told: list[str] = []

    class Shows:
        name = "shows"

        def update(self, flows: Any) -> None:
            told.append("update")

    for body in (lambda seen: None, wait):
        told.clear()
        run(Entry("a", [], body), Shows())
        assert told == ["update"]
