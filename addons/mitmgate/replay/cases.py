"""Requests that nobody recorded: made by hand for `explain` and for policy tests."""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from mitmgate.core.headers import Headers
from mitmgate.core.introspection import INTROSPECTED
from mitmgate.core.jose import Json, parse_object
from mitmgate.core.pointer import put
from mitmgate.core.request import Request
from mitmgate.core.rules import Issuer
from mitmgate.core.token import UnverifiedToken
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.resigned import placeholder
from mitmgate.replay.traffic import Presented, Recorded
from mitmgate.usage import UserError

LIFETIME = 300.0
"""Seconds that a made-up token is valid, unless its claims say otherwise."""


def case(
    snapshot: Snapshot,
    method: str,
    url: str,
    *,
    at: float,
    claims: Mapping[str, Json] | None = None,
    token: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
    ip: str = "127.0.0.1",
    body: int = 0,
    identity: str = "case",
) -> Recorded:
    """Make a request. claims: of a token whose signature is taken for good; iss, aud, iat and exp are filled in.

    token: a real one, to be checked with the policy's keys. at: Unix seconds. Raises UserError.
    """
    try:
        parts = urlsplit(url)
        url.encode("latin-1")
    except ValueError as error:
        raise UserError(f"{url}: is no URL that a request could have: {error}") from error
    if parts.scheme not in {"", "http", "https"} or not (parts.netloc or url.startswith("/")):
        raise UserError(f"{url}: must be a path, or an http:// or https:// URL")
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    names = {name.lower() for name, _ in fields}
    if b"host" not in names:
        fields.insert(0, (b"Host", (parts.netloc or _any_host(snapshot)).encode("latin-1")))
    presented = None
    if claims is not None:
        presented = presented_claims(snapshot, claims, at)
        fields.append((b"Authorization", b"Bearer " + presented.text))
    elif token is not None:
        fields.append((b"Authorization", b"Bearer " + token.encode("latin-1", "replace")))
    path = parts.path or "/"
    request = Request(
        method=method.upper(),
        target=f"{path}?{parts.query}" if parts.query else path,
        version="HTTP/1.1",
        headers=Headers(fields),
        scheme=parts.scheme or "http",
        authority="",
        peer=ip,
        declared_body=body,
    )
    return Recorded(identity, at, request, presented=presented)


def _any_host(snapshot: Snapshot) -> str:
    """Return a host that some route takes, for a URL that names none."""
    hosts = [pattern for route in snapshot.routes.routes for pattern in route.hosts]
    return hosts[0].replace("*.", "any.") if hosts else "gateway.test"


def presented_claims(snapshot: Snapshot, claims: Mapping[str, Json], at: float) -> Presented:
    """Make a token of claims, as an issuer of the policy would have signed it. Raises UserError without an issuer."""
    issuer = _issuer(snapshot, claims)
    filled: dict[str, Json] = {"iss": issuer.issuer, "iat": int(at), "exp": int(at + LIFETIME)}
    if issuer.audience:
        put(filled, issuer.audience_in[0], issuer.audience[0])
    filled |= claims
    filled = {name: value for name, value in filled.items() if value is not None}
    token = UnverifiedToken(
        algorithm=issuer.algorithms[0] if issuer.algorithms else INTROSPECTED,
        key_id=None,
        type="at+jwt" if issuer.token_type == "at+jwt" else "JWT",
        issuer=str(filled.get("iss")),
        signing_input=b"",
        signature=b"",
        unverified_claims=filled,
    )
    return Presented(placeholder(repr(sorted(filled.items())).encode("utf-8"), 64), "good", token=token)


def _issuer(snapshot: Snapshot, claims: Mapping[str, Json]) -> Issuer:
    """Find the issuer that the claims name; without `iss` the policy's default."""
    if "iss" in claims:
        known = next((issuer for issuer in snapshot.issuers.values() if claims["iss"] in issuer.urls), None)
        if known is not None:
            return known
    names = snapshot.default_issuers or tuple(snapshot.issuers)
    if not names:
        raise UserError(f"{snapshot.path}: the policy has no issuer, so no token means anything to it")
    return snapshot.issuers[names[0]]


def parse_claims(text: str) -> dict[str, Json]:
    """Read claims as JSON. Raises UserError."""
    claims = parse_object(text.encode("utf-8"))
    if claims is None:
        raise UserError('--claims: must be a JSON object, like \'{"sub": "alice", "scope": "users.read"}\'')
    return claims


def parse_header(text: str) -> tuple[str, str]:
    """Read `Name: value`. Raises UserError."""
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise UserError(f"--header {text}: must be NAME:VALUE")
    try:
        (name + value).encode("latin-1")
    except UnicodeEncodeError as error:
        raise UserError(f"--header {text}: must be ISO-8859-1") from error
    return name.strip(), value.strip()
