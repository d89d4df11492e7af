"""The account of what is held for clients: sums, bounds, who ends; and how much memory there is."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.proxy.memory import PAGE, Account, Memory, available

MIB = 1 << 20


class Limits:
    """A bound, and addresses that stand for many clients."""

    def __init__(self, memory: int, trusted: str = "") -> None:
        self.memory, self.trusted = memory, trusted

    def trusts(self, peer: str) -> bool:
        return peer == self.trusted


class Clients:
    """Accounts whose owners let go of everything when they are told to end."""

    def __init__(self, memory: Memory, *peers: str) -> None:
        self.ended: list[int] = []
        self.accounts: list[Account] = []
        for number, peer in enumerate(peers):
            self.accounts.append(memory.account(peer, peer, lambda number=number: self.end(number)))  # type: ignore[misc]

    def end(self, number: int) -> None:
        self.ended.append(number)
        self.accounts[number].set(0)


def test_the_largest_ends_first_and_nobody_else() -> None:
    memory = Memory(Limits(16 * MIB))
    clients = Clients(memory, *"abcdefghijkl")
    for number, account in enumerate(clients.accounts):
        account.set(MIB + number * PAGE)
    assert clients.ended == []
    clients.accounts[3].set(3 * MIB)
    clients.accounts[4].set(3 * MIB + PAGE)
    assert clients.ended == [4]
    assert memory.ended == 1
    assert memory.held == sum(account.held for account in clients.accounts) <= memory.limit


def test_one_address_may_hold_a_quarter_and_a_trusted_proxy_all() -> None:
    memory = Memory(Limits(16 * MIB, trusted="proxy"))
    crowd = Clients(memory, "a", "a", "a")
    crowd.accounts[0].set(2 * MIB)
    crowd.accounts[1].set(MIB)
    crowd.accounts[2].set(MIB + PAGE)
    assert crowd.ended == [0]
    assert crowd.accounts[0].admits(MIB)
    assert not crowd.accounts[0].admits(2 * MIB)
    proxy = Clients(memory, "proxy")
    proxy.accounts[0].set(13 * MIB)
    assert proxy.ended == []
    assert not proxy.accounts[0].admits(2 * MIB)


def test_who_was_ended_is_not_ended_again_before_it_has_let_go() -> None:
    memory, told = Memory(Limits(16 * MIB)), []
    slow = memory.account("a", "a", lambda: told.append("a"))
    other = memory.account("b", "b", lambda: told.append("b"))
    slow.set(5 * MIB)  # more than a quarter
    slow.set(6 * MIB)
    assert told == ["a"]
    other.set(4 * MIB)
    assert told == ["a"]
    slow.settle()
    slow.set(7 * MIB)
    assert told == ["a", "a"]
    slow.close()
    assert memory.held == 4 * MIB
    slow.set(9 * MIB)
    assert memory.held == 4 * MIB
    other.close()
    assert memory.held == 0
    assert memory._addresses == {}
    assert memory._leaving == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3 * MIB)), max_size=60))
def test_bounds_hold_after_every_change(changes: list[tuple[int, int]]) -> None:
    memory = Memory(Limits(4 * MIB))
    clients = Clients(memory, *"aabbcd")
    for number, held in changes:
        clients.accounts[number].set(held)
        assert memory.held == sum(account.held for account in clients.accounts) <= 4 * MIB
        for peer in "abcd":
            mine = [account.held for account, of in zip(clients.accounts, "aabbcd", strict=True) if of == peer]
            assert sum(mine) <= MIB
        assert all(account.held == 0 or account.held >= PAGE for account in clients.accounts)
        assert memory._leaving == 0


@pytest.mark.parametrize(
    ("listed", "files", "found"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1048576\n"}, MIB),
        ("0::/a/b\n", {"a/b/memory.max": "524288\n", "a/memory.max": "1048576\n"}, MIB // 2),
        ("0::/\n", {}, None),
        ("4:memory:/a\n0::/x\n", {"memory/a/memory.limit_in_bytes": "1048576\n"}, MIB),
        ("4:memory:/a\n", {"memory/memory.limit_in_bytes": "1048576\n"}, MIB),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("", {}, None),
    ],
)
def test_memory_that_there_is(tmp_path: Path, listed: str, files: dict[str, str], found: int | None) -> None:
    (tmp_path / "cgroup").write_text(listed)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available(tmp_path / "cgroup", tmp_path) == (machine if found is None else found)
    assert 0 < available() <= machine
    assert available(tmp_path / "none") == machine
