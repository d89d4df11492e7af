"""What no section can know alone: references, names used twice, and members that contradict one another.

The checks read the document, not the model, so that they also speak where another part of the policy is wrong.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

from mitmgate.core import template
from mitmgate.core.client_fields import shape
from mitmgate.core.trailers import never_forwarded
from mitmgate.policy.declared import fields, stages
from mitmgate.policy.document import Document, as_written
from mitmgate.policy.model_limits import OF_PRINCIPAL
from mitmgate.policy.problem import Location, Problem, nearest

_PLACEHOLDER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
_NO_PRINCIPAL = "a public route has no principal"


def check(document: Document) -> Iterator[Problem]:
    """Yield every error between sections."""
    yield from _references(document)
    yield from _routes(document)
    yield from _trailers(document)
    yield from _issuers(document)
    yield from _api_keys(document)
    yield from _certificates(document)
    yield from _resources(document)
    yield from _credentials(document)
    yield from _client_limits(document)
    yield from _stores(document)
    yield from _listeners(document)
    yield from _sinks(document)
    for stage in stages():
        yield from stage.mistakes(document)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[Any]:
    """Return a list's items; a lone value where a list may be written as its only member."""
    return value if isinstance(value, list) else [] if value is None else [value]


def named(document: Document, location: Location) -> Iterator[tuple[Location, str]]:
    """Yield the names that a member holds, alone or in a list, with their places."""
    value = document.at(location)
    if isinstance(value, str):
        yield location, value
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, str):
            yield (*location, index), item


def routes(document: Document) -> Iterator[tuple[Location, dict[str, Any]]]:
    """Yield the routes that are mappings, with their places."""
    for index, route in enumerate(_items(document.at(("routes",)))):
        if isinstance(route, dict):
            yield ("routes", index), route


def _references(document: Document) -> Iterator[Problem]:
    """Names that nothing is called by."""
    wanted: list[tuple[Location, Location, str]] = [
        (("client_limits",), ("rate_limits",), "rate limit"),
        (("identity", "default"), ("identity", "issuers"), "issuer"),
    ]
    for index in range(len(_items(document.at(("identity", "resources"))))):
        wanted.append((("identity", "resources", index, "issuers"), ("identity", "issuers"), "issuer"))
    for location, _ in routes(document):
        wanted += [
            ((*location, "upstream"), ("upstreams",), "upstream"),
            ((*location, "rate_limits"), ("rate_limits",), "rate limit"),
            ((*location, "cors"), ("cors",), "CORS policy"),
            ((*location, "auth", "issuers"), ("identity", "issuers"), "issuer"),
        ]
    for member, target, what in wanted:
        yield from unknown(document, member, target, what)


def unknown(document: Document, member: Location, target: Location, what: str, *known: str) -> Iterator[Problem]:
    """Yield an error for each name that a member holds and a mapping has not. known: names that it may hold as well."""
    names = _mapping(document.at(target))
    for location, name in named(document, member):
        if name not in names and name not in known and location not in document.unresolved:
            hint = nearest(name, names) or (f"there are {', '.join(names)}" if names else f"there is no {what} at all")
            yield document.problem(location, f"no {what} has this name", hint=hint)


def _routes(document: Document) -> Iterator[Problem]:
    identity = identity_headers(document)
    shapes = {shape(name.encode("ascii", "replace")) for name in identity}
    names: dict[str, Location] = {}
    matches: dict[object, tuple[Location, str]] = {}
    for location, route in routes(document):
        name = route.get("name")
        if isinstance(name, str) and name:
            if name in names:
                line, _ = document.place((*names[name], "name"))
                yield document.problem(
                    (*location, "name"), "two routes have this name", hint=f"the first is at line {line}"
                )
            names.setdefault(name, location)
        key = _match_key(_mapping(route.get("match")))
        if key is not None:
            if key in matches:
                first, other = matches[key]
                line, _ = document.place((*first, "match"))
                message = f"the route {other} takes the very same requests"
                yield document.problem((*location, "match"), message, hint=f"it is at line {line}")
            matches.setdefault(key, (location, str(name)))
        for member in ("set", "remove"):
            headers = _mapping(route.get("rewrite")).get(member)
            for header in _items(list(headers) if isinstance(headers, dict) else headers):
                if not isinstance(header, str):
                    continue
                alike = member == "set" and shape(header.lower().encode("ascii", "replace")) in shapes
                if alike or header.lower() in identity:
                    at = (*location, "rewrite", member)
                    message = f"{as_written(header)} carries identity; the gateway alone writes it"
                    yield document.problem(at, message, found="", key=True)
        upstream = route.get("upstream")
        named = _mapping(document.at(("upstreams",))).get(upstream) if isinstance(upstream, str) else None
        if route.get("websocket") is True and _mapping(named).get("protocol") == "h2":
            message = f"WebSockets need HTTP/1.1, and the upstream {upstream} speaks HTTP/2"
            yield document.problem((*location, "websocket"), message, hint="give the route another upstream")
        if route.get("auth") == "none":
            yield from _public_route(document, location, route)


