"""Annotate: writes each decision on its flow, where mitmweb shows it while the request is still on its way."""

import weakref
from typing import ClassVar

from mitmproxy.connection import Client
from mitmproxy.http import HTTPFlow

from mitmgate.audit.mirror import mirror
from mitmgate.inspect.kept import close
from mitmgate.inspect.summary import summarise
from mitmgate.inspect.why import METADATA_WHY, Why
from mitmgate.pipeline.exchange import exchange_of

METADATA = "mitmgate"


class Annotate:
    """Set flow.comment, flow.marked and flow.metadata["mitmgate"]; why it was denied, too.

    Stands behind Enforcer, so that `requestheaders` shows the decision that was enforced; the later hooks add what
    became of it. mitmproxy tells the view after every hook, and the view tells the browser. A comment that a person
    wrote is kept.

    mitmweb's filters, in its search field: `~comment ^DENY`, `~comment token-expired`, `~comment "route users"`;
    a marker as `~marker red_circle` in commands and options (in the browser, which has the emoji: `~marker 🔴`);
    `~meta scope-missing` finds a reason in the whole verdict.
    """

    name: ClassVar[str] = "mitmgate-annotate"

    def __init__(self, why: Why | None = None) -> None:
        """Remember what was written, to tell it from a person's words. why: explains denials."""
        self._why = why or Why()
        self._written: weakref.WeakKeyDictionary[HTTPFlow, str] = weakref.WeakKeyDictionary()
        self._ending: list[HTTPFlow] = []  # past their last hook but one: some are still live

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Show the decision, before the service or the client has it."""
        self._close_ended()
        self._annotate(flow)

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Show that a response begins."""
        self._annotate(flow)

    def response(self, flow: HTTPFlow) -> None:
        """Show what became of it; the exchange goes when the flow has ended, which is after its last hook."""
        self._annotate(flow)
        if flow.websocket is None:
            self._ending.append(flow)

    def error(self, flow: HTTPFlow) -> None:
        """Show what went wrong."""
        self._annotate(flow)
        self._ending.append(flow)

    def websocket_end(self, flow: HTTPFlow) -> None:
        """Note the end of a WebSocket."""
        self._ending.append(flow)

    def client_disconnected(self, client: Client) -> None:
        """Let go of the exchanges of flows that have ended."""
        self._close_ended()

    def _close_ended(self) -> None:
        still = [flow for flow in self._ending if flow.live]
        for flow in self._ending:
            if not flow.live:
                close(flow)
                self._written.pop(flow, None)
        self._ending = still

    def _annotate(self, flow: HTTPFlow) -> None:
        exchange = exchange_of(flow)
        if exchange is None and not flow.live:
            return  # loaded from a file: it brings its own
        summary = summarise(exchange, flow)
        if flow.comment in ("", self._written.get(flow)):
            flow.comment = self._written[flow] = summary.comment
            flow.marked = summary.marker
        if exchange is not None:
            flow.metadata[METADATA] = mirror(exchange)
            if METADATA_WHY not in flow.metadata and (why := self._why(exchange)):
                flow.metadata[METADATA_WHY] = why
