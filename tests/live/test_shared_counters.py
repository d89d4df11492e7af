"""Two gateway processes on one Redis: one limit, exact, whatever process a request meets."""

import http.client
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.live.harness import Gateway, mint, policy_file
from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer

CLIENTS = 32


def test_32_clients_over_two_processes_get_the_limit_and_no_more(tmp_path: Path, upstream: RecordingUpstream) -> None:
    token = mint("racer")
    with RedisServer(tmp_path) as redis:
        path = policy_file(tmp_path, upstream, store={"url": redis.url, "timeout": "2s"})
        with Gateway(path) as one, Gateway(path) as two:

            def client(number: int) -> list[int]:
                gateway = (one, two)[number % 2]
                link = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
                try:
                    return [gateway.get("/api/v1/users", token=token, connection=link).status for _ in range(5)]
                finally:
                    link.close()

            with ThreadPoolExecutor(CLIENTS) as pool:
                statuses = Counter(status for got in pool.map(client, range(CLIENTS)) for status in got)
            assert statuses == {200: 100, 429: CLIENTS * 5 - 100}
            upstream.assert_saw_only(100)
            answered = two.get("/api/v1/users", token=token)
            assert answered.reason == "quota-exceeded"
            assert 1 <= int(answered.one("retry-after") or 0) <= 60
