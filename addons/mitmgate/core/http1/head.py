"""Message heads: one pass over the bytes from the first line to the empty one."""

import re
from typing import Final, NamedTuple

from mitmgate.core.cause import Cause
from mitmgate.core.headers import Headers, listed
from mitmgate.core.http1.bounds import Bounds
from mitmgate.core.http1.recorded import FORM, asked, shown, shown_authority
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

TEXT: Final = b"\t\r\n" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
"""What a head may be made of: field-content, obs-text, and line ends, whose places are checked apart."""

TARGET: Final = bytes(octet for octet in range(0x21, 0x7F) if octet != ord("#"))
TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++")
_METHODS: Final = frozenset(b"GET HEAD POST PUT DELETE OPTIONS PATCH".split())
_VERSIONS: Final = {b"HTTP/1.1": "HTTP/1.1", b"HTTP/1.0": "HTTP/1.0"}
_OTHER_VERSION: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
_STATUS: Final = re.compile(rb"(HTTP/1\.[01]) ([1-5][0-9][0-9])(?: ([\t -~\x80-\xff]*))?")
LENGTH: Final = re.compile(rb"0|[1-9][0-9]{0,14}")
_OPAQUE: Final = frozenset({204, 304})

_NAMES: Final = (
    b"Accept Accept-Charset Accept-Encoding Accept-Language Accept-Ranges Access-Control-Allow-Credentials "
    b"Access-Control-Allow-Headers Access-Control-Allow-Methods Access-Control-Allow-Origin "
    b"Access-Control-Expose-Headers Access-Control-Max-Age Access-Control-Request-Headers "
    b"Access-Control-Request-Method Age Allow Alt-Svc Authorization Cache-Control Connection Content-Disposition "
    b"Content-Encoding Content-Language Content-Length Content-Location Content-Range Content-Security-Policy "
    b"Content-Type Cookie DNT Date ETag Expect Expires Forwarded From Host Idempotency-Key If-Match "
    b"If-Modified-Since If-None-Match If-Range If-Unmodified-Since Keep-Alive Last-Modified Link Location "
    b"Max-Forwards Origin Pragma Priority Proxy-Authorization Range Referer Referrer-Policy Retry-After "
    b"Sec-CH-UA Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User "
    b"Sec-WebSocket-Accept Sec-WebSocket-Extensions Sec-WebSocket-Key Sec-WebSocket-Protocol Sec-WebSocket-Version "
    b"Server Set-Cookie Strict-Transport-Security TE Trailer Transfer-Encoding Upgrade Upgrade-Insecure-Requests "
    b"User-Agent Vary Via WWW-Authenticate X-Content-Type-Options X-Forwarded-For X-Forwarded-Host "
    b"X-Forwarded-Proto X-Frame-Options X-Powered-By X-Real-IP X-Request-ID X-Requested-With traceparent "
    b"tracestate".split()
)
KNOWN: Final = {spelling: name.lower() for name in _NAMES for spelling in (name, name.lower(), name.title())}


class RequestHead(NamedTuple):
    """A request's head. target is as on the wire. body: the bytes that follow; None: chunked.

    version: "HTTP/1.1" or "HTTP/1.0". keep_alive: whether the client wants the connection to stay.
    """

    method: bytes
    target: bytes
    version: str
    headers: Headers
    body: int | None
    keep_alive: bool
    expects_continue: bool


class ResponseHead(NamedTuple):
    """A response's head. body: the bytes that follow; None: chunked; -1: until the connection closes."""

    status: int
    phrase: bytes
    version: str
    headers: Headers
    body: int | None
    keep_alive: bool


def parse_request(raw: bytes, bounds: Bounds) -> RequestHead | Refusal:
    """Parse a request's head. raw: everything before the empty line, without the line end before it."""
    lines = raw.split(b"\r\n")
    flaw = _flaw(raw, len(lines) - 1)
    if flaw is not None:
        return Refusal(Reason.HEAD_MALFORMED, flaw, *asked(raw))
    parts = lines[0].split(b" ")
    if len(parts) != 3:
        detail = "The request line is not a method, a target and a version."
        return Refusal(Reason.HEAD_MALFORMED, detail, *asked(lines[0]))
    method, target, version_text = parts
    if method not in _METHODS and TOKEN.fullmatch(method) is None:
        return Refusal(Reason.HEAD_MALFORMED, "The method is not a token.", *asked(lines[0]))
    version = _VERSIONS.get(version_text)
    if version is None:
        if _OTHER_VERSION.fullmatch(version_text) is None:
            return Refusal(Reason.HEAD_MALFORMED, "The request line has no HTTP version.", *asked(lines[0]))
        detail = "Only HTTP/1.0 and HTTP/1.1 are spoken here."
        return Refusal(Reason.VERSION_UNSUPPORTED, detail, method, shown(target))
    refusal = _target_flaw(method, target, bounds)
    if refusal is not None:
        return refusal
    if len(lines) - 1 > bounds.fields:
        return Refusal(Reason.HEAD_TOO_LARGE, f"The head has more than {bounds.fields} header fields.", method, target)
    headers = parse_fields(lines, 1)
    if isinstance(headers, str):
        return Refusal(Reason.HEAD_MALFORMED, headers, method, target)
    body = _framing(headers, version)
    if isinstance(body, str):
        return Refusal(Reason.FRAMING_AMBIGUOUS, body, method, target, headers.fields)
    expects_continue = False
    if b"expect" in headers and version == "HTTP/1.1":
        expects_continue = [value.lower() for value in headers.all(b"expect")] == [b"100-continue"]
        if not expects_continue:
            return Refusal(
                Reason.EXPECTATION_REFUSED, "The only expectation is 100-continue.", method, target, headers.fields
            )
    return RequestHead(method, target, version, headers, body, _keep_alive(headers, version), expects_continue)


