"""What is allowed in a policy and still worth a second look: warnings for `check`."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from mitmgate.core.address import parse_address
from mitmgate.core.routing import RouteTable, host_matches
from mitmgate.core.rules import Route
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.model_shared import Networks
from mitmgate.policy.problem import Location, Problem, in_order

LONGEST_LEEWAY = 300.0  # seconds
_EVERYONE = frozenset({"0.0.0.0/0", "::/0"})


def lint(loaded: Loaded) -> tuple[Problem, ...]:
    """Return every warning of a valid policy, those of loading included, in the order of the file."""
    found = list(loaded.warnings)
    for rule in RULES:
        found += rule(loaded.policy, loaded.document)
    found += _unreachable(compile_policy(loaded).routes, loaded.policy, loaded.document)
    return in_order(found)


def _modes(policy: Policy, document: Document) -> Iterator[Problem]:
    message = "report admits what it only records"
    if policy.mode == "report":
        yield document.warning(("mode",), f"{message}; nothing is enforced")
    for index, route in enumerate(policy.routes):
        if route.mode == "report":
            yield document.warning(("routes", index, "mode"), message)
    for name, limit in policy.rate_limits.items():
        if limit.mode == "report":
            yield document.warning(("rate_limits", name, "mode"), "report counts and denies nobody")


def _public(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, route in enumerate(policy.routes):
        if route.auth == "none":
            yield document.warning(("routes", index, "auth"), f"{route.name} is public: it needs no token")


def _unlimited(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, route in enumerate(policy.routes):
        if not route.rate_limits and not policy.client_limits:
            location = ("routes", index)
            yield document.warning(location, f"{route.name} has no rate limit", "add rate_limits, or client_limits")


def _unused(policy: Policy, document: Document) -> Iterator[Problem]:
    routes = policy.routes
    accepted = set(policy.identity.default or (policy.identity.issuers if len(policy.identity.issuers) == 1 else ()))
    for route in routes:
        if route.auth is not None and route.auth != "none":
            accepted |= set(route.auth.issuers)
    tables: list[tuple[Location, set[str], set[str]]] = [
        (("upstreams",), set(policy.upstreams), {route.upstream for route in routes}),
        (
            ("rate_limits",),
            set(policy.rate_limits),
            {*policy.client_limits, *(name for route in routes for name in route.rate_limits)},
        ),
        (("cors",), set(policy.cors), {route.cors for route in routes if route.cors is not None}),
        (("identity", "issuers"), set(policy.identity.issuers), accepted),
    ]
    for location, defined, used in tables:
        for name in defined - used:
            yield document.warning((*location, name), "nothing uses this", key=True)


def _issuers(policy: Policy, document: Document) -> Iterator[Problem]:
    kinds = {
        algorithm.startswith("HS") for issuer in policy.identity.issuers.values() for algorithm in issuer.algorithms
    }
    for name, issuer in policy.identity.issuers.items():
        location: Location = ("identity", "issuers", name)
        if not issuer.audience:
            yield document.warning(location, "tokens for any audience are accepted", "add audience", key=True)
        if issuer.leeway > LONGEST_LEEWAY:
            yield document.warning((*location, "leeway"), "a leeway above 5m lets expired tokens live on")
        if issuer.max_lifetime is None:
            yield document.warning(location, "tokens of any lifetime are accepted", "add max_lifetime", key=True)
        url = urlsplit(issuer.keys.jwks_url or "")
        if url.scheme == "http" and not _loopback(url.hostname or ""):
            at = (*location, "keys", "jwks_url")
            yield document.warning(at, "keys over plain http: who is on the way can replace them", "use https")
        if len(kinds) > 1 and any(algorithm.startswith("HS") for algorithm in issuer.algorithms):
            at = (*location, "algorithms")
            yield document.warning(
                at, "a shared secret beside issuers with public keys: whoever verifies can also sign"
            )


def _two_issuers(policy: Policy, document: Document) -> Iterator[Problem]:
    """Two issuers may each have an alice; a policy that names the issuer's field has thought of it."""
    identity = policy.identity
    if identity.forward.issuer is not None:
        return
    places: list[tuple[Location, tuple[str, ...]]] = [(("identity", "default"), identity.default or ())]
    for index, route in enumerate(policy.routes):
        if route.auth is not None and route.auth != "none":
            places.append((("routes", index, "auth", "issuers"), route.auth.issuers))
    for location, names in places:
        if len(set(names)) > 1:
            message = f"{' and '.join(names)} may each have a subject of the same name: one {identity.forward.subject}"
            hint = "have services read X-User-Issuer with it, and name it: identity.forward.issuer"
            yield document.warning(location, message, hint)


