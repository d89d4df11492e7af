"""ResponseHeaders: what every response to a client gains and loses, whoever made it."""

from operator import itemgetter
from time import perf_counter
from typing import ClassVar

from mitmproxy.http import HTTPFlow

from mitmgate.core.http1.names import LOWER
from mitmgate.core.ratelimit_fields import fields as ratelimit_fields
from mitmgate.core.rules import ResponseHeaders as Rule
from mitmgate.pipeline.exchange import Exchange, exchange_of
from mitmgate.pipeline.message import date_field

_OWN = frozenset(
    b"x-request-id x-response-time server-timing x-ratelimit-limit x-ratelimit-remaining x-ratelimit-reset ratelimit "
    b"ratelimit-policy".split()
)
_CORS = frozenset(
    b"access-control-allow-origin access-control-allow-credentials access-control-expose-headers "
    b"access-control-allow-methods access-control-allow-headers access-control-max-age".split()
)
_name = itemgetter(0)
_GIVEN = _OWN | _CORS | {b"vary"}


class ResponseHeaders:
    """Set the gateway's response fields in the `responseheaders` hook, so that streamed responses have them too.

    Reads: the exchange. Writes: flow.response's fields: request id, timing, rate limits, CORS, the policy's own;
    Date, where an upstream has given none.
    """

    name: ClassVar[str] = "response-headers"

    def __init__(self) -> None:
        """Start without a rule: each request brings its policy's, and it is the same for most."""
        self._rule: Rule | None = None
        self._told: frozenset[bytes] = frozenset()
        self._dropped = self._with_cors = self._told

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Rebuild the response's fields in one pass."""
        exchange, response = exchange_of(flow), flow.response
        if exchange is None or response is None:
            return
        if exchange.check is not None and exchange.admitted and exchange.failure is None:
            # Not a client's response: what the policy removes from those may be what a proxy waits for.
            response.data.headers.fields += tuple(own_fields(exchange))
            return
        rule = exchange.snapshot.response_headers
        if rule is not self._rule:
            self._adopt(rule)
        dropped = self._dropped if exchange.cors is None or not exchange.admitted else self._with_cors
        headers = response.data.headers
        fields = [field for field in headers.fields if LOWER[field[0]] not in dropped]
        own = own_fields(exchange)
        if self._told:
            # What the policy sets or removes is the policy's, also where the gateway would write it; but a response
            # that depends on Origin says so whatever the policy thinks of Vary, or caches would mix origins up.
            own = [field for field in own if field[0] == b"Vary" or LOWER[field[0]] not in self._told]
        fields += own
        if (
            b"Date" not in map(_name, headers.fields)
            and b"date" not in dropped
            and b"date" not in [LOWER[name] for name, _ in headers.fields]
        ):
            # RFC 9110, section 6.6.1: who forwards a response without Date says when it was received.
            fields.append(date_field(response.data.timestamp_start))
        fields += rule.set
        headers.fields = tuple(fields)  # pairs of bytes, which `Headers` would look at one by one

    def _adopt(self, rule: Rule) -> None:
        """Make of a policy's rule what every response needs of it."""
        named = rule.remove.union([name.lower() for name, _ in rule.set])
        self._rule, self._dropped, self._with_cors = rule, _OWN | named, _OWN | _CORS | named
        self._told = frozenset() if named.isdisjoint(_GIVEN) else named


def hidden_fields(rule: Rule) -> frozenset[bytes]:
    """Return the lower-case names of fields that are not an upstream's to say: the gateway's, and those of the rule."""
    return _OWN | _CORS | rule.remove.union([name.lower() for name, _ in rule.set])


def own_fields(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """Make the fields that the gateway adds to the response of this exchange."""
    total = b"%.3f" % ((perf_counter() - exchange.started) * 1000)
    fields = [
        (b"X-Request-ID", exchange.request_id.encode("ascii")),
        (b"X-Response-Time", total + b"ms"),
        (b"Server-Timing", b"gate;dur=%.3f, total;dur=%b" % (exchange.verdict.seconds * 1000, total)),
    ]
    if exchange.grants:
        fields += ratelimit_fields(exchange.grants)
    cors, final = exchange.cors, exchange.verdict.final
    if cors is None and (final is not None or exchange.failure is not None):  # our own word
        # Without it a browser would show its user no error at all; with the route's own rule it would give routes away.
        origin = exchange.request.headers.one(b"origin")
        cors = exchange.snapshot.cors.grant(None if origin is None else origin.decode("latin-1"))
    if cors is not None:
        fields += cors.fields
        if cors.vary:
            fields.append((b"Vary", b"Origin"))
    return fields