def _target_flaw(method: bytes, target: bytes, bounds: Bounds) -> Refusal | None:
    if not target or target.translate(None, TARGET):
        detail = "The request target holds a character that must be percent-encoded."
        return Refusal(Reason.TARGET_INVALID, detail, method, shown(target))
    if method == b"CONNECT":
        return Refusal(Reason.METHOD_INVALID, "CONNECT is not taken here.", method, shown_authority(target))
    if not target.startswith(b"/") and FORM.match(target) is None:
        detail = "The request target must be a path that starts with a slash."
        return Refusal(Reason.TARGET_INVALID, detail, method, shown(target))
    if len(target) > bounds.target:
        detail = f"The request target is longer than {bounds.target} bytes."
        return Refusal(Reason.TARGET_TOO_LONG, detail, method, shown(target))
    return None


def parse_line(line: bytes, before: RequestHead, bounds: Bounds) -> RequestHead | None:
    """Parse a request line whose fields are, octet for octet, those of an earlier request.

    None where anything about the line is not usual: `parse_request` then says what is wrong with the head, if anything.
    """
    parts = line.split(b" ")
    if len(parts) != 3:
        return None
    method, target, version = parts
    if (
        method not in _METHODS
        or _VERSIONS.get(version) != before.version
        or not target.startswith(b"/")
        or len(target) > bounds.target
        or target.translate(None, TARGET)
        or len(before.headers.fields) > bounds.fields
    ):
        return None
    _, _, version_text, headers, body, keep_alive, expects_continue = before
    return RequestHead(method, target, version_text, headers, body, keep_alive, expects_continue)


def parse_response(raw: bytes, method: bytes, bounds: Bounds) -> ResponseHead | Refusal:
    """Parse the head of the response to a request with this method."""
    lines = raw.split(b"\r\n")
    flaw = _flaw(raw, len(lines) - 1)
    if flaw is not None:
        return _malformed(flaw)
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        return _malformed("The status line is malformed.")
    if len(lines) - 1 > bounds.response_fields:
        return _malformed("The head has too many header fields.", Cause.HEAD_TOO_LARGE)
    headers = parse_fields(lines, 1, spaced=True)
    if isinstance(headers, str):
        return _malformed(headers)
    version, status, phrase = match[1].decode("ascii"), int(match[2]), match[3] or b""
    body = _framing(headers, version)
    if isinstance(body, str):
        return _malformed(body, Cause.FRAMING_AMBIGUOUS)
    if status < 200 or status in _OPAQUE or method == b"HEAD":
        body = 0  # RFC 9112, section 6.3: whatever the fields say
    elif body == 0 and b"content-length" not in headers:
        body = -1
    return ResponseHead(status, phrase, version, headers, body, _keep_alive(headers, version) and body != -1)


def parse_fields(lines: list[bytes], start: int, *, spaced: bool = False) -> Headers | str:
    """Parse field lines (RFC 9112, section 5), from lines[start] on; a text says what is wrong.

    spaced: whitespace before a colon is taken away, as it must be in responses (section 5.1); in a request it is an
    error.
    """
    fields: list[tuple[bytes, bytes]] = []
    index: dict[bytes, list[bytes]] = {}
    for at in range(start, len(lines)):
        name, colon, value = lines[at].partition(b":")
        lower = KNOWN.get(name)
        if lower is None:
            if spaced:
                name = name.rstrip(b" \t")
            if not colon or TOKEN.fullmatch(name) is None:
                return "A header field's line is folded, or its name is not a token followed by a colon."
            lower = name.lower()
        elif not colon:
            return "A header field has no colon."
        value = value.strip(b" \t")
        fields.append((name, value))
        if lower in index:
            index[lower].append(value)
        else:
            index[lower] = [value]
    return Headers(tuple(fields), index)


def _flaw(raw: bytes, breaks: int) -> str | None:
    """Find what no head may hold. breaks: how many line ends (CRLF) it has."""
    if raw.count(b"\n") != breaks or raw.count(b"\r") != breaks:
        return "The head holds a CR or an LF that ends no line."
    if raw.translate(None, TEXT):
        return "The head holds a control character."
    return None


def _framing(headers: Headers, version: str) -> int | str | None:
    """Say how long the body is (RFC 9112, section 6.3): bytes, None for chunked; a text says why nobody can know.

    Content-Length given twice, even with one value, is refused: no honest client sends it.
    """
    codings = headers.all(b"transfer-encoding")
    lengths = headers.all(b"content-length")
    if codings:
        if lengths:
            return "Transfer-Encoding and Content-Length exclude each other."
        if version == "HTTP/1.0":
            return "HTTP/1.0 has no Transfer-Encoding."
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            return "The only transfer coding is chunked, once."
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or LENGTH.fullmatch(lengths[0]) is None:
        return "Content-Length is not one number."
    return int(lengths[0])


def _keep_alive(headers: Headers, version: str) -> bool:
    """Tell whether the connection may stay (RFC 9112, section 9.3); HTTP/1.0 connections never do."""
    if version == "HTTP/1.0":
        return False
    values = headers.all(b"connection")
    if not values or values == [b"keep-alive"]:
        return True
    return not listed(values, b"close")


def _malformed(detail: str, cause: Cause = Cause.HEAD_MALFORMED) -> Refusal:
    return Refusal(Reason.UPSTREAM_MALFORMED, detail, cause=cause)
