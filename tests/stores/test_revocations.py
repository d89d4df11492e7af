"""The list of revocations: what is about a token, until when, what a process makes of it, and the file."""

import asyncio
import json
import math
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core import revocation
from mitmgate.core.claims import verify_claims
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.revocation import LONGEST, Revocation, both, lasting_until, marks, read, written
from mitmgate.core.rules import Issuer, KeySource
from mitmgate.core.token import SignedClaims
from mitmgate.policy.loader import load_snapshot
from mitmgate.stores import revocations
from mitmgate.stores.redis_revocations import STREAM, RevocationStream
from mitmgate.stores.revocations import ListFullError, RevocationFile, Revocations, live, missing
from tests.redis_server import RedisServer

NOW = time()
REVOKED = st.builds(
    lambda kind, value, until, before, lifted: Revocation(
        kind, "corp", "" if kind == "iss" else value, until, before, lifted, "me"
    ),
    st.sampled_from(revocation.KINDS),
    st.text(min_size=1, max_size=20),
    st.floats(0, 4e9),
    st.none() | st.floats(0, 4e9),
    st.booleans(),
)


def who(issued: float | None = None, **claims: Any) -> Principal:
    made = Principal("alice", "corp", (), frozenset(), claims, math.inf, claims.get("jti"), issued)
    return Principal("alice", "corp", (), frozenset(), claims, math.inf, claims.get("jti"), issued, marks(made, "k"))


def listed(*lines: bytes, **options: Any) -> Revocations:
    made = Revocations(RevocationFile("/nowhere"), **options)
    made.heard(lines, perf_counter())
    return made


def refused(made: Revocations, principal: Principal) -> Reason | None:
    refusal = made.refusal(principal, perf_counter())
    assert made.revoked(principal) is (refusal is not None and refusal.reason is Reason.TOKEN_REVOKED)
    return None if refusal is None else refusal.reason


@given(REVOKED)
def test_what_is_written_is_read(one: Revocation) -> None:
    try:
        line = written(one)
        line.decode("utf-8")
    except UnicodeEncodeError:
        return
    if any(0xD800 <= ord(character) <= 0xDFFF for character in one.value):
        return
    assert b"\n" not in line
    assert read(line) == one


@pytest.mark.parametrize(
    "members",
    [
        {"kind": "aud"},
        {"kind": None},
        {"issuer": ""},
        {"issuer": 1},
        {"value": ""},
        {"value": "x" * 256},
        {"kind": "iss", "value": "x"},
        {"until": None},
        {"until": "1"},
        {"until": True},
        {"until": -1},
        {"before": "1"},
        {"lifted": 1},
    ],
)
def test_what_can_not_be_read_may_be_about_any_token(members: dict[str, Any]) -> None:
    line = json.dumps({"kind": "sub", "issuer": "corp", "value": "x", "until": NOW + 9000} | members).encode()
    with pytest.raises(ValueError, match=r"."):
        read(line)
    assert refused(listed(line), who()) is Reason.REVOCATIONS_UNKNOWN
    assert refused(listed(line, on_failure="last-known"), who()) is None


@pytest.mark.parametrize(
    ("one", "hit", "missed"),
    [
        (Revocation("jti", "corp", "a", NOW + 9000), who(jti="a"), who(jti="b")),
        (Revocation("sid", "corp", "a", NOW + 9000), who(sid="a"), who(sid="A")),
        (Revocation("sub", "corp", "alice", NOW + 9000, 100.0), who(100.0), who(100.5)),
        (Revocation("sub", "corp", "alice", NOW + 9000, 100.0), who(None), who(101.0)),
        (Revocation("sub", "corp", "a1", NOW + 9000, 100.0), who(99.0, sub="a1"), who(99.0, sub="a2")),
        (Revocation("iss", "corp", "", NOW + 9000, 100.0), who(99.0), who(101.0)),
        (Revocation("kid", "corp", "k", NOW + 9000), who(1e9), None),
        (Revocation("kid", "other", "k", NOW + 9000), None, who()),
        (Revocation("sub", "corp", "alice", NOW - 1), None, who()),
    ],
)
def test_what_a_revocation_is_about(one: Revocation, hit: Principal | None, missed: Principal | None) -> None:
    made = listed(written(one))
    assert hit is None or refused(made, hit) is Reason.TOKEN_REVOKED
    assert missed is None or refused(made, missed) is None


