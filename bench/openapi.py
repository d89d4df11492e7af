"""What an OpenAPI document of 1,000 operations costs a request: `python -m bench.openapi`.

The least of many short rounds of CPU time of this thread, so that what else the machine does is not in it.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import repeat

from bench.own_stages import FIELDS, least
from mitmgate.chain import stages
from mitmgate.core.headers import Headers
from mitmgate.core.request import Request
from mitmgate.pipeline.stage import Row
from mitmgate.policy.watcher import PolicySource
from mitmgate.services import open_services
from mitmgate.stages.arrival import Arrival
from mitmgate.stages.openapi import OpenApi
from mitmgate.stages.routing import Routing

OPERATIONS = 1000
OPERATION = """\
  /area{area}/things{number}/{{id}}/parts/{{part}}:
    get:
      parameters:
        - {{name: id, in: path, required: true, schema: {{type: integer, format: int64, minimum: 1}}}}
        - {{name: part, in: path, required: true, schema: {{type: string, pattern: "^[a-z-]+$"}}}}
        - {{name: limit, in: query, schema: {{type: integer, minimum: 1, maximum: 100}}}}
        - {{name: tags, in: query, schema: {{type: array, items: {{enum: [new, old]}}}}}}
        - {{name: X-Trace, in: header, schema: {{type: string, maxLength: 32}}}}
"""
POLICY = """\
version: 1
upstreams: {service: {endpoints: ["http://127.0.0.1:9"]}}
routes: [{name: all, match: {prefix: /}, upstream: service, auth: none, openapi: {document: api.yaml}}]
"""
ASKED = {
    "two parameters of the path": "/area7/things707/12345/parts/left-wheel",
    "and three values of the query": "/area7/things707/12345/parts/left-wheel?limit=50&tags=new&tags=old",
    "percent-encoded": "/area7/things707/12345/parts/left-wheel?limit=%35%30&tags=%6Eew",
    "outside": "/area7/things1707/12345/parts/left-wheel?limit=50",
}


def measure() -> dict[str, float]:
    """Return microseconds a request by what is asked for: what the stage adds to a row that another one is in."""
    with TemporaryDirectory() as directory:
        text = "".join(OPERATION.format(area=number % 10, number=number) for number in range(OPERATIONS))
        (Path(directory) / "api.yaml").write_text("openapi: 3.1.0\npaths:\n" + text)
        (Path(directory) / "policy.yaml").write_text(POLICY)
        source = PolicySource(Path(directory) / "policy.yaml", {})
    chain = stages(source, open_services(source.snapshot))
    arrival = next(stage for stage in chain if isinstance(stage, Arrival))
    routing = next(stage for stage in chain if isinstance(stage, Routing))
    described = next(stage for stage in chain if isinstance(stage, OpenApi))
    found = {}
    for name, target in ASKED.items():
        request = Request("GET", target, "HTTP/1.1", Headers(FIELDS), "http", "", "127.0.0.1", declared_body=0)
        exchange = arrival.begin(request)
        Row(chain[1 : chain.index(routing) + 1]).run(exchange)
        if name == "outside":  # what is denied has no row behind it
            found[name] = min(repeat(partial(described.decide, exchange), number=1000, repeat=40)) * 1000
        else:
            found[name] = least([routing, described], exchange) - least([routing], exchange)
    return found


if __name__ == "__main__":
    for name, microseconds in measure().items():
        print(f"{name}: {microseconds:.2f} µs a request")
