"""HTTP/2 messages, validated again before they become another connection's (RFC 9113, sections 8.2 and 8.3)."""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from mitmgate.core.cause import Cause
from mitmgate.core.headers import Fields, Headers
from mitmgate.core.http1.bounds import Bounds
from mitmgate.core.http1.framing import BODILESS
from mitmgate.core.http1.head import LENGTH, TARGET, TEXT, TOKEN, ResponseHead
from mitmgate.core.http1.names import LOWER
from mitmgate.core.http1.recorded import FORM, shown, shown_authority
from mitmgate.core.http1.writer import end_to_end
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Forward

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]++")
_FORBIDDEN: Final = frozenset(
    b"connection keep-alive proxy-connection transfer-encoding upgrade http2-settings".split()
)
_VALUE: Final = TEXT.translate(None, b"\r\n")
_STATUS: Final = re.compile(rb"[2-5][0-9][0-9]")
_WITH_CONTENT: Final = frozenset({b"POST", b"PUT", b"PATCH"})
_OVERHEAD: Final = 32  # what a field counts for beside its bytes: RFC 9113, section 6.5.2
_CRUMB: Final = len(b"cookie") + _OVERHEAD - len(b"; ")  # what a further piece of a cookie does not count for


class Http2Request(NamedTuple):
    """A request as it may be written in HTTP/1.1. length: bytes of the body; None: not known until its end."""

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    fields: Fields
    length: int | None
    expects_continue: bool


def read_request(
    fields: Iterable[tuple[bytes, bytes]], scheme: bytes, ended: bool, bounds: Bounds
) -> Http2Request | Refusal:
    """Read a header section. scheme: the connection's. ended: no body follows."""
    fields = tuple(fields)
    read = _read(fields, scheme, ended, bounds)
    if isinstance(read, Refusal) and not read.fields:  # so that a browser may show what was wrong
        return read._replace(fields=tuple(field for field in fields if field[0] == b"origin"))
    return read


def _read(fields: Fields, scheme: bytes, ended: bool, bounds: Bounds) -> Http2Request | Refusal:
    pseudo: dict[bytes, bytes] = {}
    kept: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + _OVERHEAD
        if name.startswith(b":"):
            if kept or name in pseudo:
                return _malformed("A pseudo-header field is repeated, or follows a header field.", pseudo)
            pseudo[name] = value
            continue
        flaw = _flaw(name, value)
        if flaw is not None:
            return _malformed(flaw, pseudo)
        kept.append((name, value))
    crumbs = len(kept)
    kept = _joined_cookies(kept)
    size -= (crumbs - len(kept)) * _CRUMB
    if size > bounds.head or len(kept) > bounds.fields:
        detail = f"The head is larger than {bounds.head} bytes, or has too many fields."
        return _malformed(detail, pseudo)._replace(reason=Reason.HEAD_TOO_LARGE)
    head = _target(pseudo, scheme, bounds)
    if isinstance(head, Refusal):
        return head
    method, authority, path = head
    lengths = [value for name, value in kept if name == b"content-length"]
    if len(lengths) > 1 or (lengths and LENGTH.fullmatch(lengths[0]) is None):
        return Refusal(Reason.FRAMING_AMBIGUOUS, "Content-Length is not one number.", method, path, tuple(kept))
    if ended and lengths and lengths[0] != b"0":  # RFC 9113, section 8.1.1
        detail = f"The request has no body, and declares one of {lengths[0].decode('ascii')} bytes."
        return Refusal(Reason.LENGTH_MISMATCH, detail, method, path, tuple(kept))
    expectations = [value.lower() for name, value in kept if name == b"expect"]
    if expectations and expectations != [b"100-continue"]:
        return Refusal(Reason.EXPECTATION_REFUSED, "The only expectation is 100-continue.", method, path, tuple(kept))
    length = int(lengths[0]) if lengths else 0 if ended else None
    return Http2Request(method, scheme, authority, path, tuple(kept), length, bool(expectations))


