"""Learn: propose a least-privilege policy from what succeeded in a recording, each rule with its evidence."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mitmgate.core.address import parse_address
from mitmgate.core.routing import covers
from mitmgate.core.shape import VALUE
from mitmgate.policy.scalars import TOKEN
from mitmgate.replay.evidence import ROLES, SCOPES, Evidence, Seen, Template, TokenEvidence, room, templates
from mitmgate.replay.what_if import moment

_HMAC: Final = ("HS256", "HS384", "HS512")
_MOST_ROLES = 8
_FIELD: Final = re.compile(TOKEN)
_KIB = 1024
_PREFIX: Final = re.compile(r"api|rest|v[0-9]+", re.IGNORECASE)
"""Segments that say nothing of what a path is about."""
_DOOR: Final = frozenset({"accounts", "auth", "id", "idp", "login", "oauth", "sso", "token", "www"})
"""First labels of an issuer's host that do not say whose it is."""


@dataclass(slots=True)
class Route:
    """A proposed route. path and exact: its match. seen: the evidence of all its requests."""

    path: str
    exact: bool
    hosts: tuple[str, ...]
    methods: tuple[str, ...]
    seen: Seen
    cors: bool = False
    name: str = ""

    @property
    def public(self) -> bool:
        """Whether some of its requests had no token."""
        return self.seen.anonymous > 0


def propose(evidence: Evidence, source: str) -> str:
    """Write the policy as YAML. source: the recording's name, for its head. The same text for the same recording."""
    issuers = _issuer_names(evidence.tokens)
    routes = _routes(evidence)
    upstreams = _upstream_names(routes)
    lines = [
        f"# Proposed by `mitmgate learn` from {source}: {evidence.successes:,} requests that succeeded, from",
        f"# {moment(evidence.first)} to {moment(evidence.last)}; {evidence.others:,} others taught nothing.",
        "# It admits what was seen, and no more. Read it, and widen what you know to be right.",
        "version: 1",
        *_identity(evidence.tokens, issuers),
        *_upstreams(upstreams),
        *_limits(evidence, routes),
        *_cors(evidence, routes),
        "",
        "routes:",
    ]
    for route in routes:
        lines += _route(route, issuers, upstreams[_endpoints(route)])
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9._/-]*", text) and text.lower() not in {"true", "false", "null"}
    return text if plain else json.dumps(text)


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


def _list(values: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def _counts(counts: Counter[str], most: int = 6) -> str:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name or 'none'} {count:,}" for name, count in ranked[:most])
    return " ".join((shown + (f" and {len(ranked) - most} more" if len(ranked) > most else "")).split())


# Routes.


def _routes(evidence: Evidence) -> list[Route]:
    """Group places into routes: one path each, methods with the same requirements together."""
    proposed = templates(evidence.places)
    by_path: defaultdict[tuple[str, bool, str, str], Seen] = defaultdict(Seen)
    for place, seen in evidence.places.items():
        path, exact = _match(proposed[place.template])
        by_path[path, exact, place.host, place.method].join(seen)
    by_need: defaultdict[tuple[str, bool, str, object], dict[str, Seen]] = defaultdict(dict)
    for (path, exact, host, method), seen in by_path.items():
        by_need[path, exact, host, _need(seen)][method] = seen
    found: dict[tuple[object, ...], Route] = {}
    for (path, exact, host, need), methods in sorted(by_need.items(), key=lambda item: repr(item[0])):
        key = (path, exact, need, tuple(sorted(methods)))
        route = found.setdefault(key, Route(path, exact, (), tuple(sorted(methods)), Seen()))
        route.hosts = (*route.hosts, host)
        for seen in methods.values():
            route.seen.join(seen)
    routes = list(found.values())
    asked = {_match(proposed.get(template, template)) for template in evidence.preflights.templates}
    for route in routes:
        route.cors = any(route.path == path or (not route.exact and covers(route.path, path)) for path, _ in asked)
    if asked and not any(route.cors for route in routes):  # what was asked for came to nothing; it was answered
        for route in routes:
            route.cors = True
    _name(routes)
    return routes


def _match(template: Template) -> tuple[str, bool]:
    """Return the path to match and whether it is exact: the segments before the first value."""
    if VALUE not in template:
        return "/" + "/".join(template), True
    fixed = template[: template.index(VALUE)]
    return "/" + "/".join(fixed), False


def _need(seen: Seen) -> tuple[object, ...]:
    """Return what tells requirements apart."""
    if seen.anonymous:
        return ("public", frozenset(seen.upstreams))
    roles = frozenset(seen.roles) if not seen.roleless else frozenset()
    return (frozenset(seen.scopes or ()), roles, frozenset(seen.issuers), frozenset(seen.upstreams))


