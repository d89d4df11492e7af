"""What mitmdump prints of flows: no credential. It writes whole URLs, and with `flow_detail` fields and bodies."""

# mitmproxy's addon manager and options are untyped.
# mypy: allow-untyped-calls

from collections.abc import Callable
from copy import copy
from typing import ClassVar, Final

from mitmproxy.addonmanager import Loader
from mitmproxy.addons.dumper import Dumper
from mitmproxy.flow import Error
from mitmproxy.http import Headers, HTTPFlow

from mitmgate.audit.redact import Redaction, mark
from mitmgate.core.credentials import hide_in_body
from mitmgate.inspect.shown import redaction_in_force, shown_message
from mitmgate.policy.snapshot import Snapshot

_HOOKS: Final = ("response", "error", "http_connect_error", "websocket_message", "websocket_end")


class Printed:
    """Give mitmdump's dumper redacted copies of the flows, as long as the gateway is loaded. Flows stay as they are."""

    name: ClassVar[str] = "mitmgate-printed"

    def __init__(self, dumper: Dumper, policy: Callable[[], Snapshot]) -> None:
        """dumper: the host's. policy: returns the policy in force, or raises LookupError."""
        self._dumper = dumper
        self._policy = policy

    def load(self, loader: Loader) -> None:
        """Stand before the dumper's hooks."""
        for name in _HOOKS:
            setattr(self._dumper, name, self._before(getattr(self._dumper, name)))

    def done(self) -> None:
        """Leave."""
        for name in _HOOKS:
            vars(self._dumper).pop(name, None)

    def _before(self, hook: Callable[[HTTPFlow], None]) -> Callable[[HTTPFlow], None]:
        return lambda flow: hook(_redacted(flow, redaction_in_force(self._policy)))


def _redacted(flow: HTTPFlow, redaction: Redaction) -> HTTPFlow:
    """Return a copy of a flow for people to read."""
    made = copy(flow)
    made.request = request = shown_message(flow.request).copy()
    request.path = redaction.target(request.path)
    request.method = redaction.path(request.method)
    request.host = redaction.path(request.host)
    request.authority = request.authority.rpartition("@")[2]
    request.headers = _fields(request.headers, redaction)
    request.trailers = None if request.trailers is None else _fields(request.trailers, redaction)
    if flow.response is not None:
        made.response = response = shown_message(flow.response).copy()
        response.headers = _fields(response.headers, redaction)
        response.trailers = None if response.trailers is None else _fields(response.trailers, redaction)
    if flow.error is not None:
        made.error = Error(_text(flow.error.msg), flow.error.timestamp)
    if flow.websocket is not None:
        made.websocket = websocket = copy(flow.websocket)
        websocket.messages = [shown_message(message) for message in websocket.messages[-1:]]
        if websocket.close_reason is not None:
            websocket.close_reason = _text(websocket.close_reason)
    return made


def _fields(fields: Headers, redaction: Redaction) -> Headers:
    decoded = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields.fields]
    return Headers(
        [
            (redaction.name(name).encode("latin-1"), redaction.field(name, value).encode("latin-1"))
            for name, value in decoded
        ]
    )


def _text(text: str) -> str:
    return hide_in_body(text, mark, ids=True)