@given(st.lists(REVOKED, max_size=6), st.none() | st.floats(0, 4e9))
def test_two_of_one_mark_are_about_what_either_is_about(ones: list[Revocation], issued: float | None) -> None:
    for one in ones:
        for other in ones:
            together = both(one, other)
            assert together.holds(issued) is (one.holds(issued) or other.holds(issued))
            assert together.until == max(one.until, other.until)


def test_lifted_and_revoked_again() -> None:
    one, later = Revocation("jti", "corp", "a", NOW + 9000), Revocation("jti", "corp", "a", NOW + 9030)
    lift = Revocation("jti", "corp", "a", NOW + 9000, lifted=True)
    made, told = listed(written(one)), list[str]()
    made.changed = lambda: told.append("changed")
    for line, reason in ((lift, None), (later, Reason.TOKEN_REVOKED), (one, Reason.TOKEN_REVOKED), (lift, None)):
        made.heard([written(line)], perf_counter())
        assert refused(made, who(jti="a")) is reason
    assert told == ["changed"] * 2, "nothing is cut because of a lift"
    assert live([written(one), written(lift), written(later)], NOW) == [later]


def test_what_is_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made = listed(*[written(Revocation("jti", "corp", str(n), NOW + 9000 + n % 7)) for n in range(100)])
    assert len(made) == 100
    monkeypatch.setattr("mitmgate.stores.revocations.time.time", lambda: NOW + 10_000)
    made.heard([], perf_counter())
    assert len(made) == 0
    assert not made._ends


def test_more_than_may_be_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "MOST", 3)
    lines = [written(Revocation("jti", "corp", str(n), NOW + 9000)) for n in range(4)]
    assert refused(listed(*lines[:3]), who()) is None
    assert refused(listed(*lines, on_failure="last-known"), who()) is Reason.REVOCATIONS_UNKNOWN


def test_an_answer_holds_for_a_second_from_when_it_was_asked_for() -> None:
    made = Revocations(RevocationFile("/nowhere"))
    at = perf_counter()
    assert made.refusal(who(), at) is revocation.UNKNOWN
    made.heard([], at)
    assert made.refusal(who(), at + 1.0) is None
    assert made.refusal(who(), at + 1.001) is revocation.UNKNOWN
    assert Revocations().refusal(who(), math.inf) is None


def test_how_long_a_revocation_lasts() -> None:
    assert lasting_until("jti", 1000.0, None, 3600.0, 30.0) == 1000 + 3600 + 60 + 1
    assert lasting_until("sub", 1000.0, 2000.0, 3600.0, 30.0) == 2000 + 3600 + 60 + 1
    assert lasting_until("kid", 1000.0, None, 3600.0, 30.0) == 1000 + LONGEST


def test_a_token_that_does_not_say_when_it_was_issued_is_refused(tmp_path: Path) -> None:
    """Before: one that is good for years was refused until `keep` before its end, when its revocation was over."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        """
version: 1
identity: {issuers: {corp: {issuer: "https://corp.example", audience: api, algorithms: [HS256], keys: {secret_env: S}}}}
revocation: {file: revoked.jsonl, keep: 1h}
upstreams: {up: {endpoints: ["http://127.0.0.1:9"]}}
routes: [{name: all, match: {prefix: /}, upstream: up}]
"""
    )
    issuer = load_snapshot(policy, {"S": "a development secret of 32 bytes or more"}).issuers["corp"]
    claims: dict[str, Any] = {"iss": "https://corp.example", "aud": "api", "sub": "alice", "exp": NOW + 1800}
    assert not isinstance(verify_claims(SignedClaims({**claims, "iat": NOW - 60}), issuer, NOW), Refusal)
    refusal = verify_claims(SignedClaims(claims), issuer, NOW)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.TOKEN_CLAIM_INVALID


class Learnt:
    """A learner that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.anew = 0

    def heard(self, news: Any, asked: float, *, anew: bool = False) -> list[float | None]:
        self.anew += anew
        self.lines = [*([] if anew else self.lines), *news]
        return [NOW + 9000] * len(list(news))

    def known(self) -> list[Revocation]:
        return []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - of a thread, or a server
            await asyncio.sleep(0.01)