def _name(routes: list[Route]) -> None:
    taken: set[str] = set()
    for route in routes:
        segments = route.path.split("/")
        telling = [segment for segment in segments if not _PREFIX.fullmatch(segment)]
        words = re.findall(r"[A-Za-z0-9]+", "/".join(telling)) or re.findall(r"[A-Za-z0-9]+", route.path)
        base = "-".join(words[-3:])[:40] or "root"
        candidates = [base, f"{base}-{'-'.join(method.lower() for method in route.methods)}"[:60]]
        candidates += [f"{base}-{number}" for number in range(2, len(routes) + 3)]
        route.name = next(name for name in candidates if name not in taken)
        taken.add(route.name)


def _route(route: Route, issuers: dict[str, str], upstream: str) -> Iterator[str]:
    seen = route.seen
    yield f"  # {_number(seen.count, 'request')} to {_counts(seen.upstreams, 3)}"
    yield f"  - name: {_quoted(route.name)}"
    match = [f"{'exact' if route.exact else 'prefix'}: {_quoted(route.path)}"]
    match.append(f"hosts: {_list(sorted(route.hosts))}")
    match.append(f"methods: {_list(route.methods)}")
    yield f"    match: {{{', '.join(match)}}}"
    yield f"    upstream: {_quoted(upstream)}"
    yield from _rewrite(route)
    if route.public:
        yield f"    auth: none                   # {seen.anonymous:,} of them had no token"
    else:
        names = sorted(issuers[issuer] for issuer in seen.issuers)
        if names != sorted(issuers.values()):
            yield f"    auth: {{issuers: {_list(names)}}}"
        yield from _require(seen)
    yield f"    rate_limits: [{'per-client' if route.public else 'per-principal'}]"
    if not seen.unmeasured:
        bound = max(1, -(-seen.largest * 2 // _KIB))
        yield f"    max_body: {bound}KiB                # the largest body had {seen.largest:,} bytes"
    if route.cors:
        yield "    cors: web"
    if seen.websockets:
        yield f"    websocket: true              # {seen.websockets:,} handshakes"
    if seen.encoded:
        yield f"    allow_encoded_slash: true    # {seen.encoded:,} paths had one"


def _require(seen: Seen) -> Iterator[str]:
    scopes = sorted(seen.scopes or ())
    roles = sorted(seen.roles) if not seen.roleless and len(seen.roles) <= _MOST_ROLES else []
    if scopes or roles:
        yield "    require:"
    if scopes:
        yield f"      scopes_all: {_list(scopes)}    # every token had them"
    if roles:
        yield f"      roles_any: {_list(roles)}    # {_counts(seen.roles)}"


def _rewrite(route: Route) -> Iterator[str]:
    """Recognise how the path was changed on its way up."""
    targets = route.seen.targets
    if all(came == went for came, went in targets):
        return
    prefix = route.path.rstrip("/")
    if all((came[len(prefix) :] or "/") == went for came, went in targets):
        yield "    rewrite: {strip_prefix: true}"
        return
    for came, went in sorted(targets):
        rest = came[len(prefix) :]
        put = went[: len(went) - len(rest)] if went.endswith(rest) else None
        if put and all(put + each[len(prefix) :] == other for each, other in targets):
            yield f"    rewrite: {{replace_prefix: {_quoted(put)}}}"
            return
    yield f"    # the path was rewritten in a way that is not recognised, such as {sorted(targets)[0]}"


# Everything that routes name.


def _endpoints(route: Route) -> tuple[str, ...]:
    return tuple(sorted(route.seen.upstreams))


def _upstream_names(routes: list[Route]) -> dict[tuple[str, ...], str]:
    names: dict[tuple[str, ...], str] = {}
    for route in routes:
        endpoints = _endpoints(route)
        host = _host_of(endpoints[0]) or "service"
        label = route.name if _is_address(host) else host.partition(".")[0]  # routes stand with the shortest path first
        base = re.sub(r"[^A-Za-z0-9-]", "-", label)[:40].strip("-") or "service"
        taken = set(names.values())
        candidates = [base, *(f"{base}-{number}" for number in range(2, len(routes) + 3))]
        names.setdefault(endpoints, next(name for name in candidates if name not in taken))
    return names


def _upstreams(names: dict[tuple[str, ...], str]) -> Iterator[str]:
    yield "upstreams:"
    for endpoints, name in names.items():
        yield f"  {_quoted(name)}: {{endpoints: {_list(endpoints)}}}"


def _host_of(url: str) -> str | None:
    """Return the host of what may be a URL: what tokens and audit files say is anybody's word."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(host: str) -> bool:
    """Tell whether a host says nothing of what is there."""
    return host == "localhost" or parse_address(host) is not None


def _issuer_names(tokens: dict[str, TokenEvidence]) -> dict[str, str]:
    names: dict[str, str] = {}
    for issuer in sorted(tokens):
        host = _host_of(issuer) or issuer
        labels = ["issuer"] if _is_address(host) else host.split(".")
        label = labels[1] if labels[0] in _DOOR and len(labels) > 1 else labels[0]
        base = re.sub(r"[^A-Za-z0-9-]+", "-", label)[:40].strip("-") or "issuer"
        taken = set(names.values())
        candidates = [base, *(f"{base}-{number}" for number in range(2, len(tokens) + 3))]
        names[issuer] = next(name for name in candidates if name not in taken)
    return names


def _identity(tokens: dict[str, TokenEvidence], names: dict[str, str]) -> Iterator[str]:
    if not names:
        return
    yield "identity:"
    yield f"  default: {_list(names.values()) if len(names) > 1 else _quoted(*names.values())}"
    yield "  issuers:"
    for issuer, name in names.items():
        known = tokens[issuer]
        hmac = sum(known.algorithms[algorithm] for algorithm in _HMAC) * 2 > known.count
        algorithms = sorted(name for name in known.algorithms if (name in _HMAC) == hmac)
        yield f"    {_quoted(name)}:               # {known.count:,} requests; algorithms: {_counts(known.algorithms)}"
        yield f"      issuer: {_quoted(issuer)}"
        if not known.audienceless:
            yield f"      audience: {_list(sorted(known.audiences))}"
        yield f"      algorithms: {_list(algorithms)}"
        if hmac:
            variable = "MITMGATE_" + re.sub(r"[^A-Z0-9]+", "_", name.upper()) + "_SECRET"
            yield f"      keys: {{secret_env: {variable}}}    # a shared secret; a recording never has it"
        else:
            base = issuer.rstrip("/") if issuer.startswith(("https://", "http://")) else "https://issuer.invalid"
            yield f"      keys: {{jwks_url: {_quoted(base + '/.well-known/jwks.json')}}}    # a guess: correct it"
        if set(known.types) == {"at+jwt"}:
            yield "      token_type: at+jwt"
        claims = {}
        if known.subjects["sub"] < known.count:
            claims["subject"] = [name for name, count in sorted(known.subjects.items()) if count == known.count]
        for member, found, default in (("roles", known.roles, ROLES[:2]), ("scopes", known.scopes, SCOPES[:2])):
            if not set(found) <= set(default):
                claims[member] = sorted(found)
        if claims:
            members = ", ".join(f"{member}: {_list(names or ['sub'])}" for member, names in claims.items())
            yield f"      claims: {{{members}}}    # as these tokens have them"
        if known.lifetime and not known.lifeless:
            hours = -(-int(known.lifetime) // 3600)
            yield f"      max_lifetime: {hours}h             # the longest life was {known.lifetime:,.0f} s"


def _limits(evidence: Evidence, routes: list[Route]) -> Iterator[str]:
    kinds = (
        ("per-principal", "principal", "principal", evidence.principals, any(not route.public for route in routes)),
        ("per-client", "client_ip", "address", evidence.clients, any(route.public for route in routes)),
    )
    yield "rate_limits:"
    for name, key, who, peaks, used in kinds:
        found = room(peaks.values())
        if used and found is not None:
            yield f"  # {_number(found.keys, who)}: in any minute 99 % made at most {found.percentile:,} requests,"
            yield f"  # the busiest {found.highest:,}"
            yield f"  {name}: {{limit: {found.limit}, window: 60s, key: {key}}}"
    if evidence.head * 5 // 4 > 32 * _KIB:
        yield f"# The largest head had {evidence.head:,} bytes."
        yield f"limits: {{head: {-(-evidence.head * 5 // 4 // _KIB)}KiB}}"


def _cors(evidence: Evidence, routes: list[Route]) -> Iterator[str]:
    if not any(route.cors for route in routes):
        return
    asked = evidence.preflights
    origins = set(asked.origins) | {origin for route in routes if route.cors for origin in route.seen.origins}
    credentialed = sum(route.seen.credentialed for route in routes if route.cors)
    names = sorted(asked.headers)
    if not credentialed and not all(map(_FIELD.fullmatch, names)):
        names = ["*"]  # some that a policy does not name were allowed
    yield "cors:"
    yield f"  # preflights: {_counts(asked.origins)}"
    yield "  web:"
    yield f"    origins: {_list(sorted(origins))}"
    yield f"    methods: {_list(sorted(asked.methods))}"
    if names:
        yield f"    headers: {_list(name for name in names if name == '*' or _FIELD.fullmatch(name))}"
    if credentialed:
        yield f"    credentials: true            # {credentialed:,} requests of other origins had cookies"
