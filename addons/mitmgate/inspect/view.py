"""The content view "Gateway": in mitmweb, a flow's body gives place to the decision on it."""

from typing import ClassVar

from mitmproxy import contentviews
from mitmproxy.addonmanager import Loader
from mitmproxy.contentviews import Contentview, Metadata, SyntaxHighlight

from mitmgate.inspect.report import has_decision, report, was_admitted

_OURS = 2.0  # above the JSON view, which has 1
_PROBLEM = b'{"type":"urn:mitmgate:problem:'  # as core.problem writes it: a service's own problems stay JSON
_EMPTY = 0.2  # above the raw view, which has 0.1; below the query view, which has 0.3


class GatewayContentview(Contentview):
    """Show the decision of a flow: the verdict, each stage's word and time, what came in and what went up.

    Chosen by itself for both messages of a request that no service got, and where there is nothing else to see: an
    empty body, or one that was not kept, because it was streamed or never read. mitmproxy asks no view about the
    latter ("Content is missing"): in mitmweb `live.py` does. For any other body the view has to be asked for, so that
    a service's JSON stays JSON.
    """

    name = "Gateway"
    syntax_highlight: SyntaxHighlight = "yaml"

    def prettify(self, data: bytes, metadata: Metadata) -> str:
        """Return the report of the flow; data is not read."""
        return report(metadata.flow)

    def render_priority(self, data: bytes, metadata: Metadata) -> float:
        """Put the view first for the gateway's own errors, before Raw for empty bodies, and nowhere else."""
        if metadata.http_message is None or not has_decision(metadata.flow):
            return -1.0
        if data.startswith(_PROBLEM) or not was_admitted(metadata.flow):
            return _OURS
        return 0.0 if data else _EMPTY


class GatewayView:
    """Register the content view while the gateway is loaded."""

    name: ClassVar[str] = "mitmgate-view"

    def __init__(self) -> None:
        """Make the one view, so that only it is taken out again."""
        self._view = GatewayContentview()

    def load(self, loader: Loader) -> None:
        """Add the view to mitmproxy's."""
        contentviews.add(self._view)

    def done(self) -> None:
        """Take the view out. mitmproxy 12.3 has no call for that: its own `contentviews.remove` does nothing."""
        views = contentviews.registry._by_name
        if views.get("gateway") is self._view:
            del views["gateway"]
