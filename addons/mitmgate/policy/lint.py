"""What is allowed in a policy and still worth a second look: warnings, and which of them the policy acknowledges."""

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from mitmgate.core import template
from mitmgate.core.address import parse_address
from mitmgate.core.client_fields import Disposition
from mitmgate.core.rewrite import upstream_path
from mitmgate.core.routing import RouteTable, host_matches
from mitmgate.core.rules import Route, name_of
from mitmgate.keys.discovery import needs_consent
from mitmgate.policy.compiler import compile_policy, default_issuers
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.model_audit import FileSink
from mitmgate.policy.model_decisions import warnings as of_decision_services
from mitmgate.policy.model_routes import Credentials, accepted
from mitmgate.policy.model_shared import Networks
from mitmgate.policy.model_upstreams import parse_endpoint
from mitmgate.policy.own_stages import Own
from mitmgate.policy.problem import Code, Location, Problem, in_order, nearest
from mitmgate.policy.scalars import METHODS, pattern_in
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot

LONGEST_LEEWAY = 300.0  # seconds
_EVERYONE = frozenset({"0.0.0.0/0", "::/0"})
_ELSEWHERE = frozenset({Code.UNWRITABLE, Code.UNKEYED_CHAIN, Code.CERTIFICATE_TIME})
"""Warnings that depend on machine and time: to acknowledge one that is not there now is no mistake."""


class Acknowledged(NamedTuple):
    """A warning that the policy says is meant, and why."""

    problem: Problem
    reason: str


class Review(NamedTuple):
    """What there is to say of a valid policy, in the order of the file."""

    warnings: tuple[Problem, ...]
    acknowledged: tuple[Acknowledged, ...]


def lint(loaded: Loaded) -> tuple[Problem, ...]:
    """Return every warning of a valid policy that it does not acknowledge, those of loading included."""
    return review(loaded).warnings


def review(loaded: Loaded, snapshot: Snapshot | None = None) -> Review:
    """Find every warning of a valid policy. snapshot: what it was compiled to, where that was done already."""
    policy, document = loaded.policy, loaded.document
    snapshot = snapshot or compile_policy(loaded)
    found = list(loaded.warnings)
    for rule in RULES:
        found += rule(policy, document)
    found += _unreachable(snapshot.routes, policy, document)
    found += _removed_fields(snapshot, policy, document)
    found += _undescribed(snapshot, policy, document)
    found += _files(snapshot, policy, document)
    for own in loaded.stages.values():
        found += _stage(own, document)
    reasons = dict(_reasons(policy, ()))
    warnings, acknowledged, used = [], [], set()
    for problem in in_order(found):
        place = next(
            (
                place
                for length in range(len(problem.location), -1, -1)
                if (place := (problem.location[:length], problem.code)) in reasons
            ),
            None,
        )
        if place is None:
            warnings.append(problem)
        else:
            used.add(place)
            acknowledged.append(Acknowledged(problem, reasons[place]))
    for location, code in reasons.keys() - used:
        if code not in _ELSEWHERE:
            at = (*location, "acknowledge", code)
            message = f"there is no warning {code} here that could be meant"
            warnings.append(document.warning(at, Code.NOTHING_TO_ACKNOWLEDGE, message, "leave it out", key=True))
    return Review(in_order(warnings), tuple(acknowledged))


def _undescribed(snapshot: Snapshot, policy: Policy, document: Document) -> Iterator[Problem]:
    """Find routes whose OpenAPI document has nothing where their requests go: it denies them all."""
    described = {route.name: route for route in snapshot.routes.routes if route.openapi is not None}
    for index, model in enumerate(policy.routes):
        route = described.get(model.name)
        path = None if route is None else upstream_path(route, route.path)
        if route is None or route.openapi is None or path is None:
            continue
        if not route.openapi.reaches(path, exact=route.exact):
            message = f"the document has no operation at {path}, which is what the service gets: all is denied"
            hint = "set base to the path that the document's paths are below"
            yield document.warning(("routes", index, "openapi"), Code.NEVER_MATCHES, message, hint)


