"""Credentials of browsers, whose scripts can't set every header field: a cookie, a subprotocol, a ticket.

They are taken out of the head before anything reads it, on every route, so that no service, rule or record has them; a
route says which of them it accepts. A browser sends cookies with requests that pages of others make, too, so where one
has come, the page counts as well (RFC 6455, section 10.2; Fetch Metadata Request Headers, section 2.4).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote

from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head

Place = Literal["header", "cookie", "subprotocol", "ticket"]

SUBPROTOCOL: Final = b"bearer."
"""How a subprotocol begins that is a token; a token has no character that a name of a subprotocol can't have, but for
"/" and "=" of opaque ones (RFC 9110, section 5.6.2)."""

AMBIGUOUS: Final = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds more than one credential.")
FOREIGN: Final = Refusal(Reason.ORIGIN_NOT_ALLOWED, "The page that asks is not of an origin that is allowed here.")
_UNSAID: Final = Refusal(
    Reason.ORIGIN_NOT_ALLOWED, "A cookie counts here only where the request says of which origin its page is."
)
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Places:
    """Where a policy looks for credentials beside Authorization. cookie: its name; ticket: the parameter's name."""

    cookie: bytes | None = None
    subprotocol: bool = False
    ticket: str | None = None


class Carried(NamedTuple):
    """What was taken out of a head."""

    cookies: tuple[bytes, ...] = ()
    subprotocols: tuple[bytes, ...] = ()
    tickets: tuple[bytes, ...] = ()


NOTHING: Final = Carried()


class Shown(NamedTuple):
    """A token or ticket, and where it was."""

    place: Place
    text: bytes


def take(head: Head, places: Places) -> tuple[Head, Carried]:
    """Take the credentials of these places out of a head."""
    cookies: tuple[bytes, ...] = ()
    subprotocols: tuple[bytes, ...] = ()
    tickets: tuple[bytes, ...] = ()
    headers, query = head.headers, head.query
    if places.cookie is not None and b"cookie" in headers:
        headers, cookies = _without(headers, b"cookie", b";", partial(cookie_of, name=places.cookie))
    if places.subprotocol and b"sec-websocket-protocol" in headers:
        headers, subprotocols = _without(headers, b"sec-websocket-protocol", b",", subprotocol_of)
    if places.ticket is not None and query is not None and (places.ticket in query or "%" in query):
        query, tickets = _without_parameter(query, places.ticket)
    if not (cookies or subprotocols or tickets):
        return head, NOTHING
    return replace(head, headers=headers, query=query), Carried(cookies, subprotocols, tickets)


def cookie_of(pair: bytes, name: bytes) -> bytes | None:
    """Return the value of a pair of a Cookie field where it has this name (RFC 6265, section 4.2.1)."""
    found, equals, value = pair.partition(b"=")
    return value.strip(b" \t") if equals and found.strip(b" \t") == name else None


def subprotocol_of(name: bytes) -> bytes | None:
    """Return the token of a subprotocol that is one."""
    name = name.strip(b" \t")
    return name[len(SUBPROTOCOL) :] if name.lower().startswith(SUBPROTOCOL) else None


def is_parameter(written: str, name: str) -> bool:
    """Tell whether a parameter of a query, as it is written, has this name."""
    return written == name or ("%" in written and unquote(written) == name)


def _without(
    headers: Headers, field: bytes, separator: bytes, credential: Callable[[bytes], bytes | None]
) -> tuple[Headers, tuple[bytes, ...]]:
    """Take the parts of a field that are credentials out of it."""
    found: list[bytes] = []
    fields: list[tuple[bytes, bytes]] = []
    for name, value in headers.fields:
        if name.lower() != field:
            fields.append((name, value))
            continue
        others: list[bytes] = []
        for part in value.split(separator):
            text = credential(part)
            if text is None:
                others.append(part)
            else:
                found.append(text)
        rest = separator.join(others).strip(b" \t")
        if rest:
            fields.append((name, rest))
    return Headers(fields), tuple(found)


def _without_parameter(query: str, name: str) -> tuple[str | None, tuple[bytes, ...]]:
    """Take a parameter out of a query, whichever way its name is written: a service would read it all the same."""
    others: list[str] = []
    tickets: list[bytes] = []
    for pair in query.split("&"):
        parameter, _, text = pair.partition("=")
        if is_parameter(parameter, name):
            tickets.append(text.encode("latin-1"))
        else:
            others.append(pair)
    return "&".join(others) if others else None, tuple(tickets)


def presented(
    carried: Carried, accepted: Iterable[Place], *, authorization: bool, websocket: bool
) -> Shown | Refusal | None:
    """Return the one credential that a request shows in one of the accepted places; None: none but Authorization.

    authorization: whether it has one there, which counts whatever is accepted. A cookie counts where it is accepted
    alone: a browser sends it along, whatever else its page has to show.
    """
    found: list[Shown] = []
    if "cookie" in accepted:
        found += [Shown("cookie", text) for text in carried.cookies]
    if websocket and "subprotocol" in accepted:
        found += [Shown("subprotocol", text) for text in carried.subprotocols]
    if "ticket" in accepted:
        found += [Shown("ticket", text) for text in carried.tickets]
    if len(found) + authorization > 1:
        return AMBIGUOUS  # RFC 6750, section 2: one method in a request
    return found[0] if found else None


def page_refusal(place: Place, head: Head, allowed: Iterable[str], own: Iterable[str]) -> Refusal | None:
    """Say why the page that a request comes from may not use a credential; None: it may.

    allowed: origins of other pages that may, byte for byte. own: those of the very host that was asked.

    An Origin that is there must be allowed. With a cookie, which the page need not know, it must be there: browsers
    send it with every handshake of a WebSocket and every method that is not safe (Fetch, section 3.1). Where there is
    none, Sec-Fetch-Site has to say that the page is of the same origin. For safe methods, whose responses no other
    page can read, it is enough that it does not say otherwise, or that the user follows a link. Neither can be set by
    a script.
    """
    headers = head.headers
    if b"origin" in headers:
        origin = headers.text("origin") or ""
        return None if origin in allowed or origin in own else FOREIGN
    if place != "cookie":
        return None
    site = headers.text("sec-fetch-site")
    if site == "same-origin":
        return None
    if head.upgrade is not None or head.method not in _SAFE:
        return _UNSAID if site is None else FOREIGN
    if site in {None, "none"}:
        return None
    return None if headers.text("sec-fetch-mode") == "navigate" else FOREIGN