def one(number: int, lasts: float = 60.0) -> Revocation:
    return Revocation("jti", "corp", str(number), time() + lasts)


def test_a_file_is_followed_also_where_a_line_is_torn_or_the_file_another(tmp_path: Path) -> None:
    path = tmp_path / "revoked.jsonl"
    file = RevocationFile(str(path))

    async def run() -> None:
        learnt = Learnt()
        file.prepare()
        assert os.stat(path).st_mode & 0o777 == 0o600
        following = asyncio.create_task(RevocationFile(str(path)).follow(learnt))
        await file.add(one(1))
        await until(lambda: len(learnt.lines) == 1)
        with path.open("ab") as torn:
            torn.write(b'{"kind":"jti"')
        await file.add(one(2))  # behind what a crash has left
        await until(lambda: [read(line).value for line in learnt.lines] == ["1", "2"])
        path.with_suffix(".new").write_bytes(written(one(9)) + b"\n")
        path.with_suffix(".new").replace(path)
        await until(lambda: [read(line).value for line in learnt.lines] == ["9"])
        following.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("harm", ["deleted and written anew", "another", "written over", "empty", "cut"])
def test_a_file_that_lacks_what_is_known_is_told_of_it(tmp_path: Path, harm: str) -> None:
    """Who deletes the list, or puts an older one back, makes no token good again; who lifts a revocation does."""
    path = tmp_path / "revoked.jsonl"
    file, followers = RevocationFile(str(path)), [Revocations(RevocationFile(str(path))) for _ in range(2)]

    def known(number: int = 0) -> list[str]:
        return sorted(held.value for held in followers[number].known())

    async def run() -> None:
        file.prepare()
        for each in followers:
            await each.start()
        for number in (1, 2, 3):
            await file.add(one(number))
        await until(lambda: known(0) == known(1) == ["1", "2", "3"])
        former = path.read_bytes().splitlines(keepends=True)
        lift = written(replace(one(3), lifted=True)) + b"\n"
        if harm == "deleted and written anew":
            path.unlink()
            await file.add(one(4))
            await file.add(replace(one(3), lifted=True))
        elif harm == "another":
            path.with_suffix(".new").write_bytes(written(one(4)) + b"\n" + lift)
            path.with_suffix(".new").replace(path)
        elif harm == "written over":  # by a longer one; as a new file is that is given the inode of the deleted one
            path.write_bytes(lift + (written(one(4)) + b"\n") * 3)
        elif harm == "empty":
            path.write_bytes(b"")
            await until(lambda: path.read_bytes().count(b"\n") >= 3)
            await file.add(one(4))
            await file.add(replace(one(3), lifted=True))
        else:
            path.write_bytes(former[0])
            await until(lambda: path.read_bytes().count(b"\n") >= 3)
            await file.add(one(4))
            await file.add(replace(one(3), lifted=True))
        await until(lambda: known(0) == known(1) == ["1", "2", "4"])
        assert sorted(held.value for held in live(await file.lines(), time())) == ["1", "2", "4"]
        for each in followers:
            await each.close()

    asyncio.run(run())