def _trailers(document: Document) -> Iterator[Problem]:
    identity = identity_headers(document) | {name.lower() for name, _ in fields(document)}
    for name in _mapping(document.at(("upstreams",))):
        for location, header in named(document, ("upstreams", name, "trailers")):
            lower = header.lower()
            if lower in identity and not never_forwarded(lower.encode("ascii", "replace")):  # which its section says
                message = f"{as_written(header)} carries identity; the gateway alone writes it"
                yield document.problem(location, message, found="")


def identity_headers(document: Document) -> set[str]:
    """Return the fields that tell services who asks, in small letters."""
    forward = _mapping(document.at(("identity", "forward")))
    names = [forward.get("subject", "X-User-ID"), forward.get("roles", "X-User-Role"), forward.get("issuer")]
    if isinstance(forward.get("assertion"), dict):
        names.append(forward["assertion"].get("header", "X-Gateway-Assertion"))
    return {name.lower() for name in names if isinstance(name, str)}


def _match_key(match: dict[str, Any]) -> object:
    """Make what two routes with the same requests have in common; None for what is no match."""
    exact, prefix = match.get("exact"), match.get("prefix")
    path = exact if isinstance(exact, str) else prefix.rstrip("/") if isinstance(prefix, str) else None
    if path is None:
        return None
    hosts = frozenset(host.lower().removesuffix(".") for host in _items(match.get("hosts")) if isinstance(host, str))
    methods = frozenset(method for method in _items(match.get("methods")) if isinstance(method, str))
    return isinstance(exact, str), path, hosts, methods


def _public_route(document: Document, location: Location, route: dict[str, Any]) -> Iterator[Problem]:
    """A public route can't ask for what only a principal has."""
    limits = _mapping(document.at(("rate_limits",)))
    for at, name in named(document, (*location, "rate_limits")):
        for key in _principal_keys(_mapping(limits.get(name))):
            message = f"{_NO_PRINCIPAL}, and this limit counts by {as_written(key)}"
            yield document.problem(at, message, hint="use a limit by client_ip")
    for header, text in _mapping(_mapping(route.get("rewrite")).get("set")).items():
        for placeholder in _placeholders(text):
            if placeholder in {"subject", "issuer"} or placeholder.startswith("claim:"):
                at = (*location, "rewrite", "set", header)
                kind = placeholder.partition(":")[0]  # without the claim's name: the text may come from anywhere
                yield document.problem(at, f"{_NO_PRINCIPAL}, so {{{kind}}} has no value")


def _placeholders(text: object) -> tuple[str, ...]:
    try:
        return template.placeholders(text) if isinstance(text, str) else ()
    except ValueError:
        return ()


def _principal_keys(limit: dict[str, Any]) -> list[str]:
    """Return the keys of a raw limit that need a principal; a limit without key counts by principal."""
    keys = _items(limit.get("key", "principal")) if limit else []
    claim = _mapping(limit.get("tiers")).get("claim")
    by_claim = [f"claim:{claim}"] if isinstance(claim, str) else []
    return [key for key in keys if isinstance(key, str) and key.startswith(OF_PRINCIPAL)] or by_claim


