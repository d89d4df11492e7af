"""The time of day is set by an hour, on and back, while a gateway runs: limits, circuits and key sets count on."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key
from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import Answered, wait_for
from tests.live.harness_upstream import Recorded, RecordingUpstream, Reply
from tests.redis_server import RedisServer
from tests.wall_clock import time_of_day

KEY = private_key("ES256")
HOUR = 3600
WINDOW = 600
LIMIT = 4


@dataclass
class Running:
    """A gateway whose time of day the test sets."""

    gateway: Gateway
    keys: JwksServer
    upstream: RecordingUpstream
    offset: Path

    def set_clock(self, seconds: int) -> None:
        """Set the gateway's time of day to ours and so many seconds; return when it shows."""
        self.offset.write_text(f"{seconds:+d}")

        def shows() -> bool:
            date = self.gateway.get("/health").one("date")
            assert date is not None
            return abs(parsedate_to_datetime(date).timestamp() - time.time() - seconds) < 60

        wait_for(shows, f"the time of day to be set by {seconds} s")

    def ask(self, path: str, subject: str) -> Answered:
        now = int(time.time())
        token = mint(
            subject, key=KEY, algorithm="ES256", headers={"kid": "one"}, iat=now - 3 * HOUR, exp=now + 3 * HOUR
        )
        return self.gateway.get(path, token=token)


@pytest.fixture(scope="module", params=["memory", "redis"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp(request.param)
    offset = directory / "offset"
    with ExitStack() as stack:

        def answer(asked: Recorded) -> Reply:
            return Reply(500 if "/bad" in asked.target else 200)

        upstream = stack.enter_context(RecordingUpstream(answer))
        keys = stack.enter_context(JwksServer(jwk_set(jwk("ES256", KEY, kid="one"))))
        made = policy(directory, upstream)
        if request.param == "redis":
            made["store"] = {"url": stack.enter_context(RedisServer(directory)).url, "timeout": "5s"}
        made["identity"]["issuers"]["dev"] |= {"algorithms": ["ES256"], "keys": {"jwks_url": keys.url}}
        made["rate_limits"]["per-user"] = {"limit": LIMIT, "window": f"{WINDOW}s", "key": "principal"}
        circuit = {"failures": 2, "open_for": f"{WINDOW}s", "window": f"{WINDOW}s"}
        for name in ("failing", "working"):
            made["upstreams"][name] = {"endpoints": [upstream.url], "circuit": circuit}
            made["routes"].append({"name": name, "match": {"prefix": f"/{name}"}, "upstream": name, "auth": "none"})
        environment = time_of_day(offset)
        gateway = stack.enter_context(Gateway(write_policy(directory, made), environment=environment))
        yield Running(gateway, keys, upstream, offset)


@pytest.mark.parametrize(("before", "after"), [(0, HOUR), (HOUR, 0)], ids=["an hour on", "an hour back"])
def test_nothing_is_decided_by_a_clock_that_was_set(running: Running, before: int, after: int) -> None:
    running.set_clock(before)
    subject, gateway = f"alice-{before}", running.gateway
    assert [running.ask("/api/v1/users", subject).status for _ in range(LIMIT - 1)] == [200] * (LIMIT - 1)
    if before == 0:
        assert [gateway.get("/failing/bad").status for _ in range(3)] == [500, 500, 503]
    assert gateway.get("/working/bad").status == 500, "one failure"
    gateway.get("/working")
    seen = len(running.upstream.requests)

    running.set_clock(after)
    assert [running.ask("/api/v1/users", subject).status for _ in range(3)] == [200, 429, 429]
    wait = int(running.ask("/api/v1/users", subject).one("retry-after") or 0)
    assert WINDOW - 300 < wait <= WINDOW, "the truth, or a slow machine"
    fresh = [running.ask("/api/v1/users", f"bob-{before}").status for _ in range(LIMIT + 1)]
    assert fresh == [200] * LIMIT + [429]
    refused = gateway.get("/failing")
    assert refused.reason == "circuit-open"
    assert WINDOW - 300 < int(refused.one("retry-after") or 0) <= WINDOW
    assert [gateway.get("/working").status for _ in range(3)] == [200] * 3
    assert len(running.upstream.requests) == seen + 1 + LIMIT + 3
    assert running.keys.fetches == 1, "no key set is older for it"
