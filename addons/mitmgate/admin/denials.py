"""What was not let through, and who is at a limit: the last of both, kept for whoever opens the status page.

Theory of operation. An exchange that ends costs one append here, and only where it was denied, observed or failed. Its
credentials are taken out soon after (`settle`, by the timer of Metrics, twice a second: within seconds), and only of
those that are still among the last KEPT: a flood of denials costs next to nothing. What a person reads is
made when one asks for it.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from mitmgate.audit.asked import add_asked
from mitmgate.audit.event import Fate, rfc3339
from mitmgate.audit.redact import REDACTED, Redaction
from mitmgate.core.address import address_text
from mitmgate.core.browsers import NOTHING
from mitmgate.core.headers import Headers
from mitmgate.core.reason import Reason
from mitmgate.core.request import Request
from mitmgate.core.window import Grant
from mitmgate.pipeline.exchange import Exchange

logger = logging.getLogger(__name__)

KEPT: Final = 200
"""Requests that are kept: the last that were denied, observed or failed."""
POLICIES: Final = 3
"""Policies that may be kept for them: what earlier ones have decided is forgotten."""
FIELDS: Final = 64
"""Header fields that are kept of each of them."""
AT_LIMITS: Final = 100
"""Who is at a limit: those that were seen so last."""
_AT_ONCE: Final = 50  # requests whose credentials are taken out without a pause, 4 ms
_CUT: Final = 256  # characters of what stands in a row

Row = dict[str, object]


class Denial(NamedTuple):
    """One of them. number: counts up within this process. seconds: from arrival to end. outcome: "observed", too."""

    number: int
    exchange: Exchange
    status: int
    outcome: str
    reason: Reason
    seconds: float


class AtLimit(NamedTuple):
    """Who is at a limit. at: Unix seconds of the last request that found no room, or took the last of it."""

    grant: Grant
    denied: int
    at: float


class Denials:
    """The last KEPT of them, and the last AT_LIMITS who are at a limit."""

    def __init__(self) -> None:
        """Start without any."""
        self._kept: deque[Denial] = deque(maxlen=KEPT)
        self._number = self._settled = self._ripe = 0
        self._at_limits: OrderedDict[tuple[str, str], AtLimit] = OrderedDict()

    def add(self, exchange: Exchange, status: int, fate: Fate, reason: Reason, seconds: float) -> None:
        """Take one that has ended."""
        self._number += 1
        outcome: str = fate
        if fate == "proxied":
            outcome, reason = "observed", exchange.verdict.observed[0].reason
        self._kept.append(Denial(self._number, exchange, status, outcome, reason, seconds))

    def at_limit(self, exchange: Exchange, grant: Grant) -> None:
        """Note who has used a limit up."""
        who = (grant.limit.name, who_of(exchange, grant))
        known = self._at_limits.pop(who, None)
        denied = (0 if known is None else known.denied) + (not grant.admitted)
        self._at_limits[who] = AtLimit(grant, denied, exchange.now)
        if len(self._at_limits) > AT_LIMITS:
            self._at_limits.popitem(last=False)

    def settle(self) -> None:
        """Take the credentials out of what was there the last time, and still is: of a flood hardly anything is."""
        self._hide(self._ripe, _AT_ONCE)
        self._ripe = self._number
        policies: dict[int, None] = dict.fromkeys(id(denial.exchange.snapshot) for denial in reversed(self._kept))
        if len(policies) > POLICIES:
            last = {*policies} - {*[*policies][POLICIES:]}
            self._kept = deque([one for one in self._kept if id(one.exchange.snapshot) in last], KEPT)

    def _hide(self, number: int, most: int = KEPT) -> None:
        """Take the credentials out of all up to this number, the oldest first. most: of so many."""
        failed = set()
        for place, denial in enumerate(self._kept):
            if denial.number <= self._settled:
                continue
            if denial.number > number or not most:
                break
            most -= 1
            self._settled = denial.number
            try:
                self._kept[place] = denial._replace(exchange=without_credentials(denial.exchange))
            except Exception:
                logger.exception("a request can't be shown on the status page")
                failed.add(denial.number)
        if failed:
            self._kept = deque([denial for denial in self._kept if denial.number not in failed], KEPT)

    def after(self, number: int) -> Sequence[Denial]:
        """Return those that came after this number, the oldest first."""
        self._hide(self._number)
        return [denial for denial in self._kept if denial.number > number]

    def find(self, number: int) -> Denial | None:
        """Return one of them; None: it has made room for later ones."""
        self._hide(self._number)
        return next((denial for denial in self._kept if denial.number == number), None)

    def limits(self) -> list[Row]:
        """Return who is at a limit, the last first."""
        return [
            {
                "limit": name,
                "who": shortened(who),
                "denied": one.denied,
                "of": one.grant.limit.limit,
                "window_seconds": one.grant.limit.window,
                "mode": one.grant.limit.mode,
                "alone": one.grant.degraded,
                "time": rfc3339(one.at),
            }
            for (name, who), one in reversed(self._at_limits.items())
        ]


def who_of(exchange: Exchange, grant: Grant) -> str:
    """Name whom a limit counts, as far as that is no secret: a principal, an address, else what it counts by."""
    told = []
    for part in grant.limit.key:
        if part == "principal" and exchange.principal is not None:
            told.append(exchange.principal.subject[:_CUT])
        elif part == "client_ip" and exchange.client is not None:
            told.append(address_text(exchange.client))
        elif part == "route" and exchange.route is not None:
            told.append(f"route {exchange.route.name}")
        elif part == "issuer" and exchange.principal is not None:
            told.append(f"issuer {exchange.principal.issuer}")
        else:
            told.append(part)
    return ", ".join(told)


def without_credentials(exchange: Exchange) -> Exchange:
    """Copy an exchange without what a client may have proved itself with, and without all but FIELDS fields."""
    redaction = Redaction(exchange.snapshot.redact)
    request, head, shown, said = exchange.request, exchange.head, exchange.shown, exchange.service_answer
    return replace(
        exchange,
        request=replace(
            request,
            method=redaction.path(request.method),
            target=redaction.target(request.target),
            headers=_hidden(request.headers, redaction),
        ),
        head=None
        if head is None
        else replace(
            head,
            path=redaction.path(head.path),
            query=None if head.query is None else redaction.query(head.query),
            headers=_hidden(head.headers, redaction),
        ),
        carried=NOTHING,
        shown=None if shown is None else shown._replace(text=b""),
        service_answer=None if said is None else said._replace(fields=tuple([(name, b"") for name, _ in said.fields])),
        own_fields=(),
        forward=None,
        answer=None,
        permit=None,
        body_check=None,
    )


def _hidden(headers: Headers, redaction: Redaction) -> Headers:
    return Headers(
        [(_name(name, redaction), _field(name, value, redaction)) for name, value in headers.fields[:FIELDS]]
    )


def _name(name: bytes, redaction: Redaction) -> bytes:
    return redaction.name(name.decode("latin-1")).encode("latin-1")[:_CUT]


def _field(name: bytes, value: bytes, redaction: Redaction) -> bytes:
    shown = redaction.field(name.decode("latin-1"), value.decode("latin-1"))
    if shown == REDACTED and name.lower() == b"authorization":
        scheme = value.partition(b" ")[0].lower()
        if scheme in {b"bearer", b"dpop", b"basic"}:
            shown = f"{scheme.decode().title()} {REDACTED}"
    return shown.encode("latin-1", "replace")


def row(denial: Denial, process: int) -> Row:
    """Make what stands in the list. Nothing in it is a credential, and every text is short."""
    exchange, verdict = denial.exchange, denial.exchange.verdict
    asked: dict[str, object] = {}
    add_asked(asked, exchange.request, exchange.head, Redaction(exchange.snapshot.redact))
    final = verdict.final or (verdict.observed[0] if verdict.observed else None)
    principal, route, endpoint = exchange.principal, exchange.route, exchange.endpoint
    made: Row = {
        "id": f"{process}-{denial.number}",
        "time": rfc3339(exchange.now),
        "outcome": denial.outcome,
        "status": denial.status,
        "reason": denial.reason.code,
        "stage": "protocol" if final is None else final.stage,
        "detail": exchange.failure_detail if final is None else final.detail,
        "method": asked.get("method"),
        "host": asked.get("host"),
        "path": asked.get("path"),
        "query": asked.get("query"),
        "route": None if route is None else route.name,
        "user": None if principal is None else principal.subject,
        "issuer": None if principal is None else principal.issuer,
        "client": None if exchange.client is None else address_text(exchange.client),
        "cause": None if exchange.cause is None else exchange.cause.value,
        "endpoint": None if endpoint is None else endpoint.url,
        "request_id": exchange.request_id,
        "ms": round(denial.seconds * 1000, 2),
    }
    return {name: shortened(value) if isinstance(value, str) else value for name, value in made.items()}


def shortened(text: str) -> str:
    """Cut a text that a client may have made long, and write what UTF-8 has no octets for as an escape."""
    text = writable(text)
    return text if len(text) <= _CUT else f"{text[: _CUT - 1]}…"


def writable(text: str) -> str:
    """Write lone surrogates, which a claim may hold, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def fields_of(request: Request) -> list[list[str]]:
    """Return the header fields of a kept request, for people to edit."""
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers.fields]
