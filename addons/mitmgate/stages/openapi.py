"""OpenApi: whether a request is an operation of the document that its route names, and rightly made."""

from typing import ClassVar

from mitmgate.core.path import CanonicalPath
from mitmgate.core.reason import Reason
from mitmgate.core.rewrite import upstream_path
from mitmgate.core.routing import allow_field
from mitmgate.core.verdict import Step
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.stage import Stage, route_at
from mitmgate.policy.problem import Location


class OpenApi(Stage):
    """Hold the head to the route's document: path, method, parameters, content type.

    Behind Authorization, so that the document can't be explored without what the route requires, and before RateLimit:
    no quota is spent for what the service never sees. The path is the one that the service gets.

    Reads: head, route, the declared length. Writes: exchange.operation; exchange.body_check, to which the protocol
    layer holds the whole body before anything is sent; answer, for the Allow field. Denies: 404 operation-unknown, 405
    operation-not-allowed, 400 parameter-missing, parameter-invalid, parameter-unknown and body-unexpected, 415
    content-type-refused, 413 body-too-large (more than is checked), 403 rewrite-refused (there is no such path). On
    failure: stage-error.
    """

    name: ClassVar[str] = "openapi"

    def __init__(self, *, decides: bool = False) -> None:
        """decides: requests are checks (core/check.py): the path is the client's, and nobody has the body to check."""
        self._decides = decides

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, route, operation = exchange.head, exchange.route, exchange.operation
        if head is None or route is None or route.openapi is None:
            return {}
        return {
            "method": head.method,
            "path": head.path if self._decides else upstream_path(route, head.path),
            "operation": None if operation is None else operation.name,
            "query": sorted(operation.query) if operation is not None else [],
            "content_type": head.headers.text("content-type"),
            "body": "checked when it is there" if exchange.body_check is not None else "not looked at",
        }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at = route_at(exchange)
        return [(*at, "openapi")] if at else []

    def decide(self, exchange: Exchange) -> Step:
        """Find the operation, and hold the head to it."""
        route = exchange.route
        if route is None or route.openapi is None:
            return self.skipped
        head = exchange.head
        if head is None:
            raise LookupError("the head was not made")
        path = head.path if self._decides else upstream_path(route, head.path)
        if path is None:
            return self.deny(Reason.REWRITE_REFUSED, "The rewritten path would be ambiguous.")
        operation, refusal, allow, body = route.openapi.judge(
            head.method,
            CanonicalPath(path, head.odd),
            head.query,
            head.headers,
            exchange.request.declared_body,
            (exchange.snapshot.client_fields.identity, route.rewrite.remove),
        )
        exchange.operation = operation
        if refusal is None and self._decides and operation is not None and operation.checks_bodies:
            return self.deny(Reason.BODY_INVALID, "The body has to be checked, and a proxy asks without it.")
        if refusal is None:
            exchange.body_check = body
            return self.admitted
        if allow:
            exchange.answer = Answer(405, fields=allow_field(allow))
        return self.deny(refusal.reason, refusal.detail)