def _stage(own: Own, document: Document) -> Iterator[Problem]:
    """Ask a stage of the operator's own what it warns of; that it can't say is worth a warning, too."""
    try:
        said = [str(text) for text in own.make().warnings()]
    except Exception as error:
        said = [f"its warnings can't be asked for: {type(error).__name__}"]
    for text in said:
        yield document.warning(("stages", own.name), Code.STAGE_WARNS, text, key=True)


def _reasons(value: object, location: Location) -> Iterator[tuple[tuple[Location, Code], str]]:
    """Yield what the policy acknowledges: the place of the mapping, the warning's code, and the reason."""
    if isinstance(value, Section):
        for code, reason in value.acknowledge.items():
            yield (location, Code(code)), reason
        for name in type(value).model_fields:
            if name != "acknowledge":
                yield from _reasons(getattr(value, name), (*location, name))
    elif isinstance(value, dict):
        for name, member in value.items():
            yield from _reasons(member, (*location, name))
    elif isinstance(value, tuple):
        for index, member in enumerate(value):
            yield from _reasons(member, (*location, index))


def _modes(policy: Policy, document: Document) -> Iterator[Problem]:
    message = "report admits what it only records"
    if policy.mode == "report":
        yield document.warning(("mode",), Code.REPORT_MODE, f"{message}; nothing is enforced")
    for index, route in enumerate(policy.routes):
        if route.mode == "report":
            yield document.warning(("routes", index, "mode"), Code.REPORT_MODE, message)
    for name, limit in policy.rate_limits.items():
        if limit.mode == "report":
            yield document.warning(("rate_limits", name, "mode"), Code.REPORT_MODE, "report counts and denies nobody")


