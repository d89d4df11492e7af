"""From the validated policy to the frozen values that decisions read."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from mitmgate.core import certificate, rules, template
from mitmgate.core.address import CidrSet
from mitmgate.core.browsers import Places
from mitmgate.core.client_fields import ClientFields
from mitmgate.core.cors import OriginRules
from mitmgate.core.limit import Limit, Tiers
from mitmgate.core.path import Oddity
from mitmgate.core.proof import ALGORITHMS
from mitmgate.core.resource import Resource, Resources
from mitmgate.core.revocation import LONGEST
from mitmgate.core.routing import RouteTable
from mitmgate.core.via import Via
from mitmgate.keys.discovery import metadata_urls
from mitmgate.policy import declared
from mitmgate.policy.document import Document
from mitmgate.policy.interpolation import FromEnvironment
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Material
from mitmgate.policy.model import Policy
from mitmgate.policy.model_identity import Certificates, Forward, Identity, Issuer, Proofs, Published, Revocation
from mitmgate.policy.model_limits import OF_PRINCIPAL, Cors, RateLimit
from mitmgate.policy.model_routes import Credentials, Rewrite, Route, accepted
from mitmgate.policy.model_shared import Networks
from mitmgate.policy.model_upstreams import Upstream, parse_endpoint
from mitmgate.policy.problem import Location
from mitmgate.policy.snapshot import Snapshot


def compile_policy(loaded: Loaded) -> Snapshot:
    """Compile a loaded policy. What could fail has been checked by the loader."""
    policy, directory = loaded.policy, Path(loaded.path).parent.absolute()
    material = loaded.material
    upstreams = {name: _upstream(name, upstream, material) for name, upstream in policy.upstreams.items()}
    limits = {name: _limit(name, limit) for name, limit in policy.rate_limits.items()}
    cors = {name: _cors(rule) for name, rule in policy.cors.items()}
    default = _with_tenants(default_issuers(policy.identity), policy)
    routes = [_route(route, policy, upstreams, limits, cors, default) for route in policy.routes]
    forward = _forward(policy.identity.forward, material, routes)
    issuers = {
        made.name: _revocable(made, policy.revocation)
        for name, issuer in policy.identity.issuers.items()
        for made in _of_tenants(name, issuer, material)
    }
    proofs = _proofs(policy.identity.proofs, material)
    certificates = _certificates(policy.identity.certificates)
    passed = None if certificates is None else certificates.field
    key_field = None if policy.api_keys is None else _field(policy.api_keys.header)
    resources = Resources(_resource(resource, policy, issuers, routes) for resource in policy.identity.resources)
    return Snapshot(
        digest=digest(loaded),
        policy=policy,
        path=loaded.path,
        directory=str(directory),
        mode=policy.mode,
        routes=RouteTable(routes),
        upstreams=upstreams,
        issuers=issuers,
        default_issuers=default,
        forward=forward,
        client_fields=ClientFields(
            _identity_headers(forward, routes).union(
                *(map(_field, own.sets) for own in loaded.stages.values()),
                {name for name in (proofs.certificate, passed, key_field) if name is not None},
                (_field(name) for name, _ in declared.fields(loaded.document)),
            ),
            map(_field, policy.identity.keep),
            hides_keys=key_field is not None,
        ),
        trusted_proxies=CidrSet(policy.trusted_proxies),
        networks=_networks(policy.networks),
        cors=OriginRules(cors.values()),
        client_limits=tuple(limits[name] for name in policy.client_limits),
        response_headers=rules.ResponseHeaders(
            tuple((_field(name), value.encode("ascii")) for name, value in policy.response_headers.set.items()),
            frozenset(map(_field, policy.response_headers.remove)),
        ),
        health_path=policy.endpoints.health,
        resources=resources,
        via=None if policy.via == "none" else Via(policy.via.encode("ascii")),
        max_head=policy.limits.head,
        max_target=policy.limits.target,
        max_token=policy.limits.token,
        audit_key=material.audit_key,
        anchor_key=material.anchor_key,
        revocation_token=material.revocation_token,
        admin_token=material.admin_token,
        admin_tls=_admin_tls(policy, material),
        listen_tls=_listen_tls(policy, material),
        hidden_headers=_hidden_headers(loaded.document),
        own=loaded.stages,
        compiled={stage.name: stage.compiled(loaded) for stage in declared.stages()},
        proofs=proofs,
        key_field=key_field,
        certificates=certificates,
        credentials=_credentials(routes, default),
        checks=CidrSet(policy.decide.trusted),
        check_proxies=CidrSet((*policy.decide.trusted, *policy.trusted_proxies)),
        browsers=_places(policy),
        tickets=_tickets(policy, material),
    )


def _hidden_headers(document: Document) -> frozenset[str]:
    """Name the header fields, in small letters, that the policy sets to a value of the environment."""
    routes, found = document.at(("routes",)), set[str]()
    places: list[Location] = [("response_headers", "set")]
    places += [("routes", number, "rewrite", "set") for number in range(len(routes) if isinstance(routes, list) else 0)]
    for place in places:
        fields = document.at(place)
        if isinstance(fields, dict):
            found |= {name.lower() for name, value in fields.items() if isinstance(value, FromEnvironment)}
    return frozenset(found)


def digest(loaded: Loaded) -> str:
    """Return "sha256:" and the digest of the policy in effect: all members, defaults included, in canonical JSON.

    Comments, order of members, spelling of defaults and the file's place make no difference; key material does, by
    its hash, and so does the code of the operator's own stages.
    """
    effective: dict[str, object] = {
        "policy": loaded.policy.model_dump(mode="json", exclude={"stages"}),
        "material": loaded.material.hashes,
    }
    if loaded.stages:
        effective["stages"] = [
            {
                "entry": loaded.policy.stages[name].model_dump(
                    mode="json", exclude=set(loaded.policy.stages[name].given)
                ),
                "name": name,
                "code": own.code.digest,
                "options": own.options.model_dump(mode="json"),
            }
            for name, own in loaded.stages.items()
        ]
    text = json.dumps(effective, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return f"sha256:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


def default_issuers(identity: Identity) -> tuple[str, ...] | None:
    """Return what routes accept unless they say otherwise: the default, or the only issuer; None without issuers."""
    if identity.default is not None:
        return identity.default
    return tuple(identity.issuers) or None


def _field(name: str) -> bytes:
    return name.lower().encode("ascii")


def _networks(networks: Networks) -> rules.Networks:
    return rules.Networks(CidrSet(networks.allow), CidrSet(networks.deny))


def _upstream(name: str, upstream: Upstream, material: Material) -> rules.Upstream:
    circuit = upstream.circuit
    return rules.Upstream(
        name=name,
        endpoints=tuple(parse_endpoint(url, http2=upstream.protocol == "h2") for url in upstream.endpoints),
        connect_timeout=upstream.connect_timeout,
        response_timeout=upstream.response_timeout,
        body_timeout=upstream.body_timeout,
        retries=upstream.retries,
        host=upstream.host,
        circuit=rules.Circuit(
            circuit.failures,
            circuit.window,
            circuit.open_for,
            circuit.probes,
            frozenset(circuit.statuses),
            circuit.slow,
            circuit.share,
        ),
        tls=_upstream_tls(name, upstream, material),
        trailers=frozenset(map(_field, upstream.trailers)),
    )


def _upstream_tls(name: str, upstream: Upstream, material: Material) -> rules.UpstreamTls | None:
    if upstream.tls is None and not any(url.startswith("https://") for url in upstream.endpoints):
        return None
    files = material.tls.get(("upstreams", name, "tls"), {})
    ca = files.get("ca")
    return rules.UpstreamTls(
        ca=ca,
        certificate=files.get("certificate"),
        key=files.get("key"),
        server_name=None if upstream.tls is None else upstream.tls.server_name,
        system=material.authorities if ca is None else None,
    )


def _admin_tls(policy: Policy, material: Material) -> rules.ListenTls | None:
    if policy.admin is None or policy.admin.tls is None:
        return None
    files = material.tls.get(("admin", "tls"), {})
    if not {"certificate", "key"} <= files.keys():
        return None  # as below
    return rules.ListenTls(files["certificate"], files["key"], files.get("client_ca"))


def _listen_tls(policy: Policy, material: Material) -> rules.ListenTls | None:
    tls = policy.listen.tls
    if tls is None:
        return None
    files = material.tls.get(("listen", "tls"), {})
    if not {"certificate", "key"} <= files.keys():
        return None  # left out, as replay alone does, which serves nothing; elsewhere a missing file is an error
    required = tls.client_certificate != "optional"
    further = []
    for index in range(len(tls.certificates)):
        location = ("listen", "tls", "certificates", index)
        own = material.tls.get(location, {})
        if not {"certificate", "key"} <= own.keys():
            return None
        further.append(rules.NamedCertificate(material.names[location], own["certificate"], own["key"]))
    return rules.ListenTls(files["certificate"], files["key"], files.get("client_ca"), required, tuple(further))


def _limit(name: str, limit: RateLimit) -> Limit:
    made = Limit(name, 1, limit.window, limit.key, limit.cost, limit.on_store_failure, limit.mode, limit.ipv6_prefix)
    if limit.tiers is None:
        return replace(made, limit=limit.limit or 0)
    widest = max(limit.numbers.values())
    of = {value: replace(made, limit=number, widest=widest, tier=value) for value, number in limit.tiers.values.items()}
    tiers = Tiers(limit.tiers.claim, of)
    return replace(made, limit=limit.tiers.default, widest=widest, tier="default", tiers=tiers)


def _cors(cors: Cors) -> rules.Cors:
    return rules.Cors(cors.origins, cors.methods, cors.headers, cors.credentials, cors.expose, cors.max_age)


def _resource(
    resource: Published, policy: Policy, issuers: Mapping[str, rules.Issuer], routes: Iterable[rules.Route]
) -> Resource:
    """Make the metadata of a protected resource (RFC 9728, section 2)."""
    parts = urlsplit(resource.resource)
    host, path = parts.hostname or "", parts.path or "/"
    names = _with_tenants(resource.issuers or default_issuers(policy.identity), policy) or ()
    servers = [issuers[name].issuer for name in names]
    tls = policy.listen.tls
    certificates = (tls is not None and tls.client_ca is not None) or policy.identity.proofs.certificate_header
    ways = [
        route.bound or all(issuers[name].bound for name in route.issuers or ())
        for route in routes
        if "jwt" in route.credentials and _may_serve(route, host, path)
    ]
    members: dict[str, object] = {
        "resource": resource.resource,
        "authorization_servers": [url for url in servers if url.startswith(("https://", "http://"))],
        "bearer_methods_supported": ["header"],
        "scopes_supported": list(resource.scopes),
        "resource_name": resource.name,
        "resource_documentation": resource.documentation,
        "tls_client_certificate_bound_access_tokens": bool(certificates),
        "dpop_signing_alg_values_supported": ALGORITHMS,
        # Where a certificate would do as well, it is not always DPoP that is required.
        "dpop_bound_access_tokens_required": bool(ways) and all(ways) and not certificates,
    }
    document = json.dumps({name: value for name, value in members.items() if value}, separators=(",", ":"))
    return Resource(f"{parts.scheme}://{parts.netloc}", host, path, document.encode("ascii"))


def _may_serve(route: rules.Route, host: str, path: str) -> bool:
    """Tell whether a route that is not public may take a request at a path of a host, or below it."""
    named = any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in route.hosts)
    if route.issuers is None or (route.hosts and not named):
        return False
    below, own = f"{path.rstrip('/')}/", f"{route.path.rstrip('/')}/"
    return own.startswith(below) or (not route.exact and below.startswith(own))


def _with_tenants(names: tuple[str, ...] | None, policy: Policy) -> tuple[str, ...] | None:
    """Put the tenants of an issuer in its place: each of them is one of its own."""
    if names is None:
        return None
    issuers = policy.identity.issuers
    return tuple(rules.name_of(name, tenant) for name in names for tenant in (issuers[name].tenants or (None,)))


def _of_tenants(name: str, issuer: Issuer, material: Material) -> Iterator[rules.Issuer]:
    keys, introspection = material.issuers[name], material.introspection.get(name)
    for tenant, urls, jwks_url in issuer.of_tenants():
        own = keys if jwks_url is None else replace(keys, url=jwks_url)
        if issuer.keys is not None and issuer.keys.discovery:
            own = replace(keys, url=metadata_urls(urls[0])[0], issuer=urls[0])
        full = rules.name_of(name, None if tenant is None else tenant[1])
        yield replace(_issuer(full, issuer, own, urls, tenant), introspection=introspection)


def _revocable(issuer: rules.Issuer, revocation: Revocation | None) -> rules.Issuer:
    """Let no token be good for longer than it is kept revoked.

    One that does not say when it was issued could be brought again near its end, when its revocation is over.
    """
    if revocation is None:
        return issuer
    longest = revocation.keep if issuer.max_lifetime is None else issuer.max_lifetime
    required = tuple(dict.fromkeys((*issuer.required, "iat")))
    return replace(issuer, max_lifetime=min(longest, LONGEST), required=required)


def _issuer(
    name: str, issuer: Issuer, keys: rules.KeySource, urls: tuple[str, ...], tenant: tuple[str, str] | None
) -> rules.Issuer:
    return rules.Issuer(
        name=name,
        issuer=urls[0],
        aliases=urls[1:],
        tenant=tenant,
        audience_in=issuer.claims.audience,
        required=issuer.claims.required,
        require=tuple(issuer.require.items()),
        default_role=issuer.default_role,
        audience=issuer.audience,
        algorithms=issuer.algorithms,
        keys=keys,
        leeway=issuer.leeway,
        token_type="at+jwt" if issuer.profile == "rfc9068" else issuer.token_type,
        rfc9068=issuer.profile == "rfc9068",
        subject=issuer.claims.subject,
        roles=issuer.claims.roles,
        scopes=issuer.claims.scopes,
        max_lifetime=issuer.max_lifetime,
        bound=issuer.bound == "required",
    )


def _proofs(proofs: Proofs, material: Material) -> rules.Proofs:
    name = proofs.certificate_header
    field = None if name is None else _field(name)
    return rules.Proofs(proofs.lifetime, material.nonce_secret, proofs.on_store_failure, field)


def _places(policy: Policy) -> Places | None:
    """Say where credentials of browsers are: whatever one route looks for, is taken out on all."""
    accepted = {kind for route in policy.routes for kind in route.credentials} - {"header"}
    cookie, tickets = policy.identity.browsers.cookie, policy.identity.browsers.tickets
    if not accepted and cookie is None and tickets is None:
        return None
    return Places(
        None if cookie is None else cookie.encode("ascii"),
        "subprotocol" in accepted,
        None if tickets is None else tickets.parameter,
    )


def _tickets(policy: Policy, material: Material) -> rules.Tickets | None:
    tickets = policy.identity.browsers.tickets
    if tickets is None:
        return None
    return rules.Tickets(tickets.path, tickets.parameter, tickets.lifetime, material.ticket_secret or b"")


ISSUER_HEADER = "X-User-Issuer"
"""Where the issuer is told unless the policy names another field."""


def _forward(forward: Forward, material: Material, routes: list[rules.Route]) -> rules.ForwardIdentity:
    told = forward.assertion
    assertion = (
        None if told is None else rules.Assertion(_field(told.header), material.assertion, told.lifetime, told.issuer)
    )
    issuer = None if forward.issuer is None else _field(forward.issuer)
    if issuer is None and any(_of_several(route) for route in routes):
        issuer = _field(ISSUER_HEADER)
        if any(name == issuer for route in routes for name, _ in route.rewrite.set):
            issuer = None  # a route writes the field itself
    percent = forward.encoding == "percent"
    return rules.ForwardIdentity(_field(forward.subject), _field(forward.roles), assertion, issuer, percent)


def _of_several(route: rules.Route) -> bool:
    """Tell whether subjects of two issuers may come in by a route, where one name could be of either."""
    others = 0 if route.every else len(set(route.credentials) - {"jwt"})
    return route.issuers is not None and len(route.issuers) + others > 1


def _identity_headers(forward: rules.ForwardIdentity, routes: list[rules.Route]) -> frozenset[bytes]:
    """Name every header that tells an upstream who asks, also those that routes make of the principal.

    A client's own are stripped on every route: an upstream believes a name wherever it sees it.
    """
    names = {forward.subject, forward.roles}
    if forward.issuer is not None:
        names.add(forward.issuer)
    if forward.assertion is not None:
        names.add(forward.assertion.header)
    for route in routes:
        for name, value in route.rewrite.set:
            if any(placeholder.startswith((*OF_PRINCIPAL, "subject")) for placeholder in value.placeholders):
                names.add(name)
    return frozenset(names)


def _route(
    route: Route,
    policy: Policy,
    upstreams: Mapping[str, rules.Upstream],
    limits: Mapping[str, Limit],
    cors: Mapping[str, rules.Cors],
    default: tuple[str, ...] | None,
) -> rules.Route:
    path = route.match.exact if route.match.exact is not None else route.match.prefix
    if path is None:
        raise ValueError(f"route {route.name} has no path")
    rule = accepted(route.auth)
    issuers = None if rule is None else _issuers_of(rule, policy, default)
    if issuers is None and rule is not None:
        # None would make the route public.
        raise ValueError(f"route {route.name} has no issuer")
    return rules.Route(
        name=route.name,
        path=path,
        exact=route.match.exact is not None,
        hosts=route.match.hosts,
        methods=frozenset(route.match.methods),
        upstream=upstreams[route.upstream],
        issuers=issuers,
        limits=tuple(limits[name] for name in route.rate_limits),
        rewrite=_rewrite(route.rewrite),
        cors=None if route.cors is None else cors[route.cors],
        websocket=route.websocket,
        stream=route.stream,
        stream_timeout=route.stream_timeout,
        odd=_odd(route),
        mode=route.mode,
        bound=rule is not None and rule.bound == "required",
        credentials=rules.TOKEN if rule is None else rule.kinds,
        every=rule is not None and rule.all is not None,
        places=route.credentials,
    )


def _issuers_of(rule: Credentials, policy: Policy, default: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return whose tokens a route takes; none of nobody's where it takes no tokens, None where nobody is named."""
    if "jwt" not in rule.kinds:
        return ()
    return default if rule.issuers is None else _with_tenants(rule.issuers, policy)


