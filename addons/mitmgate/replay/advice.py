"""What would have to change for a denied request to be admitted: in the request, or in the policy."""

from collections.abc import Callable
from typing import Final

from mitmgate.core import pointer
from mitmgate.core.claims import read_times
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import named
from mitmgate.core.token import UnverifiedToken, read_token
from mitmgate.core.verdict import Step
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.traffic import Recorded
from mitmgate.stages.circuit_breaker import opens_when


class _Case:
    """One denial, and what is known around it."""

    def __init__(self, policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, step: Step) -> None:
        self.policy = policy
        self.exchange = exchange
        self.step = step
        self.token = _token(recorded)

    def place(self, *location: str | int) -> str:
        """Name a member of the policy, with its file and line; "" where the file does not have it."""
        document = self.policy.loaded.document
        if document.at(location) is None:
            return ""
        return f"{self.policy.path}:{document.place(location, key=True)[0]}"

    def member(self, *names: str | int) -> str:
        """Name the place of a member of the route."""
        route = self.exchange.route
        if route is None:
            return ""
        known = [model.name for model in self.policy.loaded.policy.routes]
        return self.place("routes", known.index(route.name), *names)


def _token(recorded: Recorded) -> UnverifiedToken | None:
    """Read what the request's token says, believed or not."""
    if recorded.presented is not None:
        return recorded.presented.token
    scheme, _, token = (recorded.request.headers.one(b"authorization") or b"").partition(b" ")
    read = read_token(token.strip(b" ")) if scheme.lower() in {b"bearer", b"dpop"} else None
    return read if isinstance(read, UnverifiedToken) else None


def advice(policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, step: Step, stage: Stage | None) -> list[str]:
    """Say what would have to be otherwise, one sentence for each way. stage: that has made the step."""
    case = _Case(policy, recorded, exchange, step)
    own = policy.snapshot.own.get(step.stage)
    if own is not None and step.reason.code in own.reasons:
        change = own.change(step.reason) or f"{own.code.use} decides otherwise, or with other options"
        return [f"{change}: {case.place('stages', own.name)}"]
    said = [] if stage is None else [line for line in stage.change(case) if line]
    if said:
        return said
    made = _ADVICE.get(step.reason)
    if made is not None:
        return [line for line in made(case) if line]
    general = _GENERAL.get(step.reason)
    return [] if general is None else [general]


def _scope(case: _Case) -> list[str]:
    route, principal = case.exchange.route, case.exchange.principal
    if route is None:
        return []
    missing = sorted(route.require.scopes_all - (frozenset() if principal is None else principal.scopes))
    return [
        f"the token needs the scope {' and '.join(missing)}",
        f"or the route asks for less: {case.member('require', 'scopes_all')}",
    ]


def _role(case: _Case) -> list[str]:
    route = case.exchange.route
    roles = [] if route is None else sorted(route.require.roles_any)
    return [
        f"the token needs one of the roles {', '.join(roles)}",
        f"or the route takes another role: {case.member('require', 'roles_any')}",
    ]


def _claim(case: _Case) -> list[str]:
    route, principal = case.exchange.route, case.exchange.principal
    if route is None or principal is None:
        return []
    lines = []
    for name, allowed in route.require.claims.items():
        found = pointer.find(principal.claims, name)
        values = found if isinstance(found, list) else [found]
        if not any(value in allowed for value in values):
            lines.append(
                f"the claim {name} is {found!r} and needs to be one of {list(allowed)}: "
                f"{case.member('require', 'claims', name)}"
            )
    return lines


def _step_up(case: _Case) -> list[str]:
    route, principal = case.exchange.route, case.exchange.principal
    if route is None or principal is None:
        return []
    require, lines = route.require, []
    if require.acr_values:
        found = principal.claims.get("acr")
        place = case.member("require", "acr_values")
        lines.append(f"the claim acr is {found!r} and needs to be one of {list(require.acr_values)}: {place}")
    if require.max_age is not None:
        found, place = principal.claims.get("auth_time"), case.member("require", "max_age")
        lines.append(f"the claim auth_time is {found!r} and needs to be {require.max_age:g} s ago at the most: {place}")
    return lines


def _condition(case: _Case) -> list[str]:
    return [f"the condition has to hold: {case.member('require', 'when')}; see what of it does not"]


def _network(case: _Case) -> list[str]:
    client, route = case.exchange.client, case.exchange.route
    if client is None:
        return []
    networks, place = case.exchange.snapshot.networks, case.place("networks")
    if route is not None and case.step.stage == "authorization":
        networks, place = route.networks, case.member("networks")
    lines = []
    if networks.deny and client in networks.deny:
        lines.append(f"{client} is in a network that is denied: {place}")
    if networks.allow and client not in networks.allow:
        lines.append(f"{client} is in none of the networks {', '.join(networks.allow.networks)}: {place}")
    return lines