def _issuers(document: Document) -> Iterator[Problem]:
    issuers = _mapping(document.at(("identity", "issuers")))
    values: dict[str, str] = {}
    for name, issuer in issuers.items():
        tenants = [tenant for tenant in _items(_mapping(issuer).get("tenants")) if isinstance(tenant, str)]
        for location, text in named(document, ("identity", "issuers", name, "issuer")):
            for value in {_PLACEHOLDER.sub(tenant, text) for tenant in tenants or [text]} if text else ():
                if values.get(value, name) != name:
                    yield document.problem(
                        location, f"{values[value]} is the same issuer; a token could not tell whose keys count"
                    )
                    break
                values[value] = name
    prefixes: dict[str, str] = {}
    for name, issuer in issuers.items():
        introspection = _mapping(issuer).get("introspection")
        if isinstance(introspection, dict):
            prefix = str(introspection.get("prefix") or "")
            if prefix in prefixes:
                yield document.problem(
                    ("identity", "issuers", name, "introspection"),
                    f"an opaque token could be {prefixes[prefix]}'s as well: its issuer alone may be shown it",
                    found="",
                    hint="give each a prefix of its own",
                )
            prefixes.setdefault(prefix, name)
    undecided = [location for location, route in routes(document) if _of_default(route.get("auth"))]
    if document.at(("identity", "default")) is None:
        if len(issuers) > 1:
            names = ", ".join(issuers)
            yield document.problem(
                ("identity",),
                "there are several issuers and no default",
                found="",
                hint=f"add default, one or more of {names}",
            )
        elif not issuers:
            for location in undecided:
                message = "there is no issuer whose tokens it could accept"
                yield document.problem(
                    location, message, found="", hint="add identity.issuers, or auth: none for a public route"
                )


def _of_default(auth: object) -> bool:
    """Tell whether a route takes tokens without saying whose."""
    if isinstance(auth, dict):
        return "issuers" not in auth and "jwt" in _kinds(auth)
    return auth is None or auth == "jwt"


def _kinds(auth: object) -> list[object]:
    """Return the kinds of credentials that a raw `auth` names."""
    if not isinstance(auth, dict):
        return [auth]
    return [kind for member in ("any", "all") for kind in _items(auth.get(member))]


def _certificates(document: Document) -> Iterator[Problem]:
    """Find routes that take certificates where no certificate can come."""
    rule = document.at(("identity", "certificates"))
    tls = _mapping(_mapping(document.at(("listen",))).get("tls"))
    for location, route in routes(document):
        if "certificate" not in _kinds(route.get("auth")):
            continue
        at = (*location, "auth")
        if not isinstance(rule, dict):
            message = "no certificate is a principal"
            yield document.problem(at, message, hint="add identity.certificates: {spiffe: DOMAIN}")
        elif "client_ca" not in tls and not (rule.get("forwarded") or rule.get("header")):
            message = "no client is asked for a certificate, and no proxy passes one on"
            yield document.problem(
                at, message, hint="add listen.tls.client_ca, or identity.certificates.forwarded or header"
            )
    if isinstance(rule, dict) and "certificate" in _mapping(document.at(("identity", "issuers"))):
        message = "principals with a certificate are of the issuer certificate: name this one otherwise"
        yield document.problem(("identity", "issuers", "certificate"), message, key=True)


def _api_keys(document: Document) -> Iterator[Problem]:
    """Find routes that take keys where there are none, and what would tell a key to others, or count by it."""
    rule = document.at(("api_keys",))
    if not isinstance(rule, dict):
        for location, route in routes(document):
            if "api-key" in _kinds(route.get("auth")):
                yield document.problem((*location, "auth"), "there are no API keys", hint="add api_keys: {file: FILE}")
        return
    if "api-key" in _mapping(document.at(("identity", "issuers"))):
        message = "principals with an API key are of the issuer api-key: name this one otherwise"
        yield document.problem(("identity", "issuers", "api-key"), message, key=True)
    if "file" not in rule and not isinstance(document.at(("store",)), dict):
        message = "a list of API keys needs a file, or a redis store"
        yield document.problem(("api_keys",), message, hint="add file: api-keys.jsonl")
    header = str(rule.get("header", "X-API-Key")).lower()
    for location, route in routes(document):
        for name, text in _mapping(_mapping(route.get("rewrite")).get("set")).items():
            if f"header:{header}" in map(str.lower, _placeholders(text)):
                at = (*location, "rewrite", "set", name)
                yield document.problem(at, "an API key goes no further", hint="write {claim:key_id}, which names it")
    for name in _mapping(document.at(("rate_limits",))):
        for at, key in named(document, ("rate_limits", name, "key")):
            if key.lower() == f"header:{header}":
                yield document.problem(at, "nothing counts by an API key itself", hint="write claim:key_id")