def write_request(
    forward: Forward, scheme: bytes, length: int | None, *, takes_trailers: bool, announced: bytes = b""
) -> Fields | None:
    """Make the header section of a request to a service; None where a part of it can't be sent safely.

    length: bytes of the body; None: not known. takes_trailers: whether the client does (RFC 9110, section 10.1.4).
    announced: trailers that may follow the body.
    """
    method, target = forward.method.encode("latin-1"), forward.target.encode("latin-1")
    authority = forward.host.encode("latin-1")
    if TOKEN.fullmatch(method) is None or method == b"CONNECT":
        return None
    if not target or not authority or target.translate(None, TARGET) or authority.translate(None, TARGET):
        return None
    fields = [(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", target)]
    for name, value in end_to_end(forward.fields):
        lower, stripped = LOWER[name], value.strip(b" \t")
        if lower == b"host":
            continue
        if _flaw(lower, stripped) is not None:
            return None
        fields.append((lower, stripped))
    if length or (length == 0 and method in _WITH_CONTENT):
        fields.append((b"content-length", b"%d" % length))
    if takes_trailers:
        fields.append((b"te", b"trailers"))
    if announced:
        fields.append((b"trailer", announced))
    return tuple(fields)


def read_response(
    fields: Iterable[tuple[bytes, bytes]], ended: bool, method: bytes, bounds: Bounds
) -> ResponseHead | Refusal:
    """Read a response's header section. ended: no body follows. method: of the request that it answers."""
    status: int | None = None
    kept: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + _OVERHEAD
        if name == b":status" and status is None and not kept and _STATUS.fullmatch(value) is not None:
            status = int(value)
            continue
        flaw = "A pseudo-header field is not known, or repeated." if name.startswith(b":") else _flaw(name, value)
        if flaw is not None:
            return _unread(Cause.HEAD_MALFORMED, flaw)
        kept.append((name, value))
    if status is None or status == 101:  # RFC 9113, section 8.6
        return _unread(Cause.HEAD_MALFORMED, "The response has no status, or one that HTTP/2 does not have.")
    if size > bounds.response_head + _OVERHEAD * len(kept) or len(kept) > bounds.response_fields:
        return _unread(Cause.HEAD_TOO_LARGE, "The head is too large.")
    headers = Headers(tuple(kept))
    lengths = headers.all(b"content-length")
    if len(lengths) > 1 or (lengths and LENGTH.fullmatch(lengths[0]) is None):
        return _unread(Cause.FRAMING_AMBIGUOUS, "Content-Length is not one number.")
    body = int(lengths[0]) if lengths else None
    if ended or method == b"HEAD" or status in BODILESS:
        body = 0
    return ResponseHead(status, b"", "HTTP/2.0", headers, body, True)


def _unread(cause: Cause, detail: str) -> Refusal:
    return Refusal(Reason.UPSTREAM_MALFORMED, detail, cause=cause)


def trailers_flaw(fields: Iterable[tuple[bytes, bytes]], bounds: Bounds) -> str | None:
    """Say what is wrong with trailers (RFC 9113, section 8.1); None: nothing is."""
    size = 0
    count = 0
    for name, value in fields:
        size += len(name) + len(value) + _OVERHEAD
        count += 1
        if name.startswith(b":"):
            return "A pseudo-header field is among the trailers."
        if name == b"content-length":
            return "Content-Length is among the trailers."
        flaw = _flaw(name, value)
        if flaw is not None:
            return flaw
    if size > bounds.head or count > bounds.fields:
        return f"The trailers are larger than {bounds.head} bytes, or have too many fields."
    return None


def _joined_cookies(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Join what HTTP/2 may send in pieces (RFC 9113, section 8.2.3)."""
    cookies = [value for name, value in fields if name == b"cookie"]
    if len(cookies) < 2:
        return fields
    rest = [field for field in fields if field[0] != b"cookie"]
    return [*rest, (b"cookie", b"; ".join(cookies))]


def _flaw(name: bytes, value: bytes) -> str | None:
    if _NAME.fullmatch(name) is None:
        return "A field name is not a lower-case token."
    if value.translate(None, _VALUE) or value.strip(b" \t") != value:
        return "A field value holds a control character, or begins or ends with a space."
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        return "A field is of the connection, which HTTP/2 does not have."
    return None


def _target(pseudo: dict[bytes, bytes], scheme: bytes, bounds: Bounds) -> tuple[bytes, bytes, bytes] | Refusal:
    method = pseudo.pop(b":method", b"")
    authority = pseudo.pop(b":authority", b"")
    given_scheme = pseudo.pop(b":scheme", b"")
    path = pseudo.pop(b":path", b"")
    if TOKEN.fullmatch(method) is None:
        return Refusal(Reason.HEAD_MALFORMED, "The method is not a token.", target=shown(path))
    if method == b"CONNECT":
        detail = "CONNECT is not taken here."
        return Refusal(Reason.METHOD_INVALID, detail, method, shown(path) if path else shown_authority(authority))
    if pseudo:
        return Refusal(Reason.HEAD_MALFORMED, "A pseudo-header field is not known.", method, shown(path))
    if not path or path.translate(None, TARGET) or authority.translate(None, TARGET):
        detail = "The request target holds a character that must be percent-encoded."
        return Refusal(Reason.TARGET_INVALID, detail, method, shown(path))
    if len(path) > bounds.target:
        detail = f"The request target is longer than {bounds.target} bytes."
        return Refusal(Reason.TARGET_TOO_LONG, detail, method, shown(path))
    if given_scheme != scheme:
        return Refusal(Reason.TARGET_INVALID, "The scheme is another than the connection has.", method, shown(path))
    if FORM.match(path) is None:  # RFC 9113, section 8.3.1
        detail = "The request target must be a path that starts with a slash."
        return Refusal(Reason.TARGET_INVALID, detail, method, shown(path))
    return method, authority, path


def _malformed(detail: str, pseudo: dict[bytes, bytes]) -> Refusal:
    method = pseudo.get(b":method", b"")
    target = shown(pseudo.get(b":path", b""))
    return Refusal(Reason.HEAD_MALFORMED, detail, method if TOKEN.fullmatch(method) else b"", target)
