"""What is kept of a finished request: its verdict is on the flow, and here is the little that only its exchange knew.

An exchange with its ingress snapshot, its clean head and its steps is most of what a flow costs in mitmweb's memory,
and all of it stands in `flow.metadata["mitmgate"]` once more.
"""

import weakref
from collections.abc import Sequence
from typing import Final, NamedTuple

from mitmproxy.connection import Server
from mitmproxy.http import HTTPFlow

from mitmgate.core.circuit import Permit
from mitmgate.core.request import Forward
from mitmgate.core.rules import Endpoint
from mitmgate.core.window import Grant
from mitmgate.inspect.summary import summarise
from mitmgate.pipeline.exchange import Exchange, forget
from mitmgate.policy.snapshot import Snapshot


class Kept(NamedTuple):
    """The members of an exchange that its mirror has not. comment: the gateway's own, whatever a person wrote."""

    comment: str
    snapshot: Snapshot
    grants: Sequence[Grant]
    endpoint: Endpoint | None
    permit: Permit | None
    forward: Forward | None


_NOWHERE: Final = Server(address=None)
"""The upstream connection of every finished flow that had none."""

_KEPT: weakref.WeakKeyDictionary[HTTPFlow, Kept] = weakref.WeakKeyDictionary()


def kept_of(flow: HTTPFlow) -> Kept | None:
    """Return what is known of a finished flow beside its mirror; None for one that was loaded from a file."""
    return _KEPT.get(flow)


def close(flow: HTTPFlow) -> None:
    """Let the exchange of a flow go that has ended: no hook of it comes any more."""
    exchange = forget(flow)
    if exchange is not None:
        _KEPT[flow] = kept(exchange, flow)
        if flow.server_conn.address is None:  # mitmproxy makes one for each connection, also where none is opened
            flow.server_conn = _NOWHERE


def kept(exchange: Exchange, flow: HTTPFlow) -> Kept:
    """Take what is to be kept of an exchange."""
    comment = summarise(exchange, flow).comment
    return Kept(
        flow.comment if flow.comment == comment else comment,  # one text, not two
        exchange.snapshot,
        tuple(exchange.grants),
        exchange.endpoint,
        exchange.permit,
        exchange.forward,
    )
