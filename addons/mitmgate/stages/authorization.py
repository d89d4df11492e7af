"""Authorization: whether the principal may use the route; also tells that there is no route, once that may be told."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, NamedTuple

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from mitmgate.core import pointer
from mitmgate.core.address import CidrSet
from mitmgate.core.authorize import authorize, facts_of, same
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.routing import NoRoute, allow_field
from mitmgate.core.rules import Networks as Admitted
from mitmgate.core.rules import Requirement
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline import challenges, warnings
from mitmgate.pipeline.coverage import FAILED, HELD, MATCHED, Branch, Rule
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.networks import by_networks, listed, networks_change, of_networks, to_warn_of
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.condition import ConditionError, compile_condition
from mitmgate.policy.declared import of
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.model_shared import Networks
from mitmgate.policy.problem import Code, Location, Problem, nearest
from mitmgate.policy.scalars import Claim, Duration, Role, Scope, Text, one_or_more, wrong
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot


def _claim_value(value: Any) -> str | int | float | bool:
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong("must be text, a number, true or false")
    return value


ClaimValue = Annotated[
    str | int | float | bool,
    PlainValidator(_claim_value),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]


def _condition(text: str) -> str:
    try:
        compile_condition(text)
    except ConditionError as error:
        raise wrong(str(error), error.hint, unquoted="must be a CEL expression that is true or false") from None
    return str(text)


def _acr(text: str) -> str:
    if not text.isascii() or set(text) & set(' "\\'):
        message = "must be one class: a challenge can't say one with a space, a quote, a backslash or beyond ASCII"
        raise wrong(message, unquoted=message)
    return str(text)


AuthenticationClass = Annotated[Text, AfterValidator(_acr)]


class Require(Section):
    """What a principal must have; everything that is given must hold."""

    scopes_all: Annotated[tuple[Scope, ...], one_or_more(Scope)] = ()
    """Scopes, all of them."""
    roles_any: Annotated[tuple[Role, ...], one_or_more(Role)] = ()
    """Roles, one of them."""
    claims: dict[Claim, Annotated[tuple[ClaimValue, ...], Field(min_length=1), one_or_more(ClaimValue)]] = Field(
        default={}
    )
    """Claims by name, or beginning with "/" by a JSON pointer, each with the values that it may have; types are
    compared, too."""
    acr_values: Annotated[tuple[AuthenticationClass, ...], one_or_more(AuthenticationClass)] = ()
    """Authentication context classes (`acr`) of which a token needs one; others are told to step up (RFC 9470)."""
    max_age: Duration | None = Field(
        default=None, description="How long ago the user may have authenticated (seconds), by `auth_time`."
    )
    when: Annotated[str, Field(strict=True), AfterValidator(_condition)] | None = None
    """A CEL expression over request, principal, client and route that must be true."""


class OfRoute(Section):
    """Its members of a route."""

    require: Require = Require()
    networks: Networks = Networks()
    """Client addresses, beside those of the whole policy."""


class Required(NamedTuple):
    """What a route requires. reads: what its condition does. networks: None where every address may come in."""

    requirement: Requirement
    reads: Mapping[str, Iterable[str]] | None = None
    networks: Admitted | None = None


class Requirements(NamedTuple):
    """What routes require, by their names."""

    of_routes: Mapping[str, Required]


class Authorization(Stage):
    """Check what the route requires: the client's network, scopes, roles, claims, the CEL condition.

    Reads: route or no_route, principal, client, now; for a condition also head. Writes: challenge, and answer for the
    Allow field. Denies: 404 no-route, 405 method-not-allowed and 400 path-ambiguous, where servers could read the path
    as that of another route (these three are final in report mode too: there is nowhere to go), 403 address-denied
    (the route's networks), 403 for each member of `require` but 401 authentication-insufficient (RFC 9470), 401 where a
    route that is not public has no principal. On failure: 503 stage-error; a condition that fails is 403
    condition-error.
    """

    name: ClassVar[str] = "authorization"
    route_section: ClassVar[type[Section]] = OfRoute
    reasons: ClassVar[tuple[Reason, ...]] = (
        Reason.NO_ROUTE,
        Reason.METHOD_NOT_ALLOWED,
        Reason.PATH_AMBIGUOUS,
        Reason.ADDRESS_DENIED,
        Reason.CREDENTIAL_MISSING,
        Reason.AUTHENTICATION_INSUFFICIENT,
        Reason.SCOPE_MISSING,
        Reason.ROLE_MISSING,
        Reason.CLAIM_MISMATCH,
        Reason.CONDITION_FALSE,
        Reason.CONDITION_ERROR,
        Reason.CONDITION_TIMEOUT,
    )
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.CREDENTIAL_MISSING: "an Authorization field with a bearer token",
        Reason.PATH_AMBIGUOUS: "a path that every server reads alike: no empty or dot segments, no encoded slash",
    }

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        route, principal = exchange.route, exchange.principal
        if route is None:
            return {}
        require, _, networks = required(exchange)
        wanted: dict[str, object] = {
            "scopes_all": sorted(require.scopes_all),
            "roles_any": sorted(require.roles_any),
            "claims": {name: list(values) for name, values in require.claims.items()},
            "acr_values": list(require.acr_values),
            "max_age": require.max_age,
            "when": None if require.when is None else require.when.source,
        }
        read = {} if networks is None else listed(exchange, networks)
        read["required"] = {name: value for name, value in wanted.items() if value}
        if principal is not None:
            read |= {"scopes": sorted(principal.scopes), "roles": list(principal.roles)}
            read["claims"] = {name: pointer.find(principal.claims, name) for name in require.claims}
            step_up = ["acr"] * bool(require.acr_values) + ["auth_time"] * (require.max_age is not None)
            read |= {name: principal.claims.get(name) for name in step_up}
        return read

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at = route_at(exchange)
        required = ("scopes_all", "roles_any", "claims", "acr_values", "max_age", "when")
        networks = [(*at, "networks", name) for name in ("deny", "allow")]
        return [*networks, *((*at, "require", name) for name in required)] if at else []

    def condition(self, exchange: Exchange) -> str | None:
        """Return the route's condition."""
        when = None if exchange.route is None else required(exchange).requirement.when
        return None if when is None else when.source

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count networks, and what is required."""
        for index, route in enumerate(loaded.policy.routes):
            own = of(route, OfRoute)
            yield from of_networks(own.networks, ("routes", index, "networks"))
            yield from _requirements(own.require, ("routes", index, "require"), loaded.document)

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        at, principal = route_at(exchange), exchange.principal
        if not at:
            return
        model = of(exchange.snapshot.policy.routes[int(at[1])], OfRoute)
        if exchange.client is not None:
            yield from by_networks(exchange.client, model.networks, (*at, "networks"))
        if principal is not None:
            yield from _met(model.require, principal, step.reason, (*at, "require"))

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find networks, claims and comparisons of conditions that admit nobody."""
        policy, document = loaded.policy, loaded.document
        routes = [of(route, OfRoute) for route in policy.routes]
        for index, route in enumerate(routes):
            at: Location = ("routes", index)
            yield from to_warn_of(policy, route.networks, (*at, "networks"), document)
            claims = [((*at, "require", "claims", claim), claim) for claim in route.require.claims]
            yield from warnings.like_a_path(document, claims)
        yield from _never_hold(policy, document)
        for index, route in enumerate(routes):
            at = ("routes", index, "require", "when")
            names = ["".join(match.groups(default="")) for match in _HEADER_READ.finditer(route.require.when or "")]
            for name in names:
                if name != name.lower():
                    message = "names in request.headers are in lower case"
                    yield document.warning(at, Code.NEVER_MATCHES, message, f"write {name.lower()}")
            yield from warnings.removed(document, snapshot, [(at, name) for name in names if name == name.lower()])

    @classmethod
    def mistakes(cls, document: Document) -> Iterator[Problem]:
        """Find public routes that ask for what only a principal has."""
        routes = document.at(("routes",))
        for index in range(len(routes) if isinstance(routes, list) else 0):
            at: Location = ("routes", index, "require")
            if document.at(("routes", index, "auth")) == "none" and isinstance(document.at(at), dict):
                yield from _of_nobody(document, at)

    @classmethod
    def compiled(cls, loaded: Loaded) -> Requirements:
        """Take what each route requires."""
        return Requirements({route.name: _required(of(route, OfRoute)) for route in loaded.policy.routes})

    def decide(self, exchange: Exchange) -> Step:
        """Admit, or deny with the first requirement that is not met."""
        route = exchange.route
        if route is None:
            if exchange.no_route is None:
                raise LookupError("routing has not spoken")
            return self._no_route(exchange, exchange.no_route)
        head = exchange.head
        if head is None:
            raise LookupError("the head was not made")
        principal, client = exchange.principal, exchange.client
        if principal is None and route.issuers is not None:
            exchange.challenge = exchange.challenge or challenges.of_kind(exchange, route.credentials[0])
            return self.deny(Reason.CREDENTIAL_MISSING, "This request needs an access token.")
        requirements = exchange.snapshot.compiled[self.name]
        if not isinstance(requirements, Requirements):
            raise TypeError("no requirements")
        require, reads, networks = requirements.of_routes[route.name]
        if networks is not None and (client is None or not networks.admit(client)):
            return self.deny(Reason.ADDRESS_DENIED, "The client address is not allowed here.")
        if require is _NOTHING:
            return self.admitted
        certificate = exchange.request.certificate
        refusal = authorize(
            require,
            principal,
            lambda: facts_of(head, principal, client, route.name, certificate, reads),
            exchange.now,
            0.0 if require.max_age is None or principal is None else exchange.snapshot.leeway(principal.issuer),
        )
        if refusal is None:
            return self.admitted
        kind = challenges.kind_of(principal)
        if refusal.reason is Reason.SCOPE_MISSING and kind == "jwt":
            exchange.challenge = challenges.of_token(exchange, _scope_parameters(require))
        elif refusal.reason is Reason.AUTHENTICATION_INSUFFICIENT and (kind == "jwt" or "jwt" in route.credentials):
            exchange.challenge = challenges.of_token(exchange, _step_up_parameters(require, refusal.detail))
        elif refusal.reason.status == 401:
            exchange.challenge = challenges.of_kind(exchange, kind)
        return self.deny(refusal.reason, refusal.detail)

    def _no_route(self, exchange: Exchange, missing: NoRoute) -> Step:
        if missing.ambiguous:
            return self.deny(Reason.PATH_AMBIGUOUS, missing.ambiguous)
        if not missing.allow:
            return self.deny(Reason.NO_ROUTE, "There is nothing at this path.")
        exchange.answer = Answer(405, fields=allow_field(missing.allow))
        return self.deny(Reason.METHOD_NOT_ALLOWED, "This path does not take this method.")


def _of_nobody(document: Document, at: Location) -> Iterator[Problem]:
    nobody, hint = "a public route has no principal", "leave out auth: none"
    for member in ("scopes_all", "roles_any", "claims", "acr_values", "max_age"):
        if document.at((*at, member)):
            yield document.problem((*at, member), nobody, found="", hint=hint, key=True)
    when = document.at((*at, "when"))
    if isinstance(when, str):
        try:
            reads = compile_condition(when).variables
        except ConditionError:
            reads = frozenset()
        # core.authorize asks no condition without a principal, so that "not banned" never holds of nobody.
        message = nobody if "principal" in reads else "a public route has no condition: nobody is there to meet it"
        yield document.problem((*at, "when"), message, hint=hint)


def required(exchange: Exchange) -> Required:
    """Return what the route of a request requires. Raises LookupError where it has none."""
    requirements, route = exchange.snapshot.compiled[Authorization.name], exchange.route
    if route is None or not isinstance(requirements, Requirements):
        raise LookupError("no requirements")
    return requirements.of_routes[route.name]


_NOTHING: Final = Requirement()


def _required(route: OfRoute) -> Required:
    require = route.require
    networks = Admitted(CidrSet(route.networks.allow), CidrSet(route.networks.deny))
    requirement = Requirement(
        scopes_all=frozenset(require.scopes_all),
        roles_any=frozenset(require.roles_any),
        claims=dict(require.claims),
        when=None if require.when is None else compile_condition(require.when),
        acr_values=require.acr_values,
        max_age=require.max_age,
    )
    reads = None if requirement.when is None else requirement.when.reads
    return Required(_NOTHING if requirement == _NOTHING else requirement, reads, networks or None)


def _requirements(require: Require, at: Location, document: Document) -> Iterator[Rule]:
    """Yield the rules of `require`. What is the only one of its list is the list's rule."""
    for index, scope in enumerate(require.scopes_all):
        yield Rule((*at, "scopes_all", index), f"scope {scope}", (HELD, FAILED))
    if require.roles_any:
        yield Rule((*at, "roles_any"), "the roles", (HELD, FAILED))
        if isinstance(document.at((*at, "roles_any")), list):
            for index, role in enumerate(require.roles_any):
                yield Rule((*at, "roles_any", index), f"role {role}", (MATCHED,))
    for name, values in require.claims.items():
        yield Rule((*at, "claims", name), f"claim {name}", (HELD, FAILED))
        if isinstance(document.at((*at, "claims", name)), list):
            for index, value in enumerate(values):
                yield Rule((*at, "claims", name, index), f"claim {name} = {value}", (MATCHED,))
    if require.acr_values:
        yield Rule((*at, "acr_values"), "the authentication's class", (HELD, FAILED))
    if require.max_age is not None:
        yield Rule((*at, "max_age"), "the authentication's age", (HELD, FAILED))
    if require.when is not None:
        yield Rule((*at, "when"), "the condition", (HELD, FAILED))


def _met(require: Require, principal: Principal, reason: Reason, at: Location) -> Iterator[Branch]:
    """Yield what a request exercised, in the order of core.authorize: the first that fails ends it."""
    for index, scope in enumerate(require.scopes_all):
        yield (*at, "scopes_all", index), HELD if scope in principal.scopes else FAILED
    if reason is Reason.SCOPE_MISSING:
        return
    if require.roles_any:
        yield (*at, "roles_any"), FAILED if reason is Reason.ROLE_MISSING else HELD
        for index, role in enumerate(require.roles_any):
            if role in principal.roles:
                yield (*at, "roles_any", index), MATCHED
        if reason is Reason.ROLE_MISSING:
            return
    for name, allowed in require.claims.items():
        found = pointer.find(principal.claims, name)
        values = found if isinstance(found, list) else [found]
        met = [index for index, value in enumerate(allowed) if any(same(value, each) for each in values)]
        yield (*at, "claims", name), HELD if met else FAILED
        for index in met:
            yield (*at, "claims", name, index), MATCHED
        if not met:
            return
    weak = bool(require.acr_values) and principal.claims.get("acr") not in require.acr_values
    if require.acr_values:
        yield (*at, "acr_values"), FAILED if weak else HELD
    if require.max_age is not None and not weak:
        yield (*at, "max_age"), FAILED if reason is Reason.AUTHENTICATION_INSUFFICIENT else HELD
    if reason is not Reason.AUTHENTICATION_INSUFFICIENT and require.when is not None:
        yield (*at, "when"), FAILED if reason in {Reason.CONDITION_FALSE, Reason.CONDITION_ERROR} else HELD


def _scope_parameters(require: Requirement) -> str:
    """Name the scopes that a request needs, for a challenge (RFC 6750, section 3.1)."""
    return f'error="insufficient_scope", scope="{" ".join(sorted(require.scopes_all))}"'


def _step_up_parameters(require: Requirement, detail: str) -> str:
    """Say which authentication a request needs, for a challenge (RFC 9470, section 3)."""
    made = f'error="insufficient_user_authentication", error_description="{detail}"'
    if require.acr_values:
        made += f', acr_values="{" ".join(require.acr_values)}"'
    if require.max_age is not None:
        made += f', max_age="{int(require.max_age)}"'
    return made


def _scope_change(denial: Denial) -> list[str]:
    route, principal = denial.exchange.route, denial.exchange.principal
    if route is None:
        return []
    missing = sorted(
        required(denial.exchange).requirement.scopes_all - (frozenset() if principal is None else principal.scopes)
    )
    return [
        f"the token needs the scope {' and '.join(missing)}",
        f"or the route asks for less: {denial.member('require', 'scopes_all')}",
    ]


def _role_change(denial: Denial) -> list[str]:
    route = denial.exchange.route
    roles = [] if route is None else sorted(required(denial.exchange).requirement.roles_any)
    return [
        f"the token needs one of the roles {', '.join(roles)}",
        f"or the route takes another role: {denial.member('require', 'roles_any')}",
    ]


def _claim_change(denial: Denial) -> list[str]:
    route, principal = denial.exchange.route, denial.exchange.principal
    if route is None or principal is None:
        return []
    lines = []
    for name, allowed in required(denial.exchange).requirement.claims.items():
        found = pointer.find(principal.claims, name)
        values = found if isinstance(found, list) else [found]
        if not any(value in allowed for value in values):
            lines.append(
                f"the claim {name} is {found!r} and needs to be one of {list(allowed)}: "
                f"{denial.member('require', 'claims', name)}"
            )
    return lines


def _step_up_change(denial: Denial) -> list[str]:
    route, principal = denial.exchange.route, denial.exchange.principal
    if route is None or principal is None:
        return []
    require, lines = required(denial.exchange).requirement, list[str]()
    if require.acr_values:
        found = principal.claims.get("acr")
        place = denial.member("require", "acr_values")
        lines.append(f"the claim acr is {found!r} and needs to be one of {list(require.acr_values)}: {place}")
    if require.max_age is not None:
        found, place = principal.claims.get("auth_time"), denial.member("require", "max_age")
        lines.append(f"the claim auth_time is {found!r} and needs to be {require.max_age:g} s ago at the most: {place}")
    return lines


def _condition_change(denial: Denial) -> list[str]:
    return [f"the condition has to hold: {denial.member('require', 'when')}; see what of it does not"]


def _network_change(denial: Denial) -> list[str]:
    networks = None if denial.exchange.route is None else required(denial.exchange).networks
    return [] if networks is None else networks_change(denial, networks, denial.member("networks"))


def _no_route_change(denial: Denial) -> list[str]:
    head = denial.exchange.head
    path = "" if head is None else head.path
    return [f"a route whose match takes {path}: {denial.place('routes')}"]


def _method_change(denial: Denial) -> list[str]:
    missing = denial.exchange.no_route
    return ["" if missing is None else f"one of the methods {', '.join(missing.allow)}"]


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.SCOPE_MISSING: _scope_change,
    Reason.ROLE_MISSING: _role_change,
    Reason.CLAIM_MISMATCH: _claim_change,
    Reason.AUTHENTICATION_INSUFFICIENT: _step_up_change,
    Reason.CONDITION_FALSE: _condition_change,
    Reason.CONDITION_ERROR: _condition_change,
    Reason.ADDRESS_DENIED: _network_change,
    Reason.NO_ROUTE: _no_route_change,
    Reason.METHOD_NOT_ALLOWED: _method_change,
}


