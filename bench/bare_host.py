"""The host of `serve` and its protocol layer without the chain: what every request costs before anything is decided.

One stand-in admits everything and sends it to the policy's first route as it came. `python bare_host.py POLICY PORT`
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from mitmproxy.http import HTTPFlow
from mitmproxy.options import Options

from mitmgate import collector, process_log
from mitmgate.core.request import Forward
from mitmgate.core.verdict import Verdict
from mitmgate.host.master import LeanMaster
from mitmgate.hostoptions import required_options
from mitmgate.pipeline.enforcer import point_at
from mitmgate.pipeline.exchange import Exchange, begin
from mitmgate.policy.watcher import PolicySource
from mitmgate.proxy.listener import Listener
from mitmgate.stages.arrival import ingress


class AdmitAll:
    """Do what the protocol layer needs, and no more."""

    name = "admit-all"

    def __init__(self, source: PolicySource) -> None:
        """source: its first route names the upstream."""
        self._snapshot = source.snapshot
        self._route = source.snapshot.routes.routes[0]

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Admit the request."""
        snapshot, now = self._snapshot, time.time()
        request = ingress(flow)
        exchange = Exchange(snapshot, request, "", now, time.perf_counter(), Verdict(snapshot.digest))
        exchange.forward = Forward(request.method, request.target, "", request.headers.fields)
        exchange.route = self._route
        exchange.endpoint = self._route.upstream.endpoints[0]
        exchange.admitted = True
        begin(flow, exchange)
        point_at(flow, exchange.endpoint)


async def main(policy: str, port: int) -> None:
    """Proxy until the process is ended."""
    source = PolicySource(Path(policy), os.environ)
    options = Options()
    master = LeanMaster(options)
    options.update(mode=[f"reverse:http://upstream.invalid@127.0.0.1:{port}"])
    options.update(**required_options(options))
    master.addons.add(Listener(source, lambda exchange, reason: None), AdmitAll(source))
    collector.settle()
    await master.run()


if __name__ == "__main__":
    process_log.configure()
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
