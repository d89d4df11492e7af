"""ResponseHeaders: what every response to a client gains and loses, whoever made it."""

import time
from typing import ClassVar

from mitmproxy.http import HTTPFlow

from mitmgate.core.ratelimit_fields import fields as ratelimit_fields
from mitmgate.stages.exchange import Exchange, exchange_of

_OWN = frozenset(
    b"x-request-id x-response-time server-timing x-ratelimit-limit x-ratelimit-remaining x-ratelimit-reset ratelimit "
    b"ratelimit-policy".split()
)
_CORS = frozenset(
    b"access-control-allow-origin access-control-allow-credentials access-control-expose-headers "
    b"access-control-allow-methods access-control-allow-headers access-control-max-age".split()
)
_GIVEN = _OWN | _CORS | {b"vary"}


class ResponseHeaders:
    """Set the gateway's response fields in the `responseheaders` hook, so that streamed responses have them too.

    Reads: the exchange. Writes: flow.response's fields: request id, timing, rate limits, CORS, the policy's own.
    """

    name: ClassVar[str] = "response-headers"

    def __init__(self) -> None:
        """Start without a rule: each request brings its policy's, and it is the same for most."""
        self._rule: object = None
        self._told: frozenset[bytes] = frozenset()
        self._dropped: frozenset[bytes] = frozenset()

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Rebuild the response's fields in one pass."""
        exchange = exchange_of(flow)
        if exchange is None or flow.response is None:
            return
        rule = exchange.snapshot.response_headers
        if rule is not self._rule:
            self._rule = rule
            self._told = rule.remove.union([name.lower() for name, _ in rule.set])
            self._dropped = _OWN | self._told
        own = own_fields(exchange)
        if not self._told.isdisjoint(_GIVEN):
            # What the policy sets or removes is the policy's, also where the gateway would write it; but a response
            # that depends on Origin says so whatever the policy thinks of Vary, or caches would mix origins up.
            own = [field for field in own if field[0] == b"Vary" or field[0].lower() not in self._told]
        dropped = self._dropped
        if exchange.cors is not None and exchange.admitted:
            dropped |= _CORS
        headers = flow.response.data.headers
        fields = [field for field in headers.fields if field[0].lower() not in dropped]
        fields += own
        fields += rule.set
        headers.fields = tuple(fields)  # pairs of bytes, which `Headers` would look at one by one


def own_fields(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """Make the fields that the gateway adds to the response of this exchange."""
    total = (time.perf_counter() - exchange.started) * 1000
    gate = exchange.verdict.seconds * 1000
    fields = [
        (b"X-Request-ID", exchange.request_id.encode("ascii")),
        (b"X-Response-Time", b"%.3fms" % total),
        (b"Server-Timing", b"gate;dur=%.3f, total;dur=%.3f" % (gate, total)),
    ]
    if exchange.grants:
        fields += ratelimit_fields(exchange.grants)
    if exchange.cors is not None:
        fields += exchange.cors.fields
        if exchange.cors.vary:
            fields.append((b"Vary", b"Origin"))
    return fields