def _never_hold(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find comparisons of a condition that never hold: with a method in lower case, with another route's name."""
    issuers = [name for issuer in policy.identity.issuers for name in policy.identity.names_of(issuer)]
    issuers += ["api-key"] if policy.api_keys is not None else []
    issuers += ["certificate"] if policy.identity.certificates is not None else []
    for index, route in enumerate(policy.routes):
        when = of(route, OfRoute).require.when
        if when is None:
            continue
        at: Location = ("routes", index, "require", "when")
        for fact, text in _compared(when):
            if fact == "request.method" and text != text.upper():
                yield document.warning(at, Code.NEVER_MATCHES, "request.method is in capitals", f"write {text.upper()}")
            elif fact == "request.host" and text != text.lower():
                yield document.warning(at, Code.NEVER_MATCHES, "request.host is in lower case", f"write {text.lower()}")
            elif fact == "principal.issuer" and text not in issuers:
                message = "principal.issuer is the name that the policy gives an issuer, and there is none of this name"
                yield document.warning(at, Code.NEVER_MATCHES, message, nearest(text, issuers))
            elif fact == "route.name" and text != route.name:
                yield document.warning(at, Code.NEVER_MATCHES, f"route.name is {route.name} here, whatever the request")


_FACT = r"(request\.method|request\.host|principal\.issuer|route\.name)"
_LITERAL = r"""(?:"([^"\\]*)"|'([^'\\]*)')"""
_COMPARISON = re.compile(rf"\b{_FACT}\s*[!=]=\s*{_LITERAL}|{_LITERAL}\s*[!=]=\s*{_FACT}\b")
_AMONG = re.compile(rf"\b{_FACT}\s+in\s+\[([^\[\]]*)\]")
_ONE_LITERAL = re.compile(_LITERAL)


def _compared(condition: str) -> Iterator[tuple[str, str]]:
    """Yield the facts of a condition that are compared with a literal, and the literal."""
    for match in _COMPARISON.finditer(condition):
        first, *texts, last = match.groups(default="")
        yield first or last, "".join(texts)
    for match in _AMONG.finditer(condition):
        for literal in _ONE_LITERAL.finditer(match.group(2)):
            yield match.group(1), "".join(literal.groups(default=""))


_HEADER_READ = re.compile(
    rf"\brequest\.headers\s*\[\s*{_LITERAL}\s*\]|{_LITERAL}\s+in\s+request\.headers\b|\brequest\.headers\.([A-Za-z_]\w*)\b(?!\s*\()"
)