def _credentials(document: Document) -> Iterator[Problem]:
    """Find routes that take a cookie which has no name, and public ones that take a credential at all."""
    cookie = document.at(("identity", "browsers", "cookie"))
    for location, route in routes(document):
        for place, kind in named(document, (*location, "credentials")):
            if kind == "cookie" and cookie is None:
                yield document.problem(place, "the cookie has no name", hint="add identity.browsers.cookie")
            if kind == "ticket" and document.at(("identity", "browsers", "tickets")) is None:
                yield document.problem(place, "there are no tickets", hint="add identity.browsers.tickets")
        if route.get("auth") == "none" and "credentials" in route:
            yield document.problem(
                (*location, "credentials"), _NO_PRINCIPAL, found="", hint="leave out auth: none", key=True
            )


def _resources(document: Document) -> Iterator[Problem]:
    """Find two resources of one host and path: a request could be for either."""
    seen: dict[str, int] = {}
    for index, resource in enumerate(_items(document.at(("identity", "resources")))):
        url = _mapping(resource).get("resource")
        if isinstance(url, str):
            host, _, path = url.partition("://")[2].partition("/")
            key = f"{host.partition(':')[0]}/{path.rstrip('/')}"
            if key in seen:
                at = ("identity", "resources", index, "resource")
                yield document.problem(at, f"resources[{seen[key]}] is of the same host and path")
            seen.setdefault(key, index)


def _client_limits(document: Document) -> Iterator[Problem]:
    limits = _mapping(document.at(("rate_limits",)))
    for location, name in named(document, ("client_limits",)):
        for key in _principal_keys(_mapping(limits.get(name))):
            message = f"client limits are taken before authentication, and this one counts by {as_written(key)}"
            yield document.problem(location, message, hint="use a limit by client_ip")


def _stores(document: Document) -> Iterator[Problem]:
    revocation = document.at(("revocation",))
    for member in _mapping(revocation).keys() & {"token_env", "events"}:
        if document.at(("admin",)) is None:
            message = "revocations are taken by the admin listener, and there is none"
            yield document.problem(("revocation", member), message, hint="add admin: {port: 8090}")
    if isinstance(document.at(("store",)), dict):
        return
    workers = document.at(("listen", "workers"))
    if isinstance(workers, str) and workers.isdecimal():  # from the environment
        workers = int(workers)
    if isinstance(workers, int) and workers > 1:
        message = "several workers can't share counters in memory: every limit would hold in each of them"
        yield document.problem(("listen", "workers"), message, hint="add store: {url: redis://HOST:6379/0}")
    if revocation is not None and "file" not in _mapping(revocation):
        message = "a list of revocations needs a file, or a redis store"
        yield document.problem(("revocation",), message, hint="add file: revoked.jsonl")
    for index, sink in enumerate(_items(document.at(("audit", "sinks")))):
        if "redis_stream" in _mapping(sink):
            at = ("audit", "sinks", index, "redis_stream")
            yield document.problem(at, "a stream needs a redis store", hint="add store: {url: redis://HOST:6379/0}")


def _sinks(document: Document) -> Iterator[Problem]:
    """Yield an error where two sinks write one file: each would break the other's chain."""
    taken: dict[str, Location] = {}
    for index, sink in enumerate(_items(document.at(("audit", "sinks")))):
        members = _mapping(sink)
        member = "spill" if "redis_stream" in members else "file"
        name = members.get(member, "audit/spill.jsonl" if member == "spill" else None)
        if not isinstance(name, str) or not name:
            continue
        at: Location = ("audit", "sinks", index, member)
        first = taken.setdefault(os.path.normpath(name), at)
        if first != at:
            line, _ = document.place(first)
            yield document.problem(at, "another sink writes this file", hint=f"it is at line {line}")
    anchors = document.at(("audit", "anchors", "file"))
    if isinstance(anchors, str) and os.path.normpath(anchors) in taken:
        yield document.problem(("audit", "anchors", "file"), "a sink writes this file", hint="anchors belong elsewhere")


def _listeners(document: Document) -> Iterator[Problem]:
    """Yield an error where the admin listener would be on the data port, on whatever address."""
    admin, listen = document.at(("admin",)), _mapping(document.at(("listen",)))
    if not isinstance(admin, dict):
        return
    port = str(admin.get("port", 8090))
    if port == str(listen.get("port", 8080)) != "0":
        at: Location = ("admin", "port") if "port" in admin else ("admin",)
        yield document.problem(at, "clients connect to this port", found="", hint="give the admin listener its own")
