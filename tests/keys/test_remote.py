"""Published key sets from a real server: rotation, withdrawal, outage, slowness, hostile documents, amplification."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer, KeySource
from mitmgate.keys import ring as ring_module
from mitmgate.keys.fetch import MAX_DOCUMENT
from mitmgate.keys.remote import RemoteKeys
from mitmgate.keys.ring import KeyRing
from tests.keys.jwks_server import JwksServer
from tests.keys.signing import CLAIMS, NOW, issuer, jwk, jwk_set, private_key, sign

OLD, NEW = private_key("ES256", 10), private_key("ES256", 11)
OLD_SET = jwk_set(jwk("ES256", OLD, kid="old"))
BOTH_SET = jwk_set(jwk("ES256", OLD, kid="old"), jwk("ES256", NEW, kid="new"))
NEW_SET = jwk_set(jwk("ES256", NEW, kid="new"))
OLD_TOKEN, NEW_TOKEN = sign("ES256", OLD, header={"kid": "old"}), sign("ES256", NEW, header={"kid": "new"})


class Gate:
    """A ring with one issuer, whose clocks stand still until a test moves them."""

    def __init__(
        self,
        url: str,
        *,
        retry: float = 30.0,
        refresh: float = 300.0,
        min_refresh: float = 10.0,
        max_stale: float = 3600.0,
    ) -> None:
        self.source = KeySource("jwks_url", url=url, refresh=refresh, min_refresh=min_refresh, max_stale=max_stale)
        self.ticks = 1000.0
        self.ring = KeyRing(open_keys=lambda source: RemoteKeys(source, ticks=lambda: self.ticks, retry=retry))
        self.issuers = {"corp": issuer(self.source, "ES256")}
        self.ring.configure(self.issuers)

    def ask(self, token: bytes, *, now: float = NOW) -> Any:
        return self.ring.authenticate(self.issuers, ("corp",), token, now)

    def at_once(self, token: bytes, *, now: float = NOW) -> Reason | None:
        return reason_of(self.ask(token, now=now))

    def knows(self, token: bytes) -> bool:
        """Tell whether a token is good now, without waiting for a fetch that may be under way."""
        result = self.ask(token)
        if isinstance(result, Coroutine):
            result.close()
        return isinstance(result, Principal)

    async def waiting(self, token: bytes) -> Reason | None:
        pending = self.ask(token)
        assert not isinstance(pending, Principal | Refusal), "nothing was waited for"
        return reason_of(await pending)


def reason_of(result: Any) -> Reason | None:
    assert isinstance(result, Principal | Refusal), "this had to be decided at once"
    return result.reason if isinstance(result, Refusal) else None


@asynccontextmanager
async def started(gate: Gate) -> Any:
    await gate.ring.start()
    try:
        yield gate
    finally:
        await gate.ring.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in a server's thread
            await asyncio.sleep(0.005)


@pytest.fixture
def server() -> Iterator[JwksServer]:
    with JwksServer(OLD_SET) as made:
        yield made


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_keys_are_there_when_start_returns(server: JwksServer) -> None:
    async def test() -> None:
        gate = Gate(server.url)
        assert gate.at_once(OLD_TOKEN) is Reason.KEYS_UNAVAILABLE
        async with started(gate):
            assert gate.at_once(OLD_TOKEN) is None
            assert server.fetches == 1

    run(test)


def test_start_waits_for_the_retry_that_brings_the_keys(server: JwksServer) -> None:
    async def test() -> None:
        server.status = 503
        gate = Gate(server.url, retry=0.01)
        starting = asyncio.create_task(gate.ring.start())
        await until(lambda: server.fetches > 1)
        assert not starting.done()
        server.status = 200
        await starting
        assert gate.at_once(OLD_TOKEN) is None
        await gate.ring.close()

    run(test)


def test_a_rotated_key_is_fetched_for_the_request_that_brings_it(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            server.document = BOTH_SET
            assert gate.at_once(NEW_TOKEN) is Reason.TOKEN_KEY_UNKNOWN  # fetched less than min_refresh ago
            gate.ticks += 10
            assert await gate.waiting(NEW_TOKEN) is None
            assert gate.at_once(NEW_TOKEN) is None
            assert gate.at_once(OLD_TOKEN) is None
            assert server.fetches == 2

    run(test)


def test_a_rotated_key_of_tokens_without_key_id(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            server.document = BOTH_SET
            gate.ticks += 10
            assert await gate.waiting(sign("ES256", NEW)) is None
            gate.ticks += 10
            assert await gate.waiting(sign("ES256", private_key("ES256", 12))) is Reason.TOKEN_SIGNATURE_INVALID
            assert server.fetches == 3

    run(test)


def test_the_background_refresh_brings_a_rotated_key(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url, refresh=0.02)) as gate:
            server.document = NEW_SET
            await until(lambda: gate.knows(NEW_TOKEN))
            assert not gate.knows(OLD_TOKEN)

    run(test)


def test_a_withdrawn_key_is_not_accepted_from_the_cache_either(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            assert gate.at_once(OLD_TOKEN) is None
            server.document = NEW_SET
            gate.ticks += 10
            assert await gate.waiting(NEW_TOKEN) is None
            assert gate.at_once(OLD_TOKEN) is Reason.TOKEN_KEY_UNKNOWN

    run(test)


KEYLESS = [b'{"keys":[]}', jwk_set(jwk("ES256", OLD, kid="old", use="enc")), jwk_set({"kty": "AKP"}, {})]


@pytest.mark.parametrize("document", KEYLESS)
def test_a_set_without_a_usable_key_withdraws_none(server: JwksServer, document: bytes) -> None:
    async def test() -> None:
        async with started(Gate(server.url, refresh=0.02, retry=0.01, min_refresh=0.01)) as gate:
            assert gate.at_once(OLD_TOKEN) is None
            server.document = document
            fetches = server.fetches
            await until(lambda: server.fetches > fetches + 2)
            assert gate.at_once(OLD_TOKEN) is None
            gate.ticks += 3601
            assert not gate.knows(OLD_TOKEN), "it is no younger for it"
            server.document = NEW_SET
            await until(lambda: gate.knows(NEW_TOKEN))
            assert not gate.knows(OLD_TOKEN), "and one that drops this key withdraws it"

    run(test)


@pytest.mark.parametrize("document", KEYLESS)
def test_where_there_never_was_a_key_nothing_is_admitted(
    server: JwksServer, document: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_module, "FIRST_FETCH_WAIT", 0.05)
    server.document = document

    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            result = gate.ask(OLD_TOKEN)  # the fetch may still be under way on a busy machine
            assert reason_of(await result if isinstance(result, Coroutine) else result) is Reason.KEYS_UNAVAILABLE

    run(test)


def test_a_set_without_a_usable_key_is_looked_at_again_after_min_refresh() -> None:
    async def test() -> None:
        times: list[float] = []
        loop = asyncio.get_running_loop()

        async def empty(url: str, source: KeySource) -> bytes:
            times.append(loop.time())
            return OLD_SET if len(times) == 1 else b'{"keys":[]}'

        source = KeySource("jwks_url", url="http://a/", refresh=0.08, min_refresh=0.04, max_stale=1e9)
        remote = RemoteKeys(source, fetch=empty, retry=0.001)
        remote.start()
        await until(lambda: len(times) >= 5)
        await remote.close()
        first, *again = [after - before for before, after in pairwise(times)]
        assert first >= 0.08
        assert min(again) >= 0.04
        assert remote.failed >= 3
        assert remote.current() is not None

    run(test)


def test_an_unchanged_document_keeps_verified_tokens(server: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with started(Gate(server.url, refresh=0.01)) as gate:
            first = gate.ask(OLD_TOKEN)
            await until(lambda: server.fetches > 3)
            assert gate.ask(OLD_TOKEN) is first

    run(test)


def test_an_outage_is_bridged_until_the_keys_are_stale(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url, refresh=0.02, max_stale=3600.0, retry=0.01)) as gate:
            server.status = 500
            gate.ticks += 3600
            fetches = server.fetches
            await until(lambda: server.fetches > fetches + 2)
            assert gate.at_once(OLD_TOKEN) is None
            gate.ticks += 1
            assert not gate.knows(OLD_TOKEN)
            server.status = 200
            await until(lambda: gate.knows(OLD_TOKEN))

    run(test)


def test_a_stale_key_set_is_fetched_for_the_request_that_needs_it(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            gate.ticks += 3601
            assert await gate.waiting(OLD_TOKEN) is None
            assert server.fetches == 2
            server.status = 503
            gate.ticks += 3601
            assert await gate.waiting(OLD_TOKEN) is Reason.KEYS_UNAVAILABLE
            assert gate.at_once(OLD_TOKEN) is Reason.KEYS_UNAVAILABLE, "fetched less than min_refresh ago"
            assert server.fetches == 3

    run(test)


@pytest.mark.parametrize("later", [3600.0, -3600.0])
def test_the_age_of_a_key_set_does_not_follow_the_time_of_day(server: JwksServer, later: float) -> None:
    async def test() -> None:
        async with started(Gate(server.url, max_stale=60.0)) as gate:
            lasting = sign("ES256", OLD, {**CLAIMS, "iat": NOW - 7200, "exp": NOW + 7200}, {"kid": "old"})
            assert gate.at_once(lasting) is None
            assert gate.at_once(lasting, now=NOW + later) is None
            assert server.fetches == 1

    run(test)


def test_a_server_that_is_gone_is_bridged_too(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            server.close()
            gate.ticks += 10
            assert await gate.waiting(NEW_TOKEN) is Reason.TOKEN_KEY_UNKNOWN
            assert gate.at_once(OLD_TOKEN) is None

    run(test)


def test_a_first_fetch_that_fails_is_tried_again(server: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "FIRST_FETCH_WAIT", 0.05)

    async def test() -> None:
        server.status = 503
        async with started(Gate(server.url, retry=0.01)) as gate:
            assert not gate.knows(OLD_TOKEN)
            await until(lambda: server.fetches > 3)
            assert not gate.knows(OLD_TOKEN)
            server.status = 200
            await until(lambda: gate.knows(OLD_TOKEN))

    run(test)


def test_retries_back_off() -> None:
    async def test() -> None:
        loop, times, done = asyncio.get_running_loop(), [], asyncio.Event()

        async def fetch(url: str, source: KeySource) -> bytes:
            times.append(loop.time())
            if len(times) == 6:
                done.set()
            raise ConnectionRefusedError(url)

        keys = RemoteKeys(KeySource("jwks_url", url="http://127.0.0.1/"), fetch=fetch, retry=0.01)
        keys.start()
        async with asyncio.timeout(5):
            await done.wait()
        await keys.close()
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert all(pause >= 0.01 * 2**at * 0.9 for at, pause in enumerate(pauses))

    run(test)


def test_start_does_not_wait_for_ever(server: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "FIRST_FETCH_WAIT", 0.05)

    async def test() -> None:
        server.open.clear()
        async with asyncio.timeout(30), started(Gate(server.url)) as gate:
            assert not gate.knows(OLD_TOKEN)
            server.open.set()
            assert await gate.waiting(OLD_TOKEN) is None, "who needs the keys waits for the fetch that is under way"

    run(test)


def test_a_slow_fetch_holds_nobody_but_those_who_need_it(server: JwksServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "UNKNOWN_KEY_WAIT", 0.05)

    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            server.open.clear()
            server.document = BOTH_SET
            gate.ticks += 10
            pending = asyncio.ensure_future(gate.waiting(NEW_TOKEN))
            await until(lambda: server.fetches == 2)
            assert gate.at_once(OLD_TOKEN) is None
            async with asyncio.timeout(2):
                assert await pending is Reason.TOKEN_KEY_UNKNOWN
            server.open.set()
            await until(lambda: not gate.ring._remotes[gate.source]._fetching)
            assert gate.at_once(NEW_TOKEN) is None
            assert server.fetches == 2

    run(test)


def test_a_thousand_unknown_keys_at_once_are_one_fetch(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            tokens = [sign("ES256", NEW, header={"kid": f"k{at}"}) for at in range(1000)]
            assert {gate.at_once(token) for token in tokens} == {Reason.TOKEN_KEY_UNKNOWN}
            assert server.fetches == 1
            for fetches in (2, 3):
                gate.ticks += 9.9
                assert gate.at_once(tokens[0]) is Reason.TOKEN_KEY_UNKNOWN
                gate.ticks += 0.1
                assert set(await asyncio.gather(*map(gate.waiting, tokens))) == {Reason.TOKEN_KEY_UNKNOWN}
                assert {gate.at_once(token) for token in tokens} == {Reason.TOKEN_KEY_UNKNOWN}
                assert server.fetches == fetches

    run(test)


def test_tokens_that_can_not_be_good_fetch_nothing(server: JwksServer) -> None:
    async def test() -> None:
        async with started(Gate(server.url)) as gate:
            gate.ticks += 10
            for token, reason in (
                (sign("HS256", b"x" * 32, header={"kid": "x"}), Reason.TOKEN_ALGORITHM_REFUSED),
                (sign("ES256", NEW, header={"kid": "old"}), Reason.TOKEN_SIGNATURE_INVALID),
                (sign("ES256", NEW, {"iss": "https://evil.example"}, {"kid": "x"}), Reason.TOKEN_ISSUER_UNKNOWN),
                (b"x.y.z", Reason.TOKEN_MALFORMED),
            ):
                assert gate.at_once(token) is reason
            assert server.fetches == 1

    run(test)


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


LONG = BOTH_SET + b" " * MAX_DOCUMENT
BAD_ANSWERS: dict[str, dict[str, Any]] = {
    "404": {"status": 404},
    "204": {"status": 204, "document": b""},
    "a redirect": {"status": 302, "fields": {"Location": "REDIRECT"}},
    "a permanent redirect": {"status": 308, "fields": {"Location": "REDIRECT"}},
    "HTML": {"document": b"<!doctype html><title>Sign in</title>"},
    "nothing": {"document": b""},
    "a JSON list": {"document": b"[]"},
    "no key": {"document": b'{"keys":[]}'},
    "no key for signatures": {"document": jwk_set(jwk("ES256", NEW, kid="new", use="enc"))},
    "an error object": {"document": b'{"error":"try later"}'},
    "keys that are no list": {"document": b'{"keys":"none"}'},
    "a repeated member": {"document": b'{"keys":[],' + BOTH_SET[1:]},
    "cut short": {"document": BOTH_SET, "fields": {"Content-Length": "99999"}},
    "too large, as declared": {"document": LONG},
    "too large, in chunks": {"raw": chunked(LONG)},
    "too large, without length": {"raw": b"HTTP/1.1 200 OK\r\n\r\n" + LONG},
    "too large a head": {"raw": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n" + BOTH_SET},
    "no HTTP": {"raw": b"SSH-2.0-OpenSSH_9.2\r\n"},
    "closed": {"raw": b""},
    "compressed unasked": {"document": b"\x1f\x8b\x08\x00", "fields": {"Content-Encoding": "gzip"}},
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_keeps_the_keys(server: JwksServer, answer: dict[str, Any], caplog: Any) -> None:
    caplog.set_level(logging.WARNING, "mitmgate")

    async def test() -> None:
        with JwksServer(BOTH_SET) as elsewhere:
            async with started(Gate(server.url)) as gate:
                for name, value in answer.items():
                    setattr(server, name, value)
                if "REDIRECT" in str(server.fields):
                    server.fields = {"Location": elsewhere.url}
                gate.ticks += 10
                assert await gate.waiting(NEW_TOKEN) is Reason.TOKEN_KEY_UNKNOWN
                assert gate.at_once(OLD_TOKEN) is None
                assert server.fetches == 2
                assert elsewhere.fetches == 0

    run(test)
    said = [record for record in caplog.records if record.name == "mitmgate.keys.remote"]
    assert len(said) == 1
    assert "those that are kept serve" in said[0].getMessage()
    assert said[0].exc_info in {None, False}


def test_bad_members_are_said_once(server: JwksServer, caplog: Any) -> None:
    caplog.set_level(logging.WARNING, "mitmgate")
    server.document = jwk_set(jwk("ES256", OLD, kid="old"), {"kty": "AKP"})

    async def test() -> None:
        async with started(Gate(server.url, refresh=0.01)) as gate:
            await until(lambda: server.fetches > 3)
            assert gate.at_once(OLD_TOKEN) is None

    run(test)
    said = [record.getMessage() for record in caplog.records if record.name == "mitmgate.keys.remote"]
    assert said == [f"keys of {server.url}: key 2: its type (kty) is not supported"]


def test_a_secret_in_a_published_set_verifies_nothing(server: JwksServer) -> None:
    server.document = jwk_set(jwk("HS256", b"s" * 32, kid="old"), jwk("ES256", NEW, kid="new"))

    async def test() -> None:
        gate = Gate(server.url)
        gate.issuers = {"corp": replace(gate.issuers["corp"], algorithms=("HS256", "ES256"))}
        gate.ring.configure(gate.issuers)
        async with started(gate):
            forged = sign("HS256", b"s" * 32, header={"kid": "old"})
            assert gate.at_once(forged) is Reason.TOKEN_KEY_UNKNOWN
            assert gate.at_once(NEW_TOKEN) is None

    run(test)


def test_the_log_names_no_credential_of_the_address(caplog: Any) -> None:
    caplog.set_level(logging.WARNING, "mitmgate")

    async def fail(url: str, source: KeySource) -> bytes:
        raise ConnectionRefusedError

    async def test() -> None:
        keys = RemoteKeys(KeySource("jwks_url", url="http://me:hidden@127.0.0.1:9/jwks?key=hidden"), fetch=fail)
        first = keys.start()
        assert first is not None
        await first
        await keys.close()

    run(test)
    assert "http://127.0.0.1:9/jwks" in caplog.text
    assert "hidden" not in caplog.records[0].getMessage()


def second(gate: Gate, server: JwksServer) -> Issuer:
    source = replace(gate.source, url=server.url)
    return issuer(source, "ES256", name="second", issuer="https://second.example")


def test_a_reload_keeps_the_keys_whose_source_did_not_change(server: JwksServer) -> None:
    async def test() -> None:
        with JwksServer(NEW_SET) as other:
            async with started(Gate(server.url)) as gate:
                before = gate.issuers
                gate.issuers = {
                    "corp": replace(before["corp"], audience=("api://orders", "api://users")),
                    "second": second(gate, other),
                }
                await gate.ring.prepare(gate.issuers)
                assert (server.fetches, other.fetches) == (1, 1)
                gate.ring.configure(gate.issuers)
                assert gate.at_once(OLD_TOKEN) is None
                token = sign("ES256", NEW, {**CLAIMS, "iss": "https://second.example"}, {"kid": "new"})
                assert reason_of(gate.ring.authenticate(gate.issuers, ("second",), token, NOW)) is None
                assert reason_of(gate.ring.authenticate(before, ("corp",), OLD_TOKEN, NOW)) is None
                gate.ring.configure(before)
                assert list(gate.ring._remotes) == [gate.source]
                assert (server.fetches, other.fetches) == (1, 1)
                await until(lambda: len(asyncio.all_tasks()) == 2)  # this one, and the refresh that stays

    run(test)


def test_a_reload_without_preparation_waits_for_the_keys(server: JwksServer) -> None:
    async def test() -> None:
        with JwksServer(NEW_SET) as other:
            async with started(Gate(server.url)) as gate:
                gate.issuers = {"corp": replace(gate.issuers["corp"], keys=replace(gate.source, url=other.url))}
                gate.ring.configure(gate.issuers)
                assert not gate.knows(NEW_TOKEN)
                assert await gate.waiting(NEW_TOKEN) is None
                assert gate.at_once(OLD_TOKEN) is Reason.TOKEN_KEY_UNKNOWN

    run(test)


def test_issuers_with_one_source_share_the_fetch(server: JwksServer) -> None:
    async def test() -> None:
        gate = Gate(server.url)
        gate.issuers["twin"] = replace(gate.issuers["corp"], name="twin", issuer="https://twin.example")
        gate.ring.configure(gate.issuers)
        async with started(gate):
            assert gate.at_once(OLD_TOKEN) is None
            assert server.fetches == 1

    run(test)


def test_closing_leaves_nothing_behind(server: JwksServer) -> None:
    async def test() -> None:
        gate = Gate(server.url)
        async with started(gate):
            server.open.clear()
            gate.ticks += 10
            pending: Awaitable[Any] = gate.ask(NEW_TOKEN)
            asking = asyncio.ensure_future(pending)
            await until(lambda: server.fetches == 2)
        assert reason_of(await asking) is Reason.TOKEN_KEY_UNKNOWN
        gate.ticks += 10
        assert gate.at_once(NEW_TOKEN) is Reason.TOKEN_KEY_UNKNOWN  # closed: nothing is fetched any more
        assert gate.at_once(OLD_TOKEN) is None
        server.open.set()

    run(test)
