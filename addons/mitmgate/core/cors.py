"""CORS (Fetch standard, section 3.2): which origin may read, and what a preflight is answered."""

from dataclasses import dataclass

from mitmgate.core.headers import Fields, Headers
from mitmgate.core.rules import Cors


@dataclass(frozen=True, slots=True)
class Grant:
    """The CORS fields that the response gets in place of the upstream's own. vary: depends on the Origin field."""

    fields: Fields
    vary: bool


def is_preflight(method: str, headers: Headers) -> bool:
    """Tell whether a request is a true preflight: OPTIONS, one Origin, one Access-Control-Request-Method."""
    return (
        method == "OPTIONS"
        and headers.one(b"origin") is not None
        and headers.one(b"access-control-request-method") is not None
    )


def allowed_origin(cors: Cors, origin: str) -> str | None:
    """Return the value of Access-Control-Allow-Origin for an origin; None where it is not allowed.

    Origins are compared byte for byte; no suffixes, no patterns.
    """
    if cors.origins == ("*",):
        return "*"
    return origin if origin in cors.origins else None


def is_same_origin(origin: str, authority: str) -> bool:
    """Tell whether an Origin names the very host and port that the request was sent to."""
    return origin.lower() in {f"http://{authority}".lower(), f"https://{authority}".lower()}


def grant(cors: Cors, origin: str | None) -> Grant:
    """Make the fields of an actual response. No origin, or one not allowed: only `Vary` speaks of CORS."""
    vary = cors.origins != ("*",)
    allowed = None if origin is None else allowed_origin(cors, origin)
    if allowed is None:
        return Grant((), vary)
    fields = [(b"Access-Control-Allow-Origin", allowed.encode("latin-1"))]
    if cors.credentials:
        fields.append((b"Access-Control-Allow-Credentials", b"true"))
    if cors.expose:
        fields.append((b"Access-Control-Expose-Headers", ", ".join(cors.expose).encode("latin-1")))
    return Grant(tuple(fields), vary)


def preflight(cors: Cors, headers: Headers) -> Fields | str:
    """Answer a preflight of an allowed origin: the fields beside those of `grant`, or why it is refused.

    Names of methods are compared exactly, names of headers without regard to case.
    """
    method = (headers.one(b"access-control-request-method") or b"").decode("latin-1")
    if method not in cors.methods and "*" not in cors.methods:
        return "The method is not among those that the CORS policy allows."
    requested = headers.text("access-control-request-headers") or ""
    names = [name.strip().lower() for name in requested.split(",") if name.strip()]
    permitted = {name.lower() for name in cors.headers}
    if "*" not in permitted and not permitted.issuperset(names):
        return "A header is not among those that the CORS policy allows."
    methods = method if "*" in cors.methods else ", ".join(cors.methods)
    fields = [(b"Access-Control-Allow-Methods", methods.encode("latin-1"))]
    allow = ", ".join(names) if "*" in permitted else ", ".join(cors.headers)
    if allow:
        fields.append((b"Access-Control-Allow-Headers", allow.encode("latin-1")))
    if cors.max_age is not None:
        fields.append((b"Access-Control-Max-Age", b"%d" % int(cors.max_age)))
    return tuple(fields)