def _certificates(rule: Certificates | None) -> certificate.Certificates | None:
    if rule is None:
        return None
    kinds: tuple[tuple[certificate.NameKind, tuple[str, ...]], ...] = (
        ("uri", rule.uri),
        ("dns", tuple(map(str.lower, rule.dns))),
        ("email", rule.email),
        ("subject", rule.subject),
    )
    return certificate.Certificates(
        frozenset(rule.spiffe),
        tuple((kind, tuple(map(certificate.pattern, texts))) for kind, texts in kinds if texts),
        tuple((certificate.pattern(text), roles) for text, roles in rule.roles.items()),
        rule.forwarded,
        None if rule.header is None else _field(rule.header),
    )


def _credentials(routes: list[rules.Route], default: tuple[str, ...] | None) -> tuple[rules.Credential, ...]:
    """Return what tells those who may know that there is no route: whatever some route takes."""
    taken = {kind for route in routes if route.issuers is not None for kind in route.credentials}
    if default is None:
        taken.discard("jwt")
    else:
        taken.add("jwt")
    return tuple(kind for kind in get_args(rules.Credential) if kind in taken)


def _odd(route: Route) -> frozenset[Oddity]:
    allowed = {
        Oddity.ENCODED_SLASH: route.allow_encoded_slash,
        Oddity.PARAMETER: route.allow_parameters,
        Oddity.EMPTY_SEGMENT: route.allow_empty_segments,
        Oddity.ENCODED_DELIMITER: True,
    }
    return frozenset(oddity for oddity, may in allowed.items() if may)


def _rewrite(rewrite: Rewrite) -> rules.Rewrite:
    values = tuple((_field(name), template.parse(text)) for name, text in rewrite.set.items())
    # A header that the route sets is never the client's, also where its template has no value for a request.
    removed = frozenset(map(_field, rewrite.remove)) | {name for name, _ in values}
    return rules.Rewrite(rewrite.strip_prefix, rewrite.replace_prefix, values, removed)