def _described(case: _Case) -> list[str]:
    route, operation = case.exchange.route, case.exchange.operation
    if route is None or route.openapi is None:
        return []
    model = next(known for known in case.policy.loaded.policy.routes if known.name == route.name)
    document = "" if model.openapi is None else model.openapi.document
    what = "a request" if operation is None else f"a request of {operation.name} (line {operation.line})"
    return [f"{what} as {document} describes it: {case.member('openapi')}"]


def _size(case: _Case) -> list[str]:
    bound, declared = case.exchange.max_body, case.exchange.request.declared_body
    if case.step.stage == "openapi":
        return _described(case)
    place = case.member("max_body") or case.place("limits", "body")
    return [f"the body has {declared} bytes and may have {bound}" + (f": {place}" if place else "")]


def _quota(case: _Case) -> list[str]:
    lines = []
    for grant in case.exchange.grants:
        if not grant.admitted:
            place = case.place("rate_limits", grant.limit.name)
            lines.append(
                f"wait {grant.retry_after:.3f} s, or raise {grant.limit.name} ({grant.limit.limit} in any "
                f"{grant.limit.window:g} s): {place}"
            )
    return lines


def _time(case: _Case) -> list[str]:
    if case.token is None:
        return ["the token needs to be valid at the time of the request"]
    times = read_times(case.token.unverified_claims)
    if isinstance(times, Refusal):
        return ["the token needs an expiry (exp) that is a number of seconds"]
    now = case.exchange.now
    if case.step.reason is Reason.TOKEN_EXPIRED:
        return [f"a fresh token: this one expired {now - times.expires:.0f} s before the request"]
    if case.step.reason is Reason.TOKEN_NOT_YET_VALID:
        begins = max(times.not_before or 0.0, times.issued or 0.0)
        return [f"wait: the token is valid {begins - now:.0f} s after the request"]
    issuer = next((i for i in case.exchange.snapshot.issuers.values() if case.token.issuer in i.urls), None)
    place = "" if issuer is None else case.place("identity", "issuers", named(issuer.name), "max_lifetime")
    return [f"a token of a shorter life, or a longer max_lifetime: {place}"]


def _issuer(case: _Case) -> list[str]:
    names = (
        case.exchange.snapshot.default_issuers if case.exchange.route is None else case.exchange.route.issuers
    ) or ()
    known = [f"{name} ({case.exchange.snapshot.issuers[name].issuer})" for name in names]
    lines = [f"a token of {' or '.join(known)}"]
    if case.token is not None:
        lines.append(f"this one is of {case.token.issuer}; the route would have to accept it: {case.member('auth')}")
    return lines


def _audience(case: _Case) -> list[str]:
    if case.token is None:
        return []
    issuer = next((i for i in case.exchange.snapshot.issuers.values() if case.token.issuer in i.urls), None)
    if issuer is None:
        return []
    audience = case.token.unverified_claims.get("aud")
    place = case.place("identity", "issuers", named(issuer.name), "audience")
    return [f"the token's audience is {audience!r} and needs to have one of {list(issuer.audience)}: {place}"]


def _algorithm(case: _Case) -> list[str]:
    if case.token is None:
        return ["a signed token: `none` is never accepted"]
    issuer = next((i for i in case.exchange.snapshot.issuers.values() if case.token.issuer in i.urls), None)
    if issuer is None:
        return []
    place = case.place("identity", "issuers", named(issuer.name), "algorithms")
    return [f"the token is signed with {case.token.algorithm}; accepted is {', '.join(issuer.algorithms)}: {place}"]


def _origin(case: _Case) -> list[str]:
    route, head = case.exchange.route, case.exchange.head
    if head is None:
        return []
    rule, place = (None if route is None else route.cors), case.member("cors")
    origins = case.exchange.snapshot.cors.origins if rule is None or case.exchange.preflight else rule.origins
    return [
        f"the origin {head.headers.text('origin')} would have to be one of {', '.join(origins)}: "
        f"{place or case.place('cors')}"
    ]


def _preflight(case: _Case) -> list[str]:
    head, route = case.exchange.head, case.exchange.route
    origin = None if head is None else head.headers.text("origin")
    rule = None if origin is None else case.exchange.snapshot.cors.rule(origin)
    if route is not None and route.issuers is None:
        rule = route.cors
    if rule is None:
        return []
    place = case.member("cors") or case.place("cors")
    return [f"{case.step.detail.rstrip('.')}: {place} allows {', '.join(rule.methods)}"]


def _no_route(case: _Case) -> list[str]:
    head = case.exchange.head
    path = "" if head is None else head.path
    return [f"a route whose match takes {path}: {case.place('routes')}"]


def _method(case: _Case) -> list[str]:
    missing = case.exchange.no_route
    return ["" if missing is None else f"one of the methods {', '.join(missing.allow)}"]


def _circuit(case: _Case) -> list[str]:
    route = case.exchange.route
    if route is None:
        return []
    circuit, name = route.upstream.circuit, route.upstream.name
    place = case.place("upstreams", name, "circuit") or case.place("upstreams", name)
    return [
        f"the endpoints of {name} would have to recover: {opens_when(circuit)} open the circuit for "
        f"{circuit.open_for:g} s: {place}"
    ]


