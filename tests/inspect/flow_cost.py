"""A program: mitmweb with the gateway in it, and what its kept flows cost there. Prints one line of JSON.

Run: python -m tests.inspect.flow_cost POLICY PORT WEB_PORT TOKEN. Bytes are tracemalloc's, so that neither the
allocator nor the machine has a say; types are counted after a full collection.
"""

import asyncio
import gc
import json
import os
import sys
import threading
import time
import tracemalloc

from mitmproxy.http import HTTPFlow
from mitmproxy.options import Options
from mitmproxy.proxy.layer import Layer

from mitmgate.host.serve import MODE, load_for_host
from mitmgate.inspect import web
from mitmgate.inspect.bounded import KEEP_FLOWS
from mitmgate.pipeline.exchange import Exchange, exchanges
from tests.live.harness_http import request, status_of, wait_for
from tests.protocol.harness import connect, receive

FLOWS = 200


def deny(port: int) -> None:
    """Post a body that is denied while it is on its way."""
    with connect(port) as link:
        link.sendall(b"POST /api/v1/orders HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 300_000)
        assert status_of(receive(link, complete=True)) == 401


def admit(port: int, token: str) -> None:
    """Post a small body that is admitted."""
    headers = {"Authorization": f"Bearer {token}"}
    assert request(port, "POST", "/api/v1/orders", headers=headers, body=b"x" * 100).status == 200


def count(kind: type) -> int:
    """Count the objects of a type that live."""
    return sum(isinstance(each, kind) for each in gc.get_objects())


def measure(port: int, action: object) -> dict[str, float]:
    """Return what FLOWS flows of a kind left behind: bytes each, and objects in all."""

    def settled() -> bool:
        gc.collect()
        return count(Layer) == 0

    for _ in range(FLOWS // 2):  # fills free lists and caches
        action()  # type: ignore[operator]
    wait_for(settled, "connections to end")
    flows, before = count(HTTPFlow), tracemalloc.get_traced_memory()[0]
    for _ in range(FLOWS):
        action()  # type: ignore[operator]
    wait_for(settled, "connections to end")
    bytes_each = (tracemalloc.get_traced_memory()[0] - before) / FLOWS
    return {
        "flows": count(HTTPFlow) - flows,
        "bytes": bytes_each,
        "exchanges": count(Exchange),
        "registered": len(exchanges()),
    }


def clients(port: int, token: str) -> None:
    """Wait for the host, measure, print, end the process."""
    try:
        while True:
            try:
                connect(port).close()
                break
            except OSError:
                time.sleep(0.05)
        gc.unfreeze()  # so that `gc.get_objects` shows everything
        tracemalloc.start()
        told = {"denied": measure(port, lambda: deny(port)), "admitted": measure(port, lambda: admit(port, token))}
        print(json.dumps(told), flush=True)
        os._exit(0)
    finally:
        os._exit(1)


def main() -> None:
    """Run the host in the main thread, which takes the signals, and the clients in another."""
    policy, port, web_port, token = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    threading.Thread(target=clients, args=(port, token), daemon=True).start()
    settings: dict[str, object] = {"web_host": "127.0.0.1", "web_open_browser": False, "web_port": web_port}
    options = Options(mode=[MODE], listen_host="127.0.0.1", listen_port=port)
    asyncio.run(web._run(load_for_host(policy), options, settings, KEEP_FLOWS))


if __name__ == "__main__":
    main()
