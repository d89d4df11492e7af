"""Introspection: what is an opaque token, and for how long an issuer's word counts."""

import asyncio
import json
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mitmgate.core.introspection import is_opaque
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Introspection, Issuer, KeySource
from mitmgate.keys.fetch import FetchError
from mitmgate.keys.introspection import MOST_ASKED, Introspector
from mitmgate.keys.ring import KeyRing
from tests.live.harness import mint

CACHE, REFUSED, LEEWAY, NOW = 30.0, 5.0, 10.0, 1_000_000.0


def issuer(name: str = "opaque", prefix: bytes = b"", **members: Any) -> Issuer:
    rule = Introspection("http://127.0.0.1:1/", "gateway", b"secret", prefix, 2.0, CACHE, REFUSED)
    made: dict[str, Any] = {
        "audience": (),
        "algorithms": (),
        "keys": KeySource("none"),
        "leeway": LEEWAY,
        "introspection": rule,
    }
    return Issuer(name, f"https://{name}.example", **(made | members))


def active(subject: str = "alice", expires: float = NOW + 600) -> bytes:
    return json.dumps({"active": True, "sub": subject, "exp": expires}).encode()


@pytest.mark.parametrize("token", ["a", "2YotnFZFEjr1zCsicMWpAA", "ya29.a0Af_~+/==", "a.b.c", ".", "a.b.c.d.e"])
def test_opaque(token: str) -> None:
    assert is_opaque(token.encode())


@pytest.mark.parametrize(
    "token",
    [
        "",
        "=",
        "a b",
        "a=b",
        "e30=.x",
        "a\x00",
        "caf\xe9",
        mint(),
        mint(key="x" * 64),
        "e30.e30.",
        "e30.x",
        "IHsgfQ.x.y",
        "eyJhbGciOiJub25lIn1.e30.",  # bits that are not zero, a character too many, one of no alphabet
        "eyJhbGciOiJub25lIn0B.e30.x",
        "eyJh~bGciOiJub25lIn0.e30.x",
        f"mgk_{'a' * 10}_{'b' * 49}",  # an API key
        "eyJlbmMiOiJBMjU2R0NNIn0.a.b.c.d",
        *(
            f"{before}{mint()}" for before in (".", "-", "a.", "--", "x~y", "ab.cd.", "eyJ.")
        ),  # a whole one behind something
        *(mint()[lost:] for lost in (1, 2, 3, 4, 9)),
        f"{mint()}.",
        f"{mint()}=",
        f"{mint()}.{mint()}",
        *(f"{before}eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0.a.b.c.d" for before in ("-", "--", "a/+", "....")),
    ],
)
def test_not_opaque(token: str) -> None:
    """A JWT's first part is a JSON object, with blanks before it or not."""
    assert not is_opaque(token.encode("latin-1"))


@given(st.binary(max_size=80) | st.text("eyJ0w.-_~+/= {", max_size=80).map(str.encode))
def test_anything_may_come(token: bytes) -> None:
    assert is_opaque(token) in {True, False}


class World:
    """An issuer that says of each token what it says now; time that stands still."""

    def __init__(self, made: Issuer | None = None) -> None:
        self.ticks, self.now = 0.0, NOW
        self.says: dict[bytes, bytes | None] = {}
        self.asked = 0
        self.introspector = Introspector(made or issuer(), self.ask, lambda: self.ticks)

    async def ask(self, rule: Introspection, form: bytes, credential: str) -> bytes:
        self.asked += 1
        said = self.says.get(form.split(b"&")[0].partition(b"=")[2])
        if said is None:
            raise FetchError("away")
        return said

    async def of(self, token: bytes) -> Principal | Refusal:
        digest = blake2b(token).digest()
        known = self.introspector.known(digest, self.now)
        return await self.introspector.answer(token, digest, self.now) if known is None else known


def meaning(said: bytes | None, now: float) -> object:
    """Say what an answer comes to at a time."""
    if said is None or said == b"?":
        return Reason.INTROSPECTION_UNAVAILABLE
    members = json.loads(said)
    if not members["active"]:
        return Reason.TOKEN_INACTIVE
    return (members["sub"], members["exp"]) if now < members["exp"] + LEEWAY else Reason.TOKEN_EXPIRED


ANSWERS = st.sampled_from(
    [None, b"?", b'{"active": false}', active(), active("bob"), active(expires=NOW + 20), active(expires=NOW - 5)]
)
STEPS = st.tuples(st.floats(0, 40), st.floats(-30, 30), st.sampled_from([b"a", b"b", b"c"]), ANSWERS)