_GENERAL: Final = {
    Reason.CREDENTIAL_MISSING: "an Authorization field with a bearer token",
    Reason.LOOP_DETECTED: "an upstream that does not send the request back to the gateway",
    Reason.CREDENTIAL_AMBIGUOUS: "a query without access_token: the token stands in Authorization alone",
    Reason.SCHEME_UNSUPPORTED: "an Authorization field with the scheme Bearer",
    Reason.TOKEN_MALFORMED: "a token that is one: three base64url parts, the first two JSON objects",
    Reason.TOKEN_HEADER_INVALID: "a token without critical extensions, compression or nesting",
    Reason.TOKEN_TOO_LARGE: "a smaller token",
    Reason.TOKEN_TYPE_REFUSED: "a token of the type that the issuer's token_type asks for",
    Reason.TOKEN_SIGNATURE_INVALID: "a token that is signed with the issuer's key",
    Reason.TOKEN_KEY_UNKNOWN: "a token that is signed with a key that the issuer publishes",
    Reason.TOKEN_PROOF_UNSUPPORTED: "a token whose `cnf` has `jkt` or `x5t#S256` and nothing else, or none",
    Reason.TOKEN_PROOF_MISSING: "scheme DPoP with one DPoP field, or the certificate that the token is bound to",
    Reason.TOKEN_PROOF_INVALID: "a proof for this request and token, by its key, and of now",
    Reason.TOKEN_PROOF_REPLAYED: "a new proof for each request",
    Reason.TOKEN_PROOF_NONCE: "a proof with the nonce of the DPoP-Nonce field",
    Reason.TOKEN_UNBOUND: "a token that is bound to a key or a certificate (`cnf`)",
    Reason.TOKEN_REVOKED: "a token that was issued after the revocation, or `revoke --lift`",
    Reason.REVOCATIONS_UNKNOWN: "the list of revocations, or `on_failure: last-known`",
    Reason.TOKEN_INACTIVE: "a token that its issuer calls active",
    Reason.INTROSPECTION_UNAVAILABLE: "an answer of the issuer's introspection endpoint; offline it is in recordings",
    Reason.TOKEN_CLAIM_INVALID: "a token whose claims have the form that they must have",
    Reason.KEYS_UNAVAILABLE: "the issuer's keys: --jwks NAME=FILE gives them, --assume-signed does without",
    Reason.PATH_AMBIGUOUS: "a path that every server reads alike: no empty or dot segments, no encoded slash",
    Reason.HEAD_TOO_LARGE: "a smaller head, or a larger limits.head",
    Reason.ADDRESS_UNKNOWN: "a client address: trusted_proxies and X-Forwarded-For do not give one",
    Reason.UPGRADE_REFUSED: "`websocket: true` on the route, and a well-formed handshake",
    Reason.REWRITE_REFUSED: "values that a header field can hold: visible ASCII",
    Reason.HEADER_REPEATED: "the field once",
    Reason.HOST_INVALID: "exactly one valid Host",
    Reason.METHOD_INVALID: "a method that the gateway forwards",
}

_ADVICE: Final[dict[Reason, Callable[[_Case], list[str]]]] = {
    Reason.SCOPE_MISSING: _scope,
    Reason.ROLE_MISSING: _role,
    Reason.CLAIM_MISMATCH: _claim,
    Reason.AUTHENTICATION_INSUFFICIENT: _step_up,
    Reason.CONDITION_FALSE: _condition,
    Reason.CONDITION_ERROR: _condition,
    Reason.ADDRESS_DENIED: _network,
    Reason.BODY_TOO_LARGE: _size,
    Reason.QUOTA_EXCEEDED: _quota,
    Reason.TOKEN_EXPIRED: _time,
    Reason.TOKEN_NOT_YET_VALID: _time,
    Reason.TOKEN_LIFETIME_EXCEEDED: _time,
    Reason.TOKEN_ISSUER_UNKNOWN: _issuer,
    Reason.TOKEN_AUDIENCE_REFUSED: _audience,
    Reason.TOKEN_ALGORITHM_REFUSED: _algorithm,
    Reason.ORIGIN_NOT_ALLOWED: _origin,
    Reason.PREFLIGHT_REFUSED: _preflight,
    Reason.NO_ROUTE: _no_route,
    Reason.METHOD_NOT_ALLOWED: _method,
    Reason.CIRCUIT_OPEN: _circuit,
    Reason.OPERATION_UNKNOWN: _described,
    Reason.OPERATION_NOT_ALLOWED: _described,
    Reason.PARAMETER_MISSING: _described,
    Reason.PARAMETER_INVALID: _described,
    Reason.PARAMETER_UNKNOWN: _described,
    Reason.CONTENT_TYPE_REFUSED: _described,
    Reason.BODY_UNEXPECTED: _described,
    Reason.BODY_INVALID: _described,
}
