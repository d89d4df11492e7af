"""What mitmweb's own handlers must not do: change a flow between its decision and its end, send one again, fail.

And what a person sees first of its page: reasons that can be read, and the Gateway view where a body was not kept.

The protocol layer sends what was decided, whatever the flow says by then (`proxy/transaction.py`). So an edit
of a live flow would only make mitmweb show what nobody has sent. A finished flow may be edited; a comment always.
"""

# mitmweb's handlers are untyped.
# mypy: allow-untyped-calls

import json
from io import BytesIO
from typing import Any, Final

from mitmproxy import http
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
    IndexHandler,
    ReplayFlow,
    RevertFlow,
)

from mitmgate.audit.redact import REDACTED
from mitmgate.inspect.report import has_decision, report
from mitmgate.inspect.shown import shown_message, shown_text

_NO_RESPONSE = "This request has no response."
_FLOW = r"/flows/(?P<flow_id>[0-9a-f\-]+)"
_OUR_VIEWS: Final = frozenset({"auto", "gateway"})
_STYLE: Final = b"""<style>
.flow-table .col-comment { width: 54% }
.flow-table .col-status { width: 62px }
.main-view:not(.vertical) .flow-detail { width: 72% }
</style>"""
"""The reason of a decision has room beside an open flow from 1280 pixels on; mitmweb gives comments 150."""


class _Index(IndexHandler):
    """`GET /`."""

    def get(self) -> None:
        """Write mitmweb's page with columns that reasons fit into."""
        self.write(self.render_string("../index.html").replace(b"</head>", _STYLE + b"</head>"))

    post = get


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
        self.request.body = json.dumps(_unhidden(self.json, self.flow)).encode()
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
        if self.flow in self.view:  # the browser shows it: this is the one that a person has chosen
            self.view.focus.flow = self.flow
        super().get(flow_id, message, content_view)

    def message_to_json(self, view_name: str, message: Any, flow: Any, *args: Any, **named: Any) -> dict[str, Any]:
        """Render a message without its credentials; the decision, where there is no message."""
        missing = isinstance(message, http.Message) and message.raw_content is None
        if missing and view_name.lower() in _OUR_VIEWS and has_decision(flow):
            return {"text": report(flow), "view_name": "Gateway", "syntax_highlight": "yaml", "description": ""}
        made: dict[str, Any] = super().message_to_json(view_name, shown_message(message), flow, *args, **named)
        made["text"] = shown_text(made["text"])
        return made


def _unhidden(change: dict[str, Any], flow: Flow) -> dict[str, Any]:
    """Put back what was shown hidden, and comes back so: mitmweb sends all fields of a message when one is edited."""
    made = dict(change)
    for part in ("request", "response"):
        message, changed = getattr(flow, part, None), made.get(part)
        if not isinstance(message, http.Message) or not isinstance(changed, dict):
            continue
        made[part] = changed = dict(changed)
        for fields, held in (("headers", message.headers), ("trailers", message.trailers)):
            if isinstance(changed.get(fields), list) and held is not None:
                changed[fields] = _fields(changed[fields], held)
    return made


def _fields(changed: list[Any], held: http.Headers) -> list[Any]:
    made, met = [], dict[str, int]()
    for field in changed:
        if not isinstance(field, list) or len(field) != 2 or not all(isinstance(text, str) for text in field):
            return changed  # mitmproxy says what is wrong with it
        name, value = field
        before, place = held.get_all(name), met.get(name.lower(), 0)
        met[name.lower()] = place + 1
        made.append([name, before[place] if REDACTED in value and place < len(before) else value])
    return made


def refuse_live_edits(app: Application) -> None:
    """Put the checks before mitmweb's own handlers. tornado asks a host's handlers before the ones for any host."""
    app.add_handlers(
        r".*",
        [
            (r"/", _Index),
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
