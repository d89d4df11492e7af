"""Turns: how many pass in one turn of the loop, in which order, and what a cancelled caller leaves."""

import asyncio
from collections import Counter
from contextlib import suppress

from mitmgate.engine.turns import AT_ONCE, Turns

CALLERS = 10 * AT_ONCE + 1


async def _pass(callers: int, cancelled: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
    """Let callers pass; returns who passed in which turn of the loop."""
    loop = asyncio.get_running_loop()
    turns, number, passed = Turns(), 0, []

    def count() -> None:
        nonlocal number
        number += 1
        loop.call_soon(count)

    async def call(caller: int) -> None:
        await turns.turn()
        passed.append((caller, number))

    loop.call_soon(count)
    tasks = [asyncio.create_task(call(caller)) for caller in range(callers)]
    await asyncio.sleep(0)
    for caller in cancelled:
        tasks[caller].cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    return passed


def test_few_pass_in_a_turn_and_all_in_order() -> None:
    passed = asyncio.run(_pass(CALLERS))
    assert [caller for caller, _ in passed] == list(range(CALLERS))
    assert max(Counter(number for _, number in passed).values()) <= AT_ONCE
    assert passed[-1][1] <= 2 * CALLERS / AT_ONCE + 5  # none is forgotten for long


def test_a_cancelled_caller_takes_nobodys_turn() -> None:
    passed = asyncio.run(_pass(CALLERS, frozenset({AT_ONCE, AT_ONCE + 1, CALLERS - 1})))
    assert len(passed) == CALLERS - 3
    assert max(Counter(number for _, number in passed).values()) <= AT_ONCE


def test_a_single_caller_does_not_wait() -> None:
    async def alone() -> None:
        turns = Turns()
        for _ in range(3):
            coroutine = turns.turn()
            with suppress(StopIteration):
                coroutine.send(None)
                raise AssertionError("it waited")
            await asyncio.sleep(0.01)

    asyncio.run(alone())
