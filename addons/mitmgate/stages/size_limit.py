"""SizeLimit: how large a request body may be."""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Final, NamedTuple

from pydantic import Field

from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline.coverage import FAILED, HELD, Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.declared import of
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location
from mitmgate.policy.scalars import Size
from mitmgate.policy.section import Section


class OfRoute(Section):
    """Its member of a route."""

    max_body: Size | None = Field(None, description="The largest request body (bytes); unset: limits.body.")


class Bounds(NamedTuple):
    """How large a body may be (bytes), by the route's name, and without a route."""

    of_routes: Mapping[str, int]
    without: int


class SizeLimit(Stage):
    """Refuse a declared length that is too large, and set the bound for a body whose length is not declared.

    Reads: the declared length, the route's max_body. Writes: exchange.max_body, to which the protocol layer holds
    the body while it arrives. Denies: 413 body-too-large. On failure: stage-error.
    """

    name: ClassVar[str] = "size-limit"
    route_section: ClassVar[type[Section]] = OfRoute
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.BODY_TOO_LARGE,)

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return {"declared_body": exchange.request.declared_body, "bound": exchange.max_body}

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at = route_at(exchange)
        return [*([(*at, "max_body")] if at else []), ("limits", "body")]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count the bounds of routes."""
        for index, route in enumerate(loaded.policy.routes):
            if of(route, OfRoute).max_body is not None:
                yield Rule(("routes", index, "max_body"), "the body's bound", (HELD, FAILED))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        at = route_at(exchange)
        if at:
            yield (*at, "max_body"), FAILED if step.reason is Reason.BODY_TOO_LARGE else HELD

    @classmethod
    def compiled(cls, loaded: Loaded) -> Bounds:
        """Take the bound of each route, or that of all."""
        policy = loaded.policy
        own = {route.name: of(route, OfRoute).max_body for route in policy.routes}
        body = policy.limits.body
        return Bounds({name: body if bound is None else bound for name, bound in own.items()}, body)

    def decide(self, exchange: Exchange) -> Step:
        """Compare, or hand the bound on."""
        bounds, route = exchange.snapshot.compiled[self.name], exchange.route
        if not isinstance(bounds, Bounds):
            raise TypeError("no bounds")
        exchange.max_body = bounds.without if route is None else bounds.of_routes[route.name]
        declared = exchange.request.declared_body
        if declared is not None and declared > exchange.max_body:
            return self.deny(
                Reason.BODY_TOO_LARGE, f"The body is larger than the {exchange.max_body} bytes that are allowed."
            )
        return self.admitted


def _size_change(denial: Denial) -> list[str]:
    bound, declared = denial.exchange.max_body, denial.exchange.request.declared_body
    place = denial.member("max_body") or denial.place("limits", "body")
    return [f"the body has {declared} bytes and may have {bound}" + (f": {place}" if place else "")]


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.BODY_TOO_LARGE: _size_change,
}
