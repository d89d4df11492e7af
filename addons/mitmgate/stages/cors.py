"""Cors: answers preflights, refuses foreign origins, prepares the fields of the response."""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Final

from mitmgate.core.cors import allowed_origin, grant, is_same_origin, preflight
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Cors as CorsRule
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline import warnings
from mitmgate.pipeline.coverage import ACCEPTED, MATCHED, REFUSED, Branch, Rule
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Location, Problem
from mitmgate.policy.snapshot import Snapshot


class Cors(Stage):
    """Answer preflights, and apply the route's rule to every other request.

    A preflight, which has no credential, is answered by the route's rule where the route is public, and otherwise by
    what all rules of the policy together allow the origin (`Snapshot.cors`): whatever route there is, and where there
    is none.
    Reads: exchange.route.cors, snapshot.cors, Origin, Access-Control-Request-*. Writes: exchange.cors, exchange.answer
    for a preflight. Denies: 403 origin-not-allowed, preflight-refused. On failure: stage-error.
    """

    name: ClassVar[str] = "cors"
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.ORIGIN_NOT_ALLOWED, Reason.PREFLIGHT_REFUSED, Reason.PREFLIGHT)

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, route = exchange.head, exchange.route
        if head is None or not (exchange.preflight or (route is not None and route.cors is not None)):
            return {}
        rule = None if route is None or _by_all_rules(exchange) else route.cors
        return {
            "origin": head.headers.text("origin"),
            "preflight": exchange.preflight,
            "allowed_origins": list(exchange.snapshot.cors.origins if rule is None else rule.origins),
        }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, policy = route_at(exchange), exchange.snapshot.policy
        if _by_all_rules(exchange):
            return [("cors", name) for name in policy.cors]
        if not at:
            return []
        name = policy.routes[int(at[1])].cors
        return [(*at, "cors"), *([] if name is None else [("cors", name)])]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count origins, and what became of requests with one."""
        for name, cors in loaded.policy.cors.items():
            for index, origin in enumerate(cors.origins):
                yield Rule(("cors", name, "origins", index), f"origin {origin}", (MATCHED,))
        for index, route in enumerate(loaded.policy.routes):
            if route.cors is not None:
                yield Rule(("routes", index, "cors"), f"CORS of {route.name}", (ACCEPTED, REFUSED))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        at, policy = route_at(exchange), exchange.snapshot.policy
        origin = None if exchange.head is None else exchange.head.headers.text("origin")
        name = policy.routes[int(at[1])].cors if at else None
        if exchange.cors is None or origin is None or name is None:
            return
        yield (*at, "cors"), REFUSED if step.outcome is Outcome.DENY else ACCEPTED
        for index, known in enumerate(policy.cors[name].origins):
            if known in {origin, "*"}:
                yield ("cors", name, "origins", index), MATCHED

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find rules that no route has, and methods that HTTP does not."""
        policy, document = loaded.policy, loaded.document
        yield from warnings.unused(document, ("cors",), policy.cors, {route.cors for route in policy.routes})
        for name, cors in policy.cors.items():
            yield from warnings.unregistered(document, document.items(("cors", name, "methods"), cors.methods))

    def decide(self, exchange: Exchange) -> Step:
        """Answer a preflight; check the origin of anything else."""
        head, route = exchange.head, exchange.route
        if head is None:
            raise ValueError("no head")
        if exchange.preflight:
            return self._preflight(exchange)
        if route is None or route.cors is None:
            return self.skipped
        rule, origin = route.cors, head.headers.text("origin")
        exchange.cors = grant(rule, origin)
        if origin is None:
            return self.skipped
        if allowed_origin(rule, origin) is None:
            host = exchange.public_host or head.headers.text("host") or exchange.request.authority
            hosts = [host] if exchange.public_port is None else [host, f"{host}:{exchange.public_port}"]
            if any(is_same_origin(origin, name) for name in hosts):
                return self.skipped
            return self._foreign()
        return self.admitted

    def _preflight(self, exchange: Exchange) -> Step:
        head, route = exchange.head, exchange.route
        if head is None:
            raise ValueError("no head")
        origin = head.headers.text("origin") or ""
        rule: CorsRule | None
        if route is not None and route.issuers is None and route.cors is not None:
            rule = route.cors
            exchange.cors = grant(rule, origin)
        else:
            rule = exchange.snapshot.cors.rule(origin)
            exchange.cors = exchange.snapshot.cors.grant(origin)
        if rule is None or allowed_origin(rule, origin) is None:
            return self._foreign()
        answer = preflight(rule, head.headers)
        if isinstance(answer, str):
            return self.deny(Reason.PREFLIGHT_REFUSED, answer)
        vary = (b"Vary", b"Access-Control-Request-Method, Access-Control-Request-Headers")
        exchange.answer = Answer(204, (*answer, vary))
        return Step(self.name, Outcome.ANSWER, Reason.PREFLIGHT)

    def _foreign(self) -> Step:
        return self.deny(Reason.ORIGIN_NOT_ALLOWED, "The origin is not among those that are allowed here.")


def _by_all_rules(exchange: Exchange) -> bool:
    """Tell whether it is a preflight that is answered by all CORS rules together, for every path that is not public."""
    return exchange.preflight and (exchange.route is None or exchange.route.issuers is not None)


def _origin_change(denial: Denial) -> list[str]:
    route, head = denial.exchange.route, denial.exchange.head
    if head is None:
        return []
    rule, place = (None if route is None else route.cors), denial.member("cors")
    origins = denial.exchange.snapshot.cors.origins if rule is None or denial.exchange.preflight else rule.origins
    return [
        f"the origin {head.headers.text('origin')} would have to be one of {', '.join(origins)}: "
        f"{place or denial.place('cors')}"
    ]


def _preflight_change(denial: Denial) -> list[str]:
    head, route = denial.exchange.head, denial.exchange.route
    origin = None if head is None else head.headers.text("origin")
    rule = None if origin is None else denial.exchange.snapshot.cors.rule(origin)
    if route is not None and route.issuers is None:
        rule = route.cors
    if rule is None:
        return []
    place = denial.member("cors") or denial.place("cors")
    return [f"{denial.step.detail.rstrip('.')}: {place} allows {', '.join(rule.methods)}"]


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.ORIGIN_NOT_ALLOWED: _origin_change,
    Reason.PREFLIGHT_REFUSED: _preflight_change,
}
