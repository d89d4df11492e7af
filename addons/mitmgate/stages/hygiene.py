"""Hygiene: one reading of the head, without anything that a client must not be able to say."""

from collections.abc import Mapping
from typing import ClassVar

from mitmgate.core.browsers import take
from mitmgate.core.hygiene import clean, screen
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.verdict import Step
from mitmgate.core.websocket import VERSION
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.problem import Location

_WEBSOCKETS = Answer(Reason.UPGRADE_REFUSED.status, ((b"Sec-WebSocket-Version", VERSION),))


class Hygiene(Stage):
    """Refuse what could be read in two ways, strip what could be spoofed.

    Reads: the ingress request. Writes: exchange.head; exchange.carried, which
    is in none of it.
    Denies: 400 method-invalid, target-invalid, path-ambiguous, host-invalid, header-invalid, header-repeated,
    upgrade-refused; 414 target-too-long; 431 head-too-large; 508 loop-detected.
    On failure: stage-error. Not subject to report mode: nobody can say what an ambiguous request would have been.
    """

    name: ClassVar[str] = "hygiene"
    reportable: ClassVar[bool] = False
    reasons: ClassVar[tuple[Reason, ...]] = (
        Reason.METHOD_INVALID,
        Reason.TARGET_INVALID,
        Reason.TARGET_TOO_LONG,
        Reason.PATH_AMBIGUOUS,
        Reason.HOST_INVALID,
        Reason.HEADER_INVALID,
        Reason.HEADER_REPEATED,
        Reason.UPGRADE_REFUSED,
        Reason.HEAD_TOO_LARGE,
        Reason.LOOP_DETECTED,
    )
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.METHOD_INVALID: "a method that the gateway forwards",
        Reason.HOST_INVALID: "exactly one valid Host",
        Reason.HEADER_REPEATED: "the field once",
        Reason.PATH_AMBIGUOUS: "a path that every server reads alike: no empty or dot segments, no encoded slash",
        Reason.HEAD_TOO_LARGE: "a smaller head, or a larger limits.head",
        Reason.LOOP_DETECTED: "an upstream that does not send the request back to the gateway",
        Reason.UPGRADE_REFUSED: "`websocket: true` on the route, and a well-formed handshake",
    }

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        request, head = exchange.request, exchange.head
        read: dict[str, object] = {
            "head_bytes": sum(len(name) + len(value) + 4 for name, value in request.headers.fields)
        }
        if head is None:
            return read
        kept = {name.lower() for name, _ in head.headers.fields}
        dropped = {name.lower().decode("latin-1") for name, _ in request.headers.fields if name.lower() not in kept}
        return {**read, "path": head.path, "host": head.host, "dropped": sorted(dropped)}

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [("limits", "head")]

    def decide(self, exchange: Exchange) -> Step:
        """Clean the head."""
        snapshot = exchange.snapshot
        request = exchange.request
        screened = request.headers.derive(screen, snapshot.client_fields)
        if screened.size > snapshot.max_head:
            return self.deny(Reason.HEAD_TOO_LARGE, f"The head is larger than {snapshot.max_head} bytes.")
        if snapshot.via is not None and snapshot.via.circles(request.headers):
            return self.deny(Reason.LOOP_DETECTED, "The request has come through this gateway again and again.")
        head = clean(request, screened, snapshot.max_target)
        if isinstance(head, Refusal):
            if head.reason is Reason.UPGRADE_REFUSED:
                exchange.answer = _WEBSOCKETS  # RFC 6455, section 4.4
            return self.deny(head.reason, head.detail)
        if snapshot.browsers is not None:
            head, exchange.carried = take(head, snapshot.browsers)
        exchange.head = head
        return self.admitted
