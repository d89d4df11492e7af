"""BoundedView: mitmweb keeps every flow for ever; here the oldest finished ones leave when there are too many."""

# mitmproxy's options, addon manager and view are untyped.
# mypy: allow-untyped-calls

from typing import ClassVar

from mitmproxy import ctx, exceptions
from mitmproxy.addonmanager import Loader
from mitmproxy.addons.view import View
from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow

KEEP_FLOWS = 2000
KEEP_BYTES = 256 * 1024 * 1024
KEEP_MESSAGES = 500  # of one WebSocket, the newest


class BoundedView:
    """Keep at most `mitmgate_keep_flows` flows, and `mitmgate_keep_bytes` bytes of their bodies.

    A live flow is never evicted: its request may still be decided on, and removing it from the view would kill it.
    So there may be more flows than the bound while that many are live. What leaves the view leaves its settings and
    the browser's list too.
    """

    name: ClassVar[str] = "mitmgate-bounded"

    def __init__(self, view: View) -> None:
        """view: mitmproxy's own, of the host that runs."""
        self._view = view
        self._finished: dict[str, tuple[Flow, int]] = {}  # by flow id, oldest first, with their body bytes
        self._bytes = 0
        view.sig_store_remove.connect(self._forget)
        view.sig_store_refresh.connect(self._recount)

    def load(self, loader: Loader) -> None:
        """Declare the two bounds."""
        loader.add_option("mitmgate_keep_flows", int, KEEP_FLOWS, "Keep at most this many finished flows.")
        loader.add_option("mitmgate_keep_bytes", int, KEEP_BYTES, "Keep at most this many bytes of bodies.")

    def configure(self, updated: set[str]) -> None:
        """Take new bounds. Raises OptionsError for a bound under one."""
        for name in ("mitmgate_keep_flows", "mitmgate_keep_bytes"):
            if name in updated and getattr(ctx.options, name) < 1:
                raise exceptions.OptionsError(f"{name} must be at least 1")
        if updated & {"mitmgate_keep_flows", "mitmgate_keep_bytes"}:
            self.evict()

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Make room for a flow that View has just taken."""
        self.evict()

    def response(self, flow: HTTPFlow) -> None:
        """Count the bodies of a flow that is complete."""
        self._count(flow)
        self.evict()

    error = response

    def websocket_message(self, flow: HTTPFlow) -> None:
        """Forget a WebSocket's oldest messages: mitmproxy keeps them all as long as the connection lives."""
        if flow.websocket is not None and len(flow.websocket.messages) > 2 * KEEP_MESSAGES:
            del flow.websocket.messages[:-KEEP_MESSAGES]

    def websocket_end(self, flow: HTTPFlow) -> None:
        """Count what a WebSocket leaves behind."""
        self._count(flow)
        self.evict()

    @property
    def held(self) -> int:
        """The body bytes of the finished flows that are kept."""
        return self._bytes

    def evict(self) -> None:
        """Remove the oldest finished flows until the bounds hold, or only live ones are left."""
        while self._over():
            # A flow is still live inside its own `response` hook, and an upgraded one until its WebSocket ends.
            oldest = next((flow for flow, _ in self._finished.values() if not flow.live), None)
            if oldest is not None:
                self._view.remove([oldest])  # one at a time: mitmproxy logs an alert for more
            elif not self._adopt():
                return

    def _over(self) -> bool:
        flows: int = self._view.store_count()
        options = ctx.options
        return bool(flows > options.mitmgate_keep_flows or self._bytes > options.mitmgate_keep_bytes)

    def _adopt(self) -> bool:
        """Count finished flows that no hook told of, such as duplicates. Tells whether there was any."""
        strays = [flow for flow in self._view.resolve("@all") if not flow.live and flow.id not in self._finished]
        for flow in strays:
            self._count(flow)
        return bool(strays)

    def _count(self, flow: Flow) -> None:
        if self._view.get_by_id(flow.id) is not flow:
            return
        size = body_bytes(flow)
        self._bytes += size - self._finished.get(flow.id, (flow, 0))[1]
        self._finished[flow.id] = flow, size

    def _forget(self, flow: Flow) -> None:
        self._bytes -= self._finished.pop(flow.id, (flow, 0))[1]

    def _recount(self) -> None:
        kept = {key: entry for key, entry in self._finished.items() if self._view.get_by_id(key) is not None}
        self._finished, self._bytes = kept, sum(size for _, size in kept.values())


def body_bytes(flow: Flow) -> int:
    """Return the bytes of a flow's bodies and WebSocket messages that are held in memory."""
    if not isinstance(flow, HTTPFlow):
        return 0
    size = len(flow.request.raw_content or b"")
    if flow.response is not None:
        size += len(flow.response.raw_content or b"")
    if flow.websocket is not None:
        size += sum(len(message.content) for message in flow.websocket.messages)
    return size
