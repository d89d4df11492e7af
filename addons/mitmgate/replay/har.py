"""HAR files (HTTP Archive 1.2), as browsers and proxies export them, as recordings.

A HAR is one JSON document and is read as a whole. Chrome leaves cookies and Authorization out unless it is asked for
"HAR with sensitive data". It also lists what never left the browser: what the cache had, and what CORS or a connection
that failed kept from being sent; of those no gateway can decide anything.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

from mitmgate.core.headers import Headers
from mitmgate.core.request import Request
from mitmgate.replay.flow_state import declared_body, http_version
from mitmgate.replay.traffic import DAMAGE, Aftermath, Entry, Listed, Recorded, Skipped, plausible
from mitmgate.usage import UserError

Members = Mapping[str, object]

_PEER = "127.0.0.1"
"""A HAR does not say where the client was."""


def read_har(name: str, data: bytes) -> Listed:
    """Read a HAR; its entries in the order in which they were started. Raises UserError where it is none."""
    try:
        document = json.loads(data.decode("utf-8-sig"))
        entries = document["log"]["entries"]
        if not isinstance(entries, list):
            raise TypeError("entries")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: starts like JSON, and is no HAR: it has no log.entries") from error
    read = [_entry(number, entry) for number, entry in enumerate(entries, 1)]
    read.sort(key=lambda entry: entry.at if isinstance(entry, Recorded) else 0.0)
    return Listed(name, read)


def _entry(number: int, entry: object) -> Entry:
    identity = f"entry-{number}"
    try:
        if not isinstance(entry, dict):
            return Skipped(identity, "damaged")
        return plausible(_recorded(identity, entry))
    except DAMAGE:
        return Skipped(identity, "damaged")


def _recorded(identity: str, entry: Members) -> Entry:
    request = _members(entry["request"])
    url = urlsplit(str(request["url"]))
    if url.scheme not in {"http", "https", "ws", "wss"}:
        return Skipped(identity, "no HTTP request")
    response = _members(entry.get("response") or {})
    if entry.get("_fromCache"):
        return Skipped(identity, "answered by the browser's cache")
    if request.get("httpVersion") == "" and response.get("status") == 0:
        return Skipped(identity, "never sent by the browser")
    at = _seconds(str(entry["startedDateTime"]))
    listed = request["headers"]
    pairs = [_pair(field) for field in listed] if isinstance(listed, list) else []
    pseudo = {name: value for name, value in pairs if name.startswith(b":")}
    fields = [(name, value) for name, value in pairs if not name.startswith(b":")]
    version = http_version(str(request.get("httpVersion", "HTTP/1.1")))
    if version not in {"HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3.0"}:
        version = "HTTP/1.1"
    authority = pseudo.get(b":authority", b"").decode("latin-1")
    host = url.netloc.rpartition("@")[2]
    if not authority and not any(name.lower() == b"host" for name, _ in fields):
        fields.insert(0, (b"Host", host.encode("latin-1")))
    headers = Headers(fields)
    path = url.path or "/"
    size = request.get("bodySize")
    status = response.get("status")
    status = status if isinstance(status, int) and status > 0 else None
    return Recorded(
        id=identity,
        at=at,
        request=Request(
            method=str(request["method"]),
            target=f"{path}?{url.query}" if url.query else path,
            version=version,
            headers=headers,
            scheme="https" if url.scheme in {"https", "wss"} else "http",
            authority=authority,
            peer=_PEER,
            declared_body=declared_body(headers, size if isinstance(size, int) and size > 0 else 0),
        ),
        aftermath=None if status is None else Aftermath(at + _head_time(entry), status),
        response_status=status,
    )


def _head_time(entry: Members) -> float:
    """Return the seconds until the response's head was there."""
    timings = _members(entry.get("timings") or {})
    names = ("blocked", "dns", "connect", "send", "wait")
    found = [timings.get(name) for name in names]
    waited = sum(value for value in found if isinstance(value, int | float) and value > 0)
    total = entry.get("time")
    return (waited or (total if isinstance(total, int | float) and total > 0 else 0.0)) / 1000


def _seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _members(value: object) -> Members:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value


def _pair(field: object) -> tuple[bytes, bytes]:
    """Read a header field; most programs write {name, value}, one writes [name, value]."""
    name, value = (field["name"], field["value"]) if isinstance(field, dict) else tuple(field)  # type: ignore[arg-type]  # what is neither raises
    return _octets(str(name)), _octets(str(value))


def _octets(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8")
