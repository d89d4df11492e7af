"""What mitmweb's own handlers must not do: change a flow between its decision and its end, send one again, fail.

The protocol layer sends what was decided, whatever the flow says by then (`proxy/transaction.py`). So an edit
of a live flow would only make mitmweb show what nobody has sent. A finished flow may be edited; a comment always.
"""

# mitmweb's handlers are untyped.
# mypy: allow-untyped-calls

from io import BytesIO
from typing import Any

from mitmproxy.exceptions import FlowReadException
from mitmproxy.flow import Flow
from mitmproxy.io import FlowReader
from mitmproxy.tools.web.app import (
    APIError,
    Application,
    DumpFlows,
    FlowContent,
    FlowContentView,
    FlowHandler,
    ReplayFlow,
    RevertFlow,
)

from mitmgate.inspect.shown import shown_message, shown_text

_NO_RESPONSE = "This request has no response."
_FLOW = r"/flows/(?P<flow_id>[0-9a-f\-]+)"


def _refuse_live(flow: Flow) -> None:
    if flow.live:
        raise APIError(409, "A request can't be edited while it is live: what was decided is what is sent.")


class _Update(FlowHandler):
    """`PUT /flows/ID`."""

    def put(self, flow_id: str) -> None:
        """Take a comment or a marker; refuse a change of a live flow's messages."""
        if not isinstance(self.json, dict):
            raise APIError(400, "A change is an object: its members are those of the flow that change.")
        if self.json.keys() - {"comment", "marked"}:
            _refuse_live(self.flow)
        if "response" in self.json and getattr(self.flow, "response", None) is None:
            raise APIError(409, _NO_RESPONSE)
        try:
            super().put(flow_id)
        except (AttributeError, TypeError, ValueError) as error:  # a port that is no number, a list that is none
            self.flow.revert()
            raise APIError(400, f"The change can't be made: {error}") from error


class _Open(DumpFlows):
    """`GET` and `POST /flows/dump`."""

    async def post(self) -> None:
        """Look at the whole file before the list makes room for what it holds."""
        try:
            for _ in FlowReader(BytesIO(self.filecontents)).stream():
                pass
        except FlowReadException as error:
            raise APIError(400, f"This is no file of flows that can be read: {error}") from error
        await super().post()


class _Revert(RevertFlow):
    """`POST /flows/ID/revert`."""

    def post(self, flow_id: str) -> None:
        """Refuse to put an earlier state of a live flow in place."""
        _refuse_live(self.flow)
        super().post(flow_id)


class _Replay(ReplayFlow):
    """`POST /flows/ID/replay`."""

    def post(self, flow_id: str) -> None:
        """Refuse: what mitmproxy would send, no stage has decided on."""
        raise APIError(409, "A request can't be replayed here: it would reach the service undecided. Send it again.")


class _Content(FlowContent):
    """`GET` and `POST /flows/ID/request/content.data`."""

    def get(self, flow_id: str, message: str) -> None:
        """Refuse a download of nothing."""
        part = getattr(self.flow, message, None)
        if not getattr(part, "raw_content", None):
            raise APIError(409, "There is no body to download: it is empty, or passed without being kept.")
        super().get(flow_id, message)

    def post(self, flow_id: str, message: str) -> None:
        """Refuse another body for a live flow."""
        _refuse_live(self.flow)
        if getattr(self.flow, message, None) is None:
            raise APIError(409, _NO_RESPONSE)
        super().post(flow_id, message)


class _View(FlowContentView):
    """`GET /flows/ID/request/content/VIEW`."""

    def get(self, flow_id: str, message: str, content_view: str) -> None:
        """Refuse to render a response that there is none of."""
        if message == "response" and getattr(self.flow, message, None) is None:
            raise APIError(409, _NO_RESPONSE)
        super().get(flow_id, message, content_view)

    def message_to_json(self, view_name: str, message: Any, *args: Any, **named: Any) -> dict[str, Any]:
        """Render a message without its credentials."""
        made: dict[str, Any] = super().message_to_json(view_name, shown_message(message), *args, **named)
        made["text"] = shown_text(made["text"])
        return made


def refuse_live_edits(app: Application) -> None:
    """Put the checks before mitmweb's own handlers. tornado asks a host's handlers before the ones for any host."""
    app.add_handlers(
        r".*",
        [
            (r"/flows/dump", _Open),
            (_FLOW, _Update),
            (_FLOW + r"/revert", _Revert),
            (_FLOW + r"/replay", _Replay),
            (_FLOW + r"/(?P<message>request|response|messages)/content.data", _Content),
            (
                _FLOW
                + r"/(?P<message>request|response|messages)/content/(?P<content_view>[0-9a-zA-Z\-\_%]+)(?:\.json)?",
                _View,
            ),
        ],
    )
