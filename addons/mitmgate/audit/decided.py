"""What the audit trail reads of an exchange: the shape that pipeline.exchange.Exchange has.

Written out here, because audit lies below stages and imports nothing of them.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

from mitmgate.core.cause import Cause
from mitmgate.core.check import Check
from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.request import Head, Request
from mitmgate.core.routing import NoRoute
from mitmgate.core.rules import Endpoint, Route
from mitmgate.core.verdict import Verdict
from mitmgate.core.window import Grant


class Decided(Protocol):
    """One request, what was decided of it and what came of it. The members are those of Exchange."""

    request: Request
    request_id: str
    now: float
    started: float
    verdict: Verdict
    client: IPv4Address | IPv6Address | None
    scheme: str
    traceparent: str
    check: Check | None
    head: Head | None
    route: Route | None
    no_route: NoRoute | None
    grants: list[Grant]
    principal: Principal | None
    service_answer: ServiceAnswer | None
    endpoint: Endpoint | None
    retries: int
    admitted: bool
    failure: Reason | None
    failure_detail: str
    cause: Cause | None
