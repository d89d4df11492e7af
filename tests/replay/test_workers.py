"""Recording, shadow and canary with two workers: each has its own, and their recordings are one."""

import json
import threading
from pathlib import Path

from mitmgate.replay.offline import load_offline
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.run import replay
from tests.live.harness import Gateway, mint, policy, route, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer


def test_two_workers_record_shadow_and_refuse(tmp_path: Path) -> None:
    with RecordingUpstream() as upstream, RedisServer(tmp_path) as redis:
        made = policy(tmp_path, upstream, store={"url": redis.url}, audit={})
        made["rate_limits"]["per-user"]["limit"] = 1000
        kept = json.dumps(made)
        candidate = route(json.loads(kept), "users", require={"scopes_all": ["nobody.has.it"]})
        path = tmp_path / "traffic.mitm"
        shadow = str(write_policy(tmp_path, candidate, "candidate.yaml"))
        options = ("--workers", "2", "--record", str(path), "--canary", "500", "--shadow", shadow)
        with Gateway(write_policy(tmp_path, made), arguments=options) as gateway:
            statuses: list[int] = []

            def ask(number: int) -> None:
                for each in range(20):
                    statuses.append(gateway.get(f"/api/v1/users/{each}", token=mint(f"user-{number}")).status)
                    statuses.append(gateway.get(f"/api/v1/orders/{each}").status)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(statuses) == [200] * 160 + [401] * 160, "the shadow has no effect"
            write_policy(tmp_path, route(json.loads(kept), "orders", auth="none", require={}))
            wait_for(lambda: gateway.log.count("the canary refuses it") == 2, "both canaries to refuse")
            assert gateway.get("/api/v1/orders/1").status == 401
        write_policy(tmp_path, json.loads(kept))
        files = sorted(tmp_path.glob("traffic*.mitm"))
        assert len(files) == 2, "a recording of each worker"
        parts = [len(open_traffic([str(file)])) for file in files]
        report = replay(open_traffic([str(file) for file in files]), load_offline(str(tmp_path / "policy.yaml"), {}))
        assert all(parts) and sum(parts) == report.decided == 321
        assert report.tally.total == 0, report.tally.groups
