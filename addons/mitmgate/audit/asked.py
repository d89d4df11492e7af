"""What a request asked for, as an event says it: text that the client chose, decoded and redacted."""

from mitmgate.audit.record import Event
from mitmgate.audit.redact import SHOWN, Redaction
from mitmgate.core.request import Head, Request


def add_asked(event: Event, request: Request, head: Head | None, redaction: Redaction) -> None:
    """Add method, host, path, query and user agent. head: the request after Hygiene, None where it was refused."""
    method = request.method
    event["method"] = redaction.path(method if method.isascii() else wire_text(method))
    if head is not None:
        event["host"] = redaction.path(head.host)
        event["path"] = redaction.path(head.path)
        query = head.query
    else:
        event["host"], event["path"], query = _unread(request.target, _host_field(request), redaction)
    if query is not None:
        event["query"] = redaction.query(wire_text(query))
    agents = request.headers.all(b"user-agent")
    if agents:
        event["user_agent"] = redaction.field("user-agent", _text(agents[0], SHOWN))


def wire_text(text: str, most: int | None = None) -> str:
    """Read text that was decoded as ISO-8859-1 as the UTF-8 that it most likely is; stray bytes become escapes.

    most: as in `_text`.
    """
    if text.isascii():
        return text
    try:
        return _text(text.encode("latin-1"), most)
    except UnicodeEncodeError:  # it is no wire text
        return text


def _text(octets: bytes, most: int | None = None) -> str:
    """Decode UTF-8; stray bytes become escapes, as `backslashreplace` writes them, which takes a µs for each.

    most: characters that will be looked at; behind them stray bytes stay surrogates, which are counted, not written.
    """
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        text = octets.decode("utf-8", "surrogateescape")
        marked = text[:most].encode("utf-8", "backslashreplace").replace(b"\\udc", b"\\x").decode("utf-8")
        return marked if most is None else marked + text[most:]


def _host_field(request: Request) -> str:
    hosts = request.headers.all(b"host")
    return request.authority or (hosts[0].decode("latin-1") if hosts else "")


def _without_userinfo(authority: str) -> str:
    """Drop `user:password@` (RFC 3986, section 3.2.1)."""
    return authority.rpartition("@")[2]


def _unread(target: str, host: str, redaction: Redaction) -> tuple[str, str, str | None]:
    """Split a target that Hygiene has not accepted into host, path and query, for people to read."""
    target = wire_text(target)
    host = wire_text(_without_userinfo(host), SHOWN)
    ends = [at for at in (target.find("?"), target.find("#")) if at >= 0]
    path, query = (target[: min(ends)], target[min(ends) + 1 :]) if ends else (target, None)
    if not path.startswith("/"):
        scheme, separator, rest = path.partition("://")
        if separator:
            authority, slash, rest = rest.partition("/")
            path = f"{scheme}://{_without_userinfo(authority)}{slash}{rest}"
        else:
            path = _without_userinfo(path)
    return redaction.path(host), redaction.path(path), query
