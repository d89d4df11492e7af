"""What a stage of the operator's own costs a request beside the gateway's: `python -m bench.own_stages`.

The least of many short rounds of CPU time of this thread, so that what else the machine does is not in it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import thread_time

from mitmgate.chain import stages
from mitmgate.core.headers import Headers
from mitmgate.core.request import Request
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Row, Stage
from mitmgate.policy.watcher import PolicySource
from mitmgate.services import open_services
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.own import OwnStage

STAGE = '''"""Stages that do nothing, or little."""
from mitmgate.stage import Facts, Options, Reason, Stage, Step

class Nothing(Stage[Options]):
    reasons = (Reason("nothing-refused", 403, "Refused"),)

    def decide(self, facts: Facts) -> Step:
        return self.admit()

class Agent(Nothing):
    def decide(self, facts: Facts) -> Step:
        agent = facts.headers.get("user-agent")
        return self.deny("nothing-refused") if agent == "curl" else self.admit()
'''
POLICY = """\
version: 1
upstreams: {service: {endpoints: ["http://127.0.0.1:9"]}}
stages:
  nothing: {use: stage.py:Nothing, after: routing}
  agent: {use: stage.py:Agent, after: nothing}
routes: [{name: all, match: {prefix: /}, upstream: service, auth: none}]
"""
ROUNDS, REQUESTS = 40, 1000


FIELDS = ((b"Host", b"gateway.test"), (b"User-Agent", b"Firefox/140"))


def measure() -> dict[str, float]:
    """Return microseconds a request by the name of the stage: what it adds to a row that another one is in."""
    with TemporaryDirectory() as directory:
        (Path(directory) / "stage.py").write_text(STAGE)
        (Path(directory) / "policy.yaml").write_text(POLICY)
        source = PolicySource(Path(directory) / "policy.yaml", {})
    chain = stages(source, open_services(source.snapshot), own=source.snapshot.own)
    arrival = next(stage for stage in chain if isinstance(stage, Arrival))
    exchange = arrival.begin(Request("GET", "/", "HTTP/1.1", Headers(FIELDS), "http", "", "127.0.0.1", declared_body=0))
    Row(chain[1:4]).run(exchange)  # up to Routing
    routing = chain[3]
    alone = least([routing], exchange)
    return {stage.name: least([routing, stage], exchange) - alone for stage in chain if isinstance(stage, OwnStage)}


def least(row: list[Stage], exchange: Exchange) -> float:
    """Return the microseconds that a row of stages takes at the least."""
    run = Row(row).run
    steps, seconds = exchange.verdict.going_on
    before, best = len(steps), float("inf")
    for _ in range(ROUNDS):
        started = thread_time()
        for _ in range(REQUESTS):
            run(exchange)
            del steps[before:], seconds[before:]
        best = min(best, (thread_time() - started) / REQUESTS)
    return best * 1e6


if __name__ == "__main__":
    for name, microseconds in measure().items():
        print(f"{name}: {microseconds:.2f} µs a request")
