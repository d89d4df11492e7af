"""What mitmweb shows of a flow: no credential, and the URL that was asked for.

mitmweb's own list has whole requests, and the URL that was asked of the service; for a refused one the name that does
not resolve to which the reverse proxy points. The flow itself stays as it is: what is downloaded or exported is what
was sent.
"""

# mitmweb's functions are untyped.
# mypy: allow-untyped-calls, allow-untyped-defs

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, ClassVar

from mitmproxy import http
from mitmproxy.flow import Flow
from mitmproxy.http import HTTPFlow
from mitmproxy.tools.web import app
from mitmproxy.websocket import WebSocketMessage

from mitmgate.audit.redact import Redaction, mark
from mitmgate.audit.settings import Redact
from mitmgate.core.authority import parse_authority
from mitmgate.core.credentials import hide_in_body
from mitmgate.inspect.again import asked
from mitmgate.inspect.annotate import METADATA
from mitmgate.policy.snapshot import Snapshot

_PORTS = {"http": 80, "https": 443}


class Shown:
    """Put a redacting function in the place of mitmweb's `flow_to_json`, as long as the gateway is loaded."""

    name: ClassVar[str] = "mitmgate-shown"

    def __init__(self, policy: Callable[[], Snapshot]) -> None:
        """policy: returns the policy in force, or raises LookupError."""
        self._policy = policy
        self._original: Callable[[Flow], dict[str, Any]] | None = None

    def running(self) -> None:
        """Take the place."""
        if self._original is None:
            self._original = app.flow_to_json
            app.flow_to_json = self.flow

    def done(self) -> None:
        """Give it back."""
        if self._original is not None:
            app.flow_to_json, self._original = self._original, None  # type: ignore[assignment]  # as above

    def flow(self, flow: Flow) -> dict[str, Any]:
        """Describe a flow for the browser."""
        original = self._original or app.flow_to_json
        made: dict[str, Any] = original(flow)
        if not isinstance(flow, HTTPFlow):
            return made
        redaction = redaction_in_force(self._policy)
        saved = flow.metadata.get(METADATA)
        request = made["request"]
        if isinstance(saved, dict) and isinstance(saved.get("ingress"), dict):
            request |= _asked(asked(flow, saved["ingress"]))
        request["path"] = redaction.target(request["path"])
        request["method"] = redaction.path(request["method"])
        for name in ("host", "pretty_host"):
            request[name] = redaction.path(request[name].rpartition("@")[2])
        for message in (request, made.get("response") or {}):
            for part in ("headers", "trailers"):
                if part in message:
                    message[part] = tuple(
                        [(redaction.name(name), redaction.field(name, value)) for name, value in message[part]]
                    )
        if "error" in made:
            made["error"] = {**made["error"], "msg": hide_in_body(made["error"]["msg"], mark, ids=True)}
        return made


def redaction_in_force(policy: Callable[[], Snapshot]) -> Redaction:
    """Make the redaction that the policy asks for. policy: returns the one in force, or raises LookupError."""
    try:
        return Redaction(policy().redact)
    except LookupError:
        return Redaction(Redact())


def _asked(ingress: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of a request's URL as it was asked for."""
    target, scheme = str(ingress["target"]), str(ingress["scheme"])
    fields = ingress["headers"]
    named = {str(name).lower(): str(value) for name, value in fields} if isinstance(fields, list | tuple) else {}
    authority = str(ingress["authority"]) or named.get("host", "")
    before, separator, rest = target.partition("://")
    if separator and "/" not in before:  # absolute form
        scheme, authority = before, rest.partition("/")[0]
        target = "/" + rest.partition("/")[2]
    authority = authority.rpartition("@")[2]
    host, port = parse_authority(authority) or (authority, None)
    return {
        "scheme": scheme,
        "host": host,
        "pretty_host": host,
        "port": port or _PORTS.get(scheme, 80),
        "path": target,
        "method": ingress["method"],
    }


def shown_message[M: http.Message | WebSocketMessage](message: M) -> M:
    """Return a message whose body shows no credential, where it is text; any other stays as it is."""
    data = message.get_content(strict=False) if isinstance(message, http.Message) else message.content
    if not data:
        return message
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return message
    hidden = shown_text(text).encode()
    if hidden == data:
        return message
    copied = copy(message)
    if isinstance(copied, http.Message):
        copied = copied.copy()
        copied.headers.pop("content-encoding", None)
        copied.raw_content = hidden
    else:
        copied.content = hidden
    return copied


def shown_text(text: str) -> str:
    """Hide credentials in a body, or in what a content view has made of one."""
    return "\n".join([hide_in_body(line, mark, ids=True) for line in text.split("\n")])