def _public(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, route in enumerate(policy.routes):
        if route.auth == "none":
            yield document.warning(("routes", index, "auth"), Code.PUBLIC, f"{route.name} is public: it needs no token")


def _unlimited(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, route in enumerate(policy.routes):
        if not route.rate_limits and not policy.client_limits:
            location = ("routes", index)
            yield document.warning(
                location, Code.NO_RATE_LIMIT, f"{route.name} has no rate limit", "add rate_limits, or client_limits"
            )


def _unused(policy: Policy, document: Document) -> Iterator[Problem]:
    routes = policy.routes
    trusted = set(policy.identity.default or (policy.identity.issuers if len(policy.identity.issuers) == 1 else ()))
    for route in routes:
        if isinstance(route.auth, Credentials):
            trusted |= set(route.auth.issuers or ())
    asked = {name for route in routes if (name := route.decision or policy.decision) is not None}
    tables: list[tuple[Location, set[str], set[str]]] = [
        (("upstreams",), set(policy.upstreams), {route.upstream for route in routes}),
        (
            ("rate_limits",),
            set(policy.rate_limits),
            {*policy.client_limits, *(name for route in routes for name in route.rate_limits)},
        ),
        (("cors",), set(policy.cors), {route.cors for route in routes if route.cors is not None}),
        (("decision_services",), set(policy.decision_services), asked),
        (("identity", "issuers"), set(policy.identity.issuers), trusted),
    ]
    for location, defined, used in tables:
        for name in defined - used:
            yield document.warning((*location, name), Code.UNUSED, "nothing uses this", key=True)


def _browsers(policy: Policy, document: Document) -> Iterator[Problem]:
    """A cookie that others can set makes users act as somebody else."""
    if policy.identity.browsers.tickets is not None and not any(
        "ticket" in route.credentials for route in policy.routes
    ):
        place = ("identity", "browsers", "tickets")
        yield document.warning(place, Code.UNUSED, "no route takes them", "add credentials: [header, ticket]", key=True)
    cookie, at = policy.identity.browsers.cookie, ("identity", "browsers", "cookie")
    if cookie is None:
        return
    if not cookie.startswith("__Host-"):
        message = "other hosts of the domain, and whoever is on the way without TLS, can set this cookie"
        yield document.warning(at, Code.COOKIE_OF_OTHERS, message, f"name it __Host-{cookie.removeprefix('__Secure-')}")
    if not any("cookie" in route.credentials for route in policy.routes):
        yield document.warning(at, Code.UNUSED, "no route takes it", "add credentials: [header, cookie]")


def _of_machines(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find API keys and certificates that no route takes, and names of certificates that none can have."""
    rules = [accepted(route.auth) for route in policy.routes]
    taken = {kind for rule in rules if rule is not None for kind in rule.kinds}
    if policy.api_keys is not None and "api-key" not in taken:
        yield document.warning(("api_keys",), Code.UNUSED, "no route takes API keys", "add auth: api-key", key=True)
    certificates, at = policy.identity.certificates, ("identity", "certificates")
    if certificates is None:
        return
    if "certificate" not in taken:
        yield document.warning(at, Code.UNUSED, "no route takes certificates", "add auth: certificate", key=True)
    if (certificates.forwarded or certificates.header) and not (policy.trusted_proxies or policy.decide.trusted):
        message = "no proxy is trusted, so that no certificate which one passes on counts"
        member = "forwarded" if certificates.forwarded else "header"
        yield document.warning((*at, member), Code.UNUSED, message, "add trusted_proxies")
    for pattern in certificates.roles:
        scheme, slashes, rest = pattern.partition("://")
        domain = rest.partition("/")[0]
        if scheme == "spiffe" and slashes and "*" not in domain and domain not in certificates.spiffe:
            message = f"{domain} is no trust domain of spiffe, so that no principal has such a name"
            yield document.warning(
                (*at, "roles", pattern), Code.NEVER_MATCHES, message, nearest(domain, certificates.spiffe), key=True
            )


def _resources(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find published resources that no route serves: clients would ask their issuer for tokens in vain."""
    for index, published in enumerate(policy.identity.resources):
        parts = urlsplit(published.resource)
        base = (parts.path or "/").rstrip("/") + "/"
        for route in policy.routes:
            path = (route.match.exact or route.match.prefix or "").rstrip("/") + "/"
            hosts = route.match.hosts
            above = route.match.prefix is not None and base.startswith(path)
            named = not hosts or any(host_matches(host, parts.hostname or "") for host in hosts)
            if route.auth != "none" and named and (path.startswith(base) or above):
                break
        else:
            at = ("identity", "resources", index, "resource")
            yield document.warning(at, Code.UNUSED, "no route that needs a token is at or below this resource")


def _issuers(policy: Policy, document: Document) -> Iterator[Problem]:
    kinds = {
        algorithm.startswith("HS") for issuer in policy.identity.issuers.values() for algorithm in issuer.algorithms
    }
    for name, issuer in policy.identity.issuers.items():
        location: Location = ("identity", "issuers", name)
        if not issuer.audience:
            yield document.warning(
                location, Code.ANY_AUDIENCE, "tokens for any audience are accepted", "add audience", key=True
            )
        if issuer.leeway > LONGEST_LEEWAY:
            yield document.warning(
                (*location, "leeway"), Code.LONG_LEEWAY, "a leeway above 5m lets expired tokens live on"
            )
        if issuer.max_lifetime is None:
            yield document.warning(
                location, Code.ANY_LIFETIME, "tokens of any lifetime are accepted", "add max_lifetime", key=True
            )
        urls = [url for _, _, url in issuer.of_tenants()]
        asked = issuer.introspection
        if asked is not None and asked.plain_http and needs_consent(asked.url):
            at = (*location, "introspection", "plain_http")
            yield document.warning(
                at, Code.KEYS_OVER_HTTP, "tokens go over plain http: who is on the way has them", "use https"
            )
        if (
            issuer.keys is not None
            and issuer.keys.plain_http
            and any(needs_consent(url or issuer.issuer[0]) for url in urls)
        ):
            at = (*location, "keys", "plain_http")
            yield document.warning(
                at, Code.KEYS_OVER_HTTP, "keys over plain http: who is on the way can replace them", "use https"
            )
        if len(kinds) > 1 and any(algorithm.startswith("HS") for algorithm in issuer.algorithms):
            at = (*location, "algorithms")
            yield document.warning(
                at,
                Code.SHARED_SECRET,
                "a shared secret beside issuers with public keys: whoever verifies can also sign",
            )


def _two_issuers(policy: Policy, document: Document) -> Iterator[Problem]:
    """Two issuers may each have an alice; a policy that names the issuer's field has thought of it."""
    identity = policy.identity
    if identity.forward.issuer is not None:
        return
    places: list[tuple[Location, tuple[str, ...]]] = [(("identity", "default"), identity.default or ())]
    for index, route in enumerate(policy.routes):
        if isinstance(route.auth, Credentials):
            others = tuple(kind for kind in route.auth.any or () if kind != "jwt")
            given = route.auth.issuers or ()
            if others and "jwt" in route.auth.kinds:
                given = given or default_issuers(identity) or ()
            places.append((("routes", index, "auth", "any" if others else "issuers"), (*given, *others)))
    for location, given in places:
        names = [name for issuer in given for name in _issuer_names(policy, issuer)]
        if len(set(names)) > 1:
            message = f"{' and '.join(names)} may each have a subject of the same name: one {identity.forward.subject}"
            hint = "have services read X-User-Issuer with it, and name it: identity.forward.issuer"
            yield document.warning(location, Code.TWO_ISSUERS, message, hint)


def _issuer_names(policy: Policy, issuer: str) -> list[str]:
    """Return the names that principals of an issuer have: one for each of its tenants."""
    known = policy.identity.issuers.get(issuer)
    return [name_of(issuer, tenant) for tenant in (known.tenants if known is not None else ()) or (None,)]


def _loopback(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _networks(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, network in enumerate(policy.trusted_proxies):
        if network in _EVERYONE:
            yield document.warning(
                ("trusted_proxies", index),
                Code.TRUSTS_EVERYONE,
                "everyone is a trusted proxy, and may claim any address",
            )
    for index, network in enumerate(policy.decide.trusted):
        if network in _EVERYONE:
            message = "everyone may ask for decisions, and say of any request what he likes"
            yield document.warning(("decide", "trusted", index), Code.TRUSTS_EVERYONE, message)
    if "decide" in policy.model_fields_set and not policy.decide.trusted:
        message = "no peer is trusted, so that every check is refused"
        yield document.warning(("decide",), Code.DECIDES_FOR_NOBODY, message, "list the proxies in trusted", key=True)
    yield from _deny_only(policy.networks, ("networks",), document)
    for index, route in enumerate(policy.routes):
        yield from _deny_only(route.networks, ("routes", index, "networks"), document)


def _deny_only(networks: Networks, location: Location, document: Document) -> Iterator[Problem]:
    if networks.deny and not networks.allow:
        yield document.warning(
            location, Code.DENY_ONLY, "an empty allow list allows all that deny does not name", "add allow"
        )


def _limits(policy: Policy, document: Document) -> Iterator[Problem]:
    for name, limit in policy.rate_limits.items():
        at = ("rate_limits", name)
        if any(key.startswith("header:") for key in limit.key) and not set(limit.key) & {"principal", "client_ip"}:
            yield document.warning(
                (*at, "key"), Code.CLIENT_CHOOSES, "a client chooses its headers, and with them what it is counted by"
            )
        if limit.on_store_failure == "allow":
            yield document.warning(
                (*at, "on_store_failure"), Code.UNLIMITED_WITHOUT_STORE, "without the store there is no limit at all"
            )


def _upstreams(policy: Policy, document: Document) -> Iterator[Problem]:
    for name, upstream in policy.upstreams.items():
        if upstream.tls is not None and not any(url.startswith("https://") for url in upstream.endpoints):
            yield document.warning(
                ("upstreams", name, "tls"), Code.UNUSED, "no endpoint is https, so tls is never used", key=True
            )


def _hsts(policy: Policy, document: Document) -> Iterator[Problem]:
    for name in policy.response_headers.set:
        if name.lower() == "strict-transport-security" and policy.listen.tls is None:
            at = ("response_headers", "set", name)
            yield document.warning(
                at,
                Code.HSTS_OVER_HTTP,
                "browsers ignore HSTS over http; right only behind a proxy that ends TLS",
                key=True,
            )


def _audit(policy: Policy, document: Document) -> Iterator[Problem]:
    audit = policy.audit
    if not audit.sinks:
        yield document.warning(("audit",), Code.NO_AUDIT, "no audit sink: decisions are not kept", "add audit.sinks")
    elif audit.chain.key_env is None:
        yield document.warning(
            ("audit",),
            Code.UNKEYED_CHAIN,
            "the audit chain is unkeyed: anyone can forge it",
            "add chain: {key_env: NAME}",
        )
    if audit.on_full == "drop":
        yield document.warning(("audit", "on_full"), Code.LOSES_EVENTS, "drop loses events while the queue is full")


def _claim_names(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find names that are paths elsewhere: here a path is a JSON pointer, and begins with a slash."""
    wanted: list[tuple[Location, str]] = []
    for name, issuer in policy.identity.issuers.items():
        for member in ("subject", "roles", "scopes", "audience", "required"):
            location: Location = ("identity", "issuers", name, "claims", member)
            wanted += _each(document, location, getattr(issuer.claims, member))
        wanted += [(("identity", "issuers", name, "require", claim), claim) for claim in issuer.require]
    for name, limit in policy.rate_limits.items():
        if limit.tiers is not None:
            wanted.append((("rate_limits", name, "tiers", "claim"), limit.tiers.claim))
        keys = _each(document, ("rate_limits", name, "key"), limit.key)
        wanted += [(at, key.removeprefix("claim:")) for at, key in keys if key.startswith("claim:")]
    for index, route in enumerate(policy.routes):
        wanted += [(("routes", index, "require", "claims", claim), claim) for claim in route.require.claims]
        for at, placeholder in _placeholders(index, route.rewrite.set):
            if placeholder.startswith("claim:"):
                wanted.append((at, placeholder.removeprefix("claim:")))
    for location, claim in wanted:
        if _LIKE_A_PATH.search(claim) and "://" not in claim:
            message = f"only a claim that is called {claim!r} itself is found: a path begins with a slash"
            hint = f"write /{claim.replace('.', '/')}" if re.fullmatch(r"[\w.-]+", claim) else ""
            yield document.warning(location, Code.LOOKS_LIKE_PATH, message, hint, key=location[-1] == claim)


_LIKE_A_PATH = re.compile(r"^[$]|[\[\]]|^[A-Za-z_][\w-]*(?:\.[\w-]+)+$")


def _each(document: Document, location: Location, values: tuple[str, ...]) -> list[tuple[Location, str]]:
    """Give each of a member's values its place; a lone value may be written without a list."""
    listed = isinstance(document.at(location), list)
    return [((*location, index) if listed else location, value) for index, value in enumerate(values)]


def _placeholders(index: int, headers: dict[str, str]) -> Iterator[tuple[Location, str]]:
    for header, text in headers.items():
        for placeholder in template.placeholders(text):
            yield ("routes", index, "rewrite", "set", header), placeholder


def _paths(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find wildcards, parameters and regular expressions in paths, which are taken as they stand."""
    paths: list[tuple[Location, str | None]] = [(("endpoints", "health"), policy.endpoints.health)]
    for index, route in enumerate(policy.routes):
        paths += [(("routes", index, "match", member), getattr(route.match, member)) for member in ("prefix", "exact")]
        paths.append((("routes", index, "rewrite", "replace_prefix"), route.rewrite.replace_prefix))
    for location, path in paths:
        if path is not None and (found := pattern_in(path)):
            message = f"a path is no pattern: only one with {found!r} in it, just so, is meant"
            hint = "leave it out: a prefix takes every path below it" if location[-1] == "prefix" else ""
            yield document.warning(location, Code.LOOKS_LIKE_PATTERN, message, hint)


def _methods(policy: Policy, document: Document) -> Iterator[Problem]:
    named: list[tuple[Location, str]] = []
    for index, route in enumerate(policy.routes):
        location: Location = ("routes", index, "match", "methods")
        named += _each(document, location, route.match.methods)
        if route.websocket and route.match.methods and "GET" not in route.match.methods:
            message = "a WebSocket is opened by GET (RFC 6455, section 4.1), which this route does not take"
            yield document.warning(("routes", index, "websocket"), Code.NEVER_MATCHES, message, "add GET to methods")
    for name, cors in policy.cors.items():
        named += _each(document, ("cors", name, "methods"), cors.methods)
    for location, method in named:
        if method not in _REGISTERED:
            hint = "leave methods out for every method" if method in {"ALL", "ANY"} else nearest(method, METHODS)
            yield document.warning(location, Code.UNKNOWN_METHOD, f"{method} is no registered method of HTTP", hint)


_REGISTERED = frozenset(
    {
        *METHODS,
        *[
            "ACL",
            "BASELINE-CONTROL",
            "BIND",
            "CHECKIN",
            "CHECKOUT",
            "COPY",
            "LABEL",
            "LINK",
            "LOCK",
            "MERGE",
            "MKACTIVITY",
            "MKCALENDAR",
            "MKCOL",
        ],
        *[
            "MKREDIRECTREF",
            "MKWORKSPACE",
            "MOVE",
            "ORDERPATCH",
            "PRI",
            "PROPFIND",
            "PROPPATCH",
            "QUERY",
            "REBIND",
            "REPORT",
            "SEARCH",
            "UNBIND",
        ],
        *["UNCHECKOUT", "UNLINK", "UNLOCK", "UPDATE", "UPDATEREDIRECTREF", "VERSION-CONTROL"],
    }
)
"""IANA's registry of methods, but for those that are never forwarded."""


def _disjoint(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find networks that are allowed and let nobody in."""
    everywhere = list(map(_network, policy.networks.allow))
    denied = list(map(_network, policy.networks.deny))
    places: list[tuple[Location, Networks]] = [(("networks",), policy.networks)]
    places += [(("routes", index, "networks"), route.networks) for index, route in enumerate(policy.routes)]
    for location, networks in places:
        here = denied + list(map(_network, networks.deny))
        for index, text in enumerate(networks.allow):
            allowed, at = _network(text), (*location, "allow", index)
            if any(allowed.version == other.version and allowed.subnet_of(other) for other in here):  # type: ignore[arg-type]  # of one version
                yield document.warning(at, Code.NEVER_MATCHES, f"all of {text} is denied, and deny wins")
            elif location != ("networks",) and everywhere and not any(allowed.overlaps(other) for other in everywhere):
                yield document.warning(
                    at, Code.NEVER_MATCHES, f"nobody of {text} passes the policy's own networks.allow"
                )


def _network(text: str) -> IPv4Network | IPv6Network:
    network = ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None else ip_network(f"{mapped}/{network.prefixlen - 96}")


def _itself(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find endpoints at which the gateway itself listens."""
    listeners = [(policy.listen.host, policy.listen.port)]
    if policy.admin is not None:
        listeners.append((policy.admin.host, policy.admin.port))
    for name, upstream in policy.upstreams.items():
        for index, url in enumerate(upstream.endpoints):
            endpoint = parse_endpoint(url)
            for host, port in listeners:
                here = endpoint.host == host or (_loopback(endpoint.host) and (_loopback(host) or host in _ANY_ADDRESS))
                if here and endpoint.port == port:
                    at = ("upstreams", name, "endpoints", index)
                    yield document.warning(at, Code.ITSELF, "the gateway itself listens there")


_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not bound


def _response_headers(policy: Policy, document: Document) -> Iterator[Problem]:
    removed = {name.lower() for name in policy.response_headers.remove}
    for name in policy.response_headers.set:
        if name.lower() in removed:
            at = ("response_headers", "set", name)
            yield document.warning(at, Code.NEVER_MATCHES, f"{name} is in `remove` as well", "keep one", key=True)


def _redacted(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, name in enumerate(policy.audit.redact.query):
        if set(name) & set("=&?#"):
            at = ("audit", "redact", "query", index)
            yield document.warning(at, Code.NEVER_MATCHES, "a parameter's name alone is compared", "write it without =")


def _conditions(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find comparisons of a condition that never hold: with a method in lower case, with another route's name."""
    issuers = [name for issuer in policy.identity.issuers for name in _issuer_names(policy, issuer)]
    issuers += ["api-key"] if policy.api_keys is not None else []
    issuers += ["certificate"] if policy.identity.certificates is not None else []
    for index, route in enumerate(policy.routes):
        if route.require.when is None:
            continue
        at: Location = ("routes", index, "require", "when")
        for fact, text in _compared(route.require.when):
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


RULES: tuple[Callable[[Policy, Document], Iterator[Problem]], ...] = (
    _modes,
    _public,
    _unlimited,
    _unused,
    _issuers,
    _resources,
    _browsers,
    _of_machines,
    _two_issuers,
    _networks,
    _limits,
    _upstreams,
    _hsts,
    _audit,
    _claim_names,
    _paths,
    _methods,
    _disjoint,
    _itself,
    _response_headers,
    _redacted,
    _conditions,
    of_decision_services,
)


def _unreachable(table: RouteTable, policy: Policy, document: Document) -> Iterator[Problem]:
    """Find routes that never decide: another takes all of their requests, or the health check does."""
    places = {route.name: ("routes", index, "match") for index, route in enumerate(policy.routes)}
    for index, route in enumerate(table.routes):
        if route.exact and route.path == policy.endpoints.health:
            yield document.warning(
                places[route.name], Code.NEVER_REACHED, "never reached: the health check answers this path"
            )
        earlier = [other for other in table.routes[:index] if _path(other) == _path(route)]
        pairs = [(host, method) for host in route.hosts or ("",) for method in route.methods or ("",)]
        takers = [next((o for o in earlier if _takes(o, host, method)), None) for host, method in pairs]
        names = list(dict.fromkeys(taker.name for taker in takers if taker is not None))
        if None not in takers:
            yield document.warning(
                places[route.name], Code.NEVER_REACHED, f"never reached: {' and '.join(names)} takes all its requests"
            )


def _path(route: Route) -> tuple[bool, str]:
    return route.exact, route.path if route.exact else route.path.rstrip("/")


def _takes(route: Route, host: str, method: str) -> bool:
    """Tell whether a route takes every request of a host pattern and a method; "" is every host, every method."""
    hosts = not route.hosts or any(
        pattern == host or (bool(host) and host_matches(pattern, host.removeprefix("*"))) for pattern in route.hosts
    )
    return hosts and (not route.methods or method in route.methods)


def _removed_fields(snapshot: Snapshot, policy: Policy, document: Document) -> Iterator[Problem]:
    """Find header fields that are read, and that no request has by then."""
    read: list[tuple[Location, str]] = []
    for name, limit in policy.rate_limits.items():
        keys = _each(document, ("rate_limits", name, "key"), limit.key)
        read += [(at, key.removeprefix("header:")) for at, key in keys if key.startswith("header:")]
    for index, route in enumerate(policy.routes):
        for at, placeholder in _placeholders(index, route.rewrite.set):
            if placeholder.startswith("header:"):
                read.append((at, placeholder.removeprefix("header:")))
        for match in _HEADER_READ.finditer(route.require.when or ""):
            header = "".join(match.groups(default=""))
            at = ("routes", index, "require", "when")
            if header != header.lower():
                message = "names in request.headers are in lower case"
                yield document.warning(at, Code.NEVER_MATCHES, message, f"write {header.lower()}")
            else:
                read.append((at, header))
    for at, header in read:
        if snapshot.client_fields.disposition(header.encode("ascii", "replace")) is not Disposition.KEEP:
            message = f"a client's {header} is removed before anything reads it"
            yield document.warning(at, Code.NEVER_MATCHES, message)


_HEADER_READ = re.compile(
    rf"\brequest\.headers\s*\[\s*{_LITERAL}\s*\]|{_LITERAL}\s+in\s+request\.headers\b|\brequest\.headers\.([A-Za-z_]\w*)\b(?!\s*\()"
)


def _files(snapshot: Snapshot, policy: Policy, document: Document) -> Iterator[Problem]:
    for index, sink in enumerate(policy.audit.sinks):
        member = "file" if isinstance(sink, FileSink) else "spill"
        name = sink.file if isinstance(sink, FileSink) else sink.spill
        reason = _unwritable(Path(snapshot.resolve(name)))
        if reason is not None:
            at = ("audit", "sinks", index, member)
            yield document.warning(at, Code.UNWRITABLE, f"the file can't be written: {reason}")


def _unwritable(path: Path) -> str | None:
    """Say why a file could not be appended to, or made; None where it could. Nothing is changed by asking."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    try:
        if mode is not None:
            if not stat.S_ISREG(mode):
                return "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file"
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
            return None
        there = next(parent for parent in path.parents if parent.exists())
        tempfile.TemporaryFile(dir=there).close()  # a file without a name, as far as the file system can do that
    except OSError as error:
        return error.strerror
    return None
