"""The bounds that every connection and message is held to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """Sizes are bytes, times seconds.

    head: the largest head of a request, request line included. fields: header fields in it. target: the longest
    request target. response_head, response_fields: the same of a response. head_timeout: from a head's first byte (or
    the TCP connection, during a TLS handshake) to its end. idle_timeout: a connection without a request, and a stream
    without progress. body_timeout: what a body may pause, and take beside the time that its bytes earn at `body_rate`
    bytes a second (0: as long as it wants). memory: bytes that may be held for all clients. connections: clients at
    once; per_address: of these from one address; turned_away: beyond these, how many are still told so.
    """

    head: int = 32 * 1024
    fields: int = 100
    target: int = 8192
    response_head: int = 32 * 1024
    response_fields: int = 1000
    head_timeout: float = 10.0
    idle_timeout: float = 75.0
    body_timeout: float = 30.0
    body_rate: float = 500.0
    memory: int = 1 << 30
    connections: int = 10_000
    per_address: int = 2_500
    turned_away: int = 64

    def body_due(self, started: float, received: int, now: float) -> float:
        """Return when a body must have gone on: after a pause's length, and within what its bytes have earned.

        started: when it began; received: bytes of it so far. All times are of one monotonic clock.
        """
        pause = now + self.body_timeout
        if not self.body_rate:
            return pause
        return min(started + self.body_timeout + received / self.body_rate, pause)