def _loopback(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _networks(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, network in enumerate(policy.trusted_proxies):
        if network in _EVERYONE:
            yield document.warning(("trusted_proxies", index), "everyone is a trusted proxy, and may claim any address")
    yield from _deny_only(policy.networks, ("networks",), document)
    for index, route in enumerate(policy.routes):
        yield from _deny_only(route.networks, ("routes", index, "networks"), document)


def _deny_only(networks: Networks, location: Location, document: Document) -> Iterator[Problem]:
    if networks.deny and not networks.allow:
        yield document.warning(location, "an empty allow list allows all that deny does not name", "add allow")


def _limits(policy: Policy, document: Document) -> Iterator[Problem]:
    for name, limit in policy.rate_limits.items():
        at = ("rate_limits", name)
        if any(key.startswith("header:") for key in limit.key) and not set(limit.key) & {"principal", "client_ip"}:
            yield document.warning((*at, "key"), "a client chooses its headers, and with them what it is counted by")
        if limit.on_store_failure == "allow":
            yield document.warning((*at, "on_store_failure"), "without the store there is no limit at all")


def _upstreams(policy: Policy, document: Document) -> Iterator[Problem]:
    for name, upstream in policy.upstreams.items():
        if upstream.tls is not None and not any(url.startswith("https://") for url in upstream.endpoints):
            yield document.warning(("upstreams", name, "tls"), "no endpoint is https, so tls is never used", key=True)


def _hsts(policy: Policy, document: Document) -> Iterator[Problem]:
    for name in policy.response_headers.set:
        if name.lower() == "strict-transport-security" and policy.listen.tls is None:
            at = ("response_headers", "set", name)
            yield document.warning(
                at, "browsers ignore HSTS over http; right only behind a proxy that ends TLS", key=True
            )


def _audit(policy: Policy, document: Document) -> Iterator[Problem]:
    audit = policy.audit
    if not audit.sinks:
        yield document.warning(("audit",), "no audit sink: decisions are not kept", "add audit.sinks")
    elif audit.chain.key_env is None:
        yield document.warning(
            ("audit",), "the audit chain is unkeyed: anyone can forge it", "add chain: {key_env: NAME}"
        )
    if audit.on_full == "drop":
        yield document.warning(("audit", "on_full"), "drop loses events while the queue is full")


RULES: tuple[Callable[[Policy, Document], Iterator[Problem]], ...] = (
    _modes,
    _public,
    _unlimited,
    _unused,
    _issuers,
    _two_issuers,
    _networks,
    _limits,
    _upstreams,
    _hsts,
    _audit,
)


def _unreachable(table: RouteTable, policy: Policy, document: Document) -> Iterator[Problem]:
    """Find routes that never decide: another takes all of their requests, or the health check does."""
    places = {route.name: ("routes", index, "match") for index, route in enumerate(policy.routes)}
    for index, route in enumerate(table.routes):
        if route.exact and route.path == policy.endpoints.health:
            yield document.warning(places[route.name], "never reached: the health check answers this path")
        earlier = [other for other in table.routes[:index] if _path(other) == _path(route)]
        pairs = [(host, method) for host in route.hosts or ("",) for method in route.methods or ("",)]
        takers = [next((o for o in earlier if _takes(o, host, method)), None) for host, method in pairs]
        names = list(dict.fromkeys(taker.name for taker in takers if taker is not None))
        if None not in takers:
            yield document.warning(places[route.name], f"never reached: {' and '.join(names)} takes all its requests")


def _path(route: Route) -> tuple[bool, str]:
    return route.exact, route.path if route.exact else route.path.rstrip("/")


def _takes(route: Route, host: str, method: str) -> bool:
    """Tell whether a route takes every request of a host pattern and a method; "" is every host, every method."""
    hosts = not route.hosts or any(
        pattern == host or (bool(host) and host_matches(pattern, host.removeprefix("*"))) for pattern in route.hosts
    )
    return hosts and (not route.methods or method in route.methods)