def test_what_was_lifted_stays_so_when_the_file_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has not read yet that it was lifted tells a new file what it knows."""
    monkeypatch.setattr(revocations, "TIDY", 0)
    file = RevocationFile(str(tmp_path / "revoked.jsonl"))

    async def run() -> list[bytes]:
        await file.add(one(1))
        await file.add(replace(one(1), lifted=True))
        for number in range(10, 20):
            await file.add(one(number, -1))
        return await file.lines()

    lines = asyncio.run(run())
    assert len(lines) < 10
    assert missing(lines, [one(1)]) == []
    assert [each.value for each in missing(lines, [one(2)])] == ["2"]


def test_a_file_is_written_anew_without_what_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "revoked.jsonl"
    file = RevocationFile(str(path))
    monkeypatch.setattr(revocations, "TIDY", 2000)

    async def run() -> list[str]:
        for number in range(40):
            await file.add(one(number, 60 if number % 10 == 0 else -1))
        return [read(line).value for line in await file.lines()]

    kept = asyncio.run(run())
    assert {"0", "10", "20", "30", "39"} <= set(kept)
    assert path.stat().st_size < 3000
    monkeypatch.setattr(revocations, "MOST", 3)
    monkeypatch.setattr(revocations, "TIDY", 0)
    with pytest.raises(ListFullError):
        asyncio.run(file.add(one(99)))


def test_a_short_revocation_ends_no_longer_one_when_the_file_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before: the last line of a mark alone counted, and took the others along when it was over."""
    monkeypatch.setattr(revocations, "TIDY", 0)
    file = RevocationFile(str(tmp_path / "revoked.jsonl"))
    until, later = time() + 3600, time() + 1800

    async def run() -> list[bytes]:
        await file.add(Revocation("sub", "corp", "alice", until, later))
        await file.add(Revocation("sub", "corp", "alice", until - 60, later - 900))
        await file.add(Revocation("sub", "corp", "alice", time() - 1, time()))
        for number in range(8):
            await file.add(one(number, -1))
        return await file.lines()

    lines = asyncio.run(run())
    assert len(lines) < 8
    (held,) = [found for found in live(lines, time()) if found.value == "alice"]
    assert (held.until, held.before) == (until, later)


def test_what_a_full_disk_has_taken_a_part_of_is_not_revoked(tmp_path: Path) -> None:
    """Before: it was said to be on the list, and nobody ever read it."""
    path = tmp_path / "revoked.jsonl"
    file = RevocationFile(str(path))
    asyncio.run(file.add(one(1)))
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, former[1]))
    try:
        with pytest.raises(OSError, match="a part of a line"):
            asyncio.run(file.add(one(2)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    asyncio.run(file.add(one(3)))
    assert [read(line).value for line in asyncio.run(file.lines())] == ["1", "3"]


def test_a_pipe_in_its_place_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"no regular file|No such device"):
        RevocationFile(str(tmp_path / "pipe")).prepare()


def test_a_stream_forgets_what_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmgate.stores.redis_revocations.FORGOTTEN", 0.0)
    with RedisServer(tmp_path) as redis:

        async def run() -> None:
            stream = RevocationStream(redis.url, 5.0)
            await stream.add(one(1, 0.0))
            await stream.add(one(2))
            made = Revocations(RevocationStream(redis.url, 5.0), "last-known")
            await made.start()
            await until(lambda: redis.command("XLEN", STREAM) == b":1\r\n")
            assert [read(line).value for line in await stream.lines()] == ["2"]
            monkeypatch.setattr("mitmgate.stores.redis_revocations.MOST", 1)
            with pytest.raises(ListFullError):
                await stream.add(one(3))
            await made.close()

        asyncio.run(run())


def test_a_key_that_a_file_of_keys_does_not_have_is_not_revoked() -> None:
    """Before: it was said to be revoked, and its tokens were accepted as before."""
    for material, named in (
        (b'{"keys":[{"kty":"EC"},{"kid":7}]}', "none of its keys has an id"),
        (b'{"keys":[{"kid":"a"},{"kid":"b"}]}', "it has a, b"),
        (b"[]", "none of its keys"),
    ):
        issuer = Issuer("corp", "https://corp.example", (), (), KeySource("jwks", material))
        with pytest.raises(ValueError, match=named):
            revocation.revocation_of(issuer, "kid", "k", NOW)
        assert revocation.revocation_of(issuer, "kid", "k", NOW, lifted=True).lifted
    assert revocation.revocation_of(issuer, "jti", "k", NOW).value == "k"
    issuer = Issuer("corp", "https://corp.example", (), (), KeySource("jwks", b'{"keys":[{"kid":"a"}]}'))
    assert revocation.revocation_of(issuer, "kid", "a", NOW).value == "a"
