"""Explain one request, stage by stage: what each read, by which rule, what it said, what would have to change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mitmgate.audit.redact import Redaction, mark
from mitmgate.core import credentials, pointer
from mitmgate.core.authorize import facts_of
from mitmgate.core.rules import Networks, Requirement, named
from mitmgate.core.verdict import Outcome, Step
from mitmgate.policy.problem import Location, dotted
from mitmgate.replay.advice import advice, opens_when
from mitmgate.replay.condition_trace import failing
from mitmgate.replay.decision import decided
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.traffic import Recorded
from mitmgate.stages.exchange import Exchange

Facts = dict[str, object]


@dataclass(slots=True)
class StageReport:
    """One stage. read: what it looked at. rules: the members of the policy that it went by, with their places."""

    stage: str
    outcome: str
    reason: str
    detail: str
    read: Facts = field(default_factory=dict)
    rules: list[tuple[str, str]] = field(default_factory=list)
    failing: list[Facts] = field(default_factory=list)
    change: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Explanation:
    """A decision with everything that led to it."""

    policy: str
    request: str
    decision: str
    status: int
    stages: list[StageReport]
    upstream: Facts

    def members(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "policy": self.policy,
            "request": self.request,
            "decision": self.decision,
            "status": self.status,
            "stages": [
                {
                    "stage": stage.stage,
                    "outcome": stage.outcome,
                    "reason": stage.reason,
                    "detail": stage.detail,
                    "read": stage.read,
                    "rules": [{"member": member, "place": place} for member, place in stage.rules],
                    **({"failing": stage.failing} if stage.failing else {}),
                    **({"what_would_have_to_change": stage.change} if stage.change else {}),
                }
                for stage in self.stages
            ],
            "upstream": self.upstream,
        }


def explain(policy: OfflinePolicy, recorded: Recorded, exchange: Exchange) -> Explanation:
    """Explain a decision that the chain has just made. No credential is in it."""
    decision = decided(exchange)
    reports = [_stage(policy, recorded, exchange, step) for step in exchange.verdict.steps]
    final = exchange.verdict.final
    redaction = Redaction(policy.snapshot.redact)
    upstream: Facts = {}
    if exchange.forward is not None and exchange.endpoint is not None and final is None:
        upstream = {
            "endpoint": exchange.endpoint.url,
            "request": f"{exchange.forward.method} {redaction.target(exchange.forward.target)}",
            "headers": [_shown_field(name, value, redaction) for name, value in exchange.forward.fields],
        }
    request = recorded.request
    return Explanation(
        policy=policy.path,
        request=f"{request.method} {redaction.target(request.target)}",
        decision=decision.label,
        status=200 if final is None else final.reason.status,
        stages=reports,
        upstream=upstream,
    )


def _shown_field(name: bytes, value: bytes, redaction: Redaction) -> list[str]:
    text = name.decode("latin-1")
    return [text, redaction.field(text, value.decode("latin-1"))]


def _shown(value: object, redaction: Redaction) -> object:
    """Hide credentials in a fact that a stage has read, or a condition: a text, header fields, claims."""
    if isinstance(value, str):
        return credentials.hide_in_text(value, mark)
    if isinstance(value, Mapping):
        return {
            name: redaction.field(name, item) if isinstance(item, str) else _shown(item, redaction)
            for name, item in value.items()
        }
    return [_shown(item, redaction) for item in value] if isinstance(value, list | tuple) else value


def _stage(policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, step: Step) -> StageReport:
    report = StageReport(step.stage, step.outcome.value, step.reason.code, step.detail)
    read = _READ.get(step.stage)
    report.read = {} if read is None else read(exchange)
    redaction = Redaction(policy.snapshot.redact)
    if step.stage in policy.snapshot.own:
        report.read = {name: _shown(fact, redaction) for name, fact in exchange.own_read.get(step.stage, {}).items()}
    for name, show in (("target", redaction.target), ("path", redaction.path), ("host", redaction.path)):
        if isinstance(report.read.get(name), str):
            report.read[name] = show(str(report.read[name]))
    document = policy.loaded.document
    for location in _rules(policy, exchange, step.stage):
        if document.at(location) is None:
            continue
        line, column = document.place(location, key=True)
        report.rules.append((dotted(location), f"{policy.path}:{line}:{column}"))
    if step.outcome in {Outcome.DENY, Outcome.OBSERVE}:
        report.change = advice(policy, recorded, exchange, step)
        if step.reason.code in {"condition-false", "condition-error"}:
            report.failing = _failing(exchange, redaction)
    return report


def _failing(exchange: Exchange, redaction: Redaction) -> list[Facts]:
    route, head = exchange.route, exchange.head
    if route is None or head is None or route.require.when is None:
        return []
    facts = facts_of(head, exchange.principal, exchange.client, route.name)
    found: list[Facts] = []
    for predicate in failing(route.require.when.source, facts):
        values = {name: _shown_fact(name, value, redaction) for name, value in predicate.found.items()}
        shown: Facts = {"predicate": predicate.text, "values": values}
        found.append(shown | {"error": predicate.error} if predicate.error else shown)
    return found


def _shown_fact(name: str, value: object, redaction: Redaction) -> object:
    """Hide what a condition has read, named as it reads it: `request.headers["x-api-key"]`."""
    member = name.rstrip("'\"] ").rpartition("[")[2].strip("'\" ")
    return redaction.field(member, value) if isinstance(value, str) else _shown(value, redaction)


def route_location(policy: OfflinePolicy, name: str) -> Location:
    """Return where a route stands."""
    names = [route.name for route in policy.loaded.policy.routes]
    return ("routes", names.index(name))


def _rules(policy: OfflinePolicy, exchange: Exchange, stage: str) -> list[Location]:
    """Name the members of the policy that a stage went by, as far as the file has them."""
    route = exchange.route
    at: Location = () if route is None else route_location(policy, route.name)
    of_route: dict[str, list[Location]] = {}
    if route is not None:
        names = dict.fromkeys(map(named, route.issuers or ()))
        model = policy.loaded.policy.routes[int(at[1])]
        require = (*at, "require")
        of_route = {
            "routing": [(*at, "match")],
            "cors": [(*at, "cors"), *([] if model.cors is None else [("cors", model.cors)])],
            "size-limit": [(*at, "max_body")],
            "authentication": [
                (*at, "auth"),
                *(("identity", "issuers", name) for name in names),
            ],
            "authorization": [
                *((*at, "networks", name) for name in ("deny", "allow")),
                *((*require, name) for name in ("scopes_all", "roles_any", "claims", "acr_values", "max_age", "when")),
            ],
            "rate-limit": [(*at, "rate_limits"), *(("rate_limits", limit.name) for limit in route.limits)],
            "circuit-breaker": [("upstreams", route.upstream.name, name) for name in ("endpoints", "circuit")],
            "rewrite": [(*at, "rewrite"), ("identity", "forward"), ("upstreams", route.upstream.name, "host")],
        }
    of_policy: Mapping[str, list[Location]] = {
        "arrival": [("trusted_proxies",)],
        "hygiene": [("limits", "head")],
        "endpoints": [("endpoints", "health")],
        "network-access": [("networks", "deny"), ("networks", "allow")],
        "size-limit": [("limits", "body")],
        "client-quota": [("client_limits",), *(("rate_limits", name) for name in policy.loaded.policy.client_limits)],
        "authentication": [("identity", "default")],
    }
    if stage == "cors" and alike(exchange):
        return [("cors", name) for name in policy.loaded.policy.cors]
    if stage in policy.snapshot.own:
        return [("stages", stage)]
    return [*of_route.get(stage, []), *of_policy.get(stage, [])]


def _arrival(exchange: Exchange) -> Facts:
    request = exchange.request
    return {
        "peer": request.peer,
        "client": "unknown" if exchange.client is None else str(exchange.client),
        "scheme": exchange.scheme,
    }


def _hygiene(exchange: Exchange) -> Facts:
    request, head = exchange.request, exchange.head
    read: Facts = {"head_bytes": sum(len(name) + len(value) + 4 for name, value in request.headers.fields)}
    if head is None:
        return read
    kept = {name.lower() for name, _ in head.headers.fields}
    dropped = sorted({name.lower().decode("latin-1") for name, _ in request.headers.fields if name.lower() not in kept})
    return {**read, "path": head.path, "host": head.host, "dropped": dropped}


def _routing(exchange: Exchange) -> Facts:
    head, missing = exchange.head, exchange.no_route
    read: Facts = {} if head is None else {"method": head.method, "host": head.host, "path": head.path}
    if exchange.route is not None:
        read["route"] = exchange.route.name
    if missing is not None:
        read["allowed_methods"] = list(missing.allow)
    return read


def _cors(exchange: Exchange) -> Facts:
    head, route = exchange.head, exchange.route
    if head is None or not (exchange.preflight or (route is not None and route.cors is not None)):
        return {}
    rule = None if route is None else route.cors
    of_route = rule is not None and not alike(exchange)
    return {
        "origin": head.headers.text("origin"),
        "preflight": exchange.preflight,
        "allowed_origins": list(rule.origins if rule is not None and of_route else exchange.snapshot.cors.origins),
    }


def alike(exchange: Exchange) -> bool:
    """Tell whether it is a preflight that is answered by all CORS rules together, for every path that is not public."""
    return exchange.preflight and (exchange.route is None or exchange.route.issuers is not None)


def _networks(exchange: Exchange) -> Facts:
    return _listed(exchange, exchange.snapshot.networks)


def _listed(exchange: Exchange, networks: Networks) -> Facts:
    return {
        "client": "unknown" if exchange.client is None else str(exchange.client),
        "deny": list(networks.deny.networks),
        "allow": list(networks.allow.networks),
    }


def _size(exchange: Exchange) -> Facts:
    return {"declared_body": exchange.request.declared_body, "bound": exchange.max_body}


def _authentication(exchange: Exchange) -> Facts:
    head, principal, route = exchange.head, exchange.principal, exchange.route
    read: Facts = {
        "credential": head is not None and b"authorization" in head.headers,
        "issuers": list((exchange.snapshot.default_issuers if route is None else route.issuers) or ()),
        "now": exchange.now,
    }
    if principal is not None:
        read |= {
            "subject": principal.subject,
            "issuer": principal.issuer,
            "roles": list(principal.roles),
            "scopes": sorted(principal.scopes),
            "expires": principal.expires,
        }
    return read


def _step_up(require: Requirement) -> list[str]:
    """Name the claims that say how and when the user has authenticated, as far as they are asked for."""
    return ["acr"] * bool(require.acr_values) + ["auth_time"] * (require.max_age is not None)


def _authorization(exchange: Exchange) -> Facts:
    route, principal = exchange.route, exchange.principal
    if route is None:
        return {}
    require = route.require
    wanted: Facts = {
        "scopes_all": sorted(require.scopes_all),
        "roles_any": sorted(require.roles_any),
        "claims": {name: list(values) for name, values in require.claims.items()},
        "acr_values": list(require.acr_values),
        "max_age": require.max_age,
        "when": None if require.when is None else require.when.source,
    }
    read: Facts = _listed(exchange, route.networks) if route.networks else {}
    read["required"] = {name: value for name, value in wanted.items() if value}
    if principal is not None:
        read |= {"scopes": sorted(principal.scopes), "roles": list(principal.roles)}
        read["claims"] = {name: pointer.find(principal.claims, name) for name in require.claims}
        read |= {name: principal.claims.get(name) for name in _step_up(require)}
    return read


def _quota(which: str) -> Callable[[Exchange], Facts]:
    def read(exchange: Exchange) -> Facts:
        own = len(exchange.snapshot.client_limits)
        grants = exchange.grants[:own] if which == "client-quota" else exchange.grants[own:]
        return {
            grant.limit.name: {
                "limit": grant.limit.limit,
                **({} if grant.limit.tier is None else {"tier": grant.limit.tier}),
                "window": grant.limit.window,
                "key": list(grant.limit.key),
                "remaining": grant.remaining,
                "retry_after": round(grant.retry_after, 3),
            }
            for grant in grants
        }

    return read


def _circuit(exchange: Exchange) -> Facts:
    route = exchange.route
    if route is None:
        return {}
    return {
        "upstream": route.upstream.name,
        "endpoints": [endpoint.url for endpoint in route.upstream.endpoints],
        "chosen": None if exchange.endpoint is None else exchange.endpoint.url,
        "opens": opens_when(route.upstream.circuit),
    }


def _rewrite(exchange: Exchange) -> Facts:
    head, forward = exchange.head, exchange.forward
    return {
        "path": None if head is None else head.path,
        "target": None if forward is None else forward.target,
        "host": None if forward is None else forward.host,
    }


_READ: Mapping[str, Callable[[Exchange], Facts]] = {
    "arrival": _arrival,
    "hygiene": _hygiene,
    "routing": _routing,
    "cors": _cors,
    "network-access": _networks,
    "size-limit": _size,
    "client-quota": _quota("client-quota"),
    "authentication": _authentication,
    "authorization": _authorization,
    "rate-limit": _quota("rate-limit"),
    "circuit-breaker": _circuit,
    "rewrite": _rewrite,
}
