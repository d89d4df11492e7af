"""How a transit reaches an endpoint that it can be sent to: the chosen one, or the next where the policy allows one."""

from collections.abc import Callable
from typing import Final

from mitmgate.core.reason import Reason
from mitmgate.engine.lane.ending import TransitEnding
from mitmgate.engine.lane.pool import Unreachable
from mitmgate.engine.lane.upstream import LaneUpstream
from mitmgate.stages.enforcer import point_at
from mitmgate.stages.exchange import Exchange

IDEMPOTENT: Final = frozenset(["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
"""Methods of requests that may be sent twice (RFC 9110, section 9.2.2)."""


class TransitReaching(TransitEnding):
    """The way to an upstream connection."""

    __slots__ = ()

    def _connect(self, then: Callable[[LaneUpstream], None]) -> None:
        """Reach the chosen endpoint, or the next one; nothing was sent yet, so that any request may be tried again."""
        exchange = self.exchange
        if exchange is None or exchange.endpoint is None or exchange.route is None:
            self._fail(Reason.STAGE_ERROR)
            return
        upstream = exchange.route.upstream
        if not self._replayed:
            connection = self._ways.pool.take(exchange.endpoint, upstream.tls, idempotent=self._idempotent)
            if connection is not None:
                self._reached(connection, then)
                return
        self._wait(self._dial(exchange, then), dial=True)

    async def _dial(self, exchange: Exchange, then: Callable[[LaneUpstream], None]) -> Callable[[], None]:
        """Open a connection. Returns what is to be done with it."""
        if exchange.endpoint is None or exchange.route is None:
            return lambda: self._fail(Reason.STAGE_ERROR)
        upstream = exchange.route.upstream
        try:
            connection = await self._ways.pool.open(
                exchange.endpoint, upstream.tls, upstream.connect_timeout, self._client.client
            )
        except Unreachable as error:
            reason = error.reason
            return lambda: self._not_reached(reason, then)
        return lambda: self._reached(connection, then)

    def _reached(self, connection: LaneUpstream, then: Callable[[LaneUpstream], None]) -> None:
        if self._gone or self._over:
            connection.abandon()
            if not self._over:
                self._abort(Reason.CLIENT_CLOSED)
            return
        self._upstream = connection
        self.flow.server_conn = connection.server
        then(connection)

    def _not_reached(self, reason: Reason, then: Callable[[LaneUpstream], None]) -> None:
        if self._over:
            return
        if self._gone:
            self._abort(Reason.CLIENT_CLOSED)
        elif reason is not Reason.DESCRIPTORS_EXHAUSTED and self._next_endpoint(reason):
            self._connect(then)
        else:
            self._fail(reason)

    @property
    def _idempotent(self) -> bool:
        """Whether the request may be sent twice (RFC 9110, section 9.2.2)."""
        return self._made is not None and self._made.method in IDEMPOTENT

    def _next_endpoint(self, reason: Reason) -> bool:
        """Point the request at another endpoint, where the policy still allows one. reason: why this one failed."""
        exchange = self.exchange
        if exchange is None or self._retries <= 0:
            return False
        self._retries -= 1
        endpoint = self._ways.fail_over(exchange, reason)
        if endpoint is None:
            return False
        exchange.endpoint = endpoint
        point_at(self.flow, endpoint)
        if exchange.route is not None and exchange.route.upstream.host == "upstream" and self._made is not None:
            self._made = self._made.to_host(endpoint.url.partition("://")[2])
            self.flow.request.headers["host"] = self._made.host
        return True
