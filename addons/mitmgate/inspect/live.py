"""What mitmweb's editor must not do: change a flow between its decision and its end.

The protocol layer sends what was decided, whatever the flow says by then (`engine/layer_stream_request.py`). So an edit
of a live flow would only make mitmweb show what nobody has sent. A finished flow may be edited; a comment always.
"""

# mitmweb's handlers are untyped.
# mypy: allow-untyped-calls

from mitmproxy.flow import Flow
from mitmproxy.tools.web.app import APIError, Application, FlowContent, FlowHandler, RevertFlow

_FLOW = r"/flows/(?P<flow_id>[0-9a-f\-]+)"


def _refuse_live(flow: Flow) -> None:
    if flow.live:
        raise APIError(409, "A request can't be edited while it is live: what was decided is what is sent.")


class _Update(FlowHandler):
    """`PUT /flows/ID`."""

    def put(self, flow_id: str) -> None:
        """Take a comment or a marker; refuse a change of a live flow's messages."""
        if self.json.keys() - {"comment", "marked"}:
            _refuse_live(self.flow)
        super().put(flow_id)


class _Revert(RevertFlow):
    """`POST /flows/ID/revert`."""

    def post(self, flow_id: str) -> None:
        """Refuse to put an earlier state of a live flow in place."""
        _refuse_live(self.flow)
        super().post(flow_id)


class _Content(FlowContent):
    """`POST /flows/ID/request/content.data`."""

    def post(self, flow_id: str, message: str) -> None:
        """Refuse another body for a live flow."""
        _refuse_live(self.flow)
        super().post(flow_id, message)


def refuse_live_edits(app: Application) -> None:
    """Put the checks before mitmweb's own handlers. tornado asks a host's handlers before the ones for any host."""
    app.add_handlers(
        r".*",
        [
            (_FLOW, _Update),
            (_FLOW + r"/revert", _Revert),
            (_FLOW + r"/(?P<message>request|response|messages)/content.data", _Content),
        ],
    )