@settings(deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=12))
def test_what_counts_was_said_of_this_token_lately(steps: list[tuple[float, float, bytes, bytes | None]]) -> None:
    """Whatever varies (time, the wall clock, the token, the answer): nothing else is ever said, and for no longer."""
    world = World()
    history: dict[bytes, list[tuple[float, float, bytes | None]]] = {}

    def holds(token: bytes, result: object, *, admits: bool) -> bool:
        for at, now, said in history[token]:
            age = world.ticks - at
            fresh = age == 0 or (age < (CACHE if admits else REFUSED) and said not in {None, b"?"})
            if fresh and meaning(said, world.now if admits else now) == result:
                return True
        return False

    async def run() -> None:
        for passed, shifted, token, says in steps:
            world.ticks += passed
            world.now = NOW + shifted
            world.says[token] = says
            history.setdefault(token, []).append((world.ticks, world.now, says))
            result = await world.of(token)
            if isinstance(result, Principal):
                assert holds(token, (result.subject, result.expires), admits=True)
            else:
                assert holds(token, result.reason, admits=False)

    asyncio.run(run())


def test_an_answer_is_kept_and_never_beyond_the_tokens_end() -> None:
    asyncio.run(an_answer_is_kept_and_never_beyond_the_tokens_end())


async def an_answer_is_kept_and_never_beyond_the_tokens_end() -> None:
    world = World()
    world.says = {b"a": active(expires=NOW + 20), b"b": b'{"active": false}'}
    for _ in range(2):
        assert isinstance(await world.of(b"a"), Principal)
        assert isinstance(await world.of(b"b"), Refusal)
    assert world.asked == 2
    world.ticks, world.now = REFUSED, NOW + REFUSED
    await world.of(b"a")
    await world.of(b"b")
    assert world.asked == 3
    world.ticks, world.now = 21, NOW + 21
    assert isinstance(await world.of(b"a"), Principal), "within the leeway its issuer has the last word"
    assert world.asked == 4
    world.says[b"a"] = b'{"active": false}'
    assert isinstance(await world.of(b"a"), Refusal)


def test_nobody_fills_the_memory_or_asks_without_end() -> None:
    asyncio.run(nobody_fills_the_memory_or_asks_without_end())


async def nobody_fills_the_memory_or_asks_without_end() -> None:
    world = World()
    long = json.dumps({"active": True, "sub": "alice", "exp": NOW + 600, "note": "x" * 60_000}).encode()
    world.says = {str(number).encode(): long for number in range(200)}
    for token in list(world.says):
        await world.of(token)
    assert 100 < len(world.introspector._said) < 140
    assert not world.introspector._asking
    gate = asyncio.Event()

    async def hold(rule: Introspection, form: bytes, credential: str) -> bytes:
        await gate.wait()
        return active()

    held = Introspector(issuer(), hold)
    waiting = [asyncio.create_task(held.answer(b"t%d" % n, b"%d" % n, NOW)) for n in range(MOST_ASKED)]
    await asyncio.sleep(0)
    refused = await held.answer(b"more", b"more", NOW)
    assert isinstance(refused, Refusal)
    same = asyncio.create_task(held.answer(b"t0", b"0", NOW))
    await asyncio.sleep(0)
    waiting[0].cancel()  # whose client has left
    gate.set()
    assert isinstance(await same, Principal)
    assert all(isinstance(result, Principal) for result in await asyncio.gather(*waiting[1:]))
    gate.clear()
    last = asyncio.create_task(held.answer(b"last", b"last", NOW))
    await asyncio.sleep(0)
    await held.close()
    assert isinstance(await last, Refusal)


def test_who_is_asked_about_a_token() -> None:
    asyncio.run(who_is_asked_about_a_token())


async def who_is_asked_about_a_token() -> None:
    """One issuer alone is shown it: the one with the longest prefix, whatever the route accepts."""
    asked: list[str] = []

    async def ask(rule: Introspection, form: bytes, credential: str) -> bytes:
        asked.append(rule.prefix.decode())
        return active()

    ring = KeyRing(ask=ask)
    issuers = {one.name: one for one in (issuer("any"), issuer("short", b"ab_"), issuer("long", b"ab_cd"))}
    ring.configure(issuers)

    async def of(token: bytes, *names: str) -> object:
        result = ring.authenticate(issuers, names, token, NOW)
        result = result if isinstance(result, Principal | Refusal) else await result
        return result.reason if isinstance(result, Refusal) else result.issuer

    assert await of(b"ab_cd1", *issuers) == "long"
    assert await of(b"ab_1", *issuers) == "short"
    assert await of(b"else", *issuers) == "any"
    assert await of(b"ab_cd2", "any", "short") is Reason.TOKEN_ISSUER_UNKNOWN
    assert asked == ["ab_cd", "ab_", "", "ab_cd"]
    # What was said counts after a reload that leaves the issuer as it was, and no longer where it does not.
    changed = issuers | {"short": issuer("short", b"ab_", audience=("api",))}
    ring.configure(changed)
    issuers = changed
    assert await of(b"ab_cd1", *issuers) == "long"
    assert await of(b"ab_1", *issuers) is Reason.TOKEN_AUDIENCE_REFUSED
    assert asked == ["ab_cd", "ab_", "", "ab_cd", "ab_"]
    offline = KeyRing(ask=None)
    offline.configure(issuers)
    assert offline.authenticate(issuers, tuple(issuers), b"else", NOW) == (
        Reason.INTROSPECTION_UNAVAILABLE,
        "The token's issuer can't be asked about it.",
        *(b"", b"", (), None),
    )
    await ring.close()
