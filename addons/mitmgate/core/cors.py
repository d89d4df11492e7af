"""CORS (Fetch standard, section 3.2): which origin may read, and what a preflight is answered.

A browser's preflight has no credential, and what is told without one must not give routes away. So for every path that
is not public the same is said: what any rule of the policy allows the origin that asks. The route's own rule decides on
the request itself, once it is known who asks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mitmgate.core.headers import Fields, Headers
from mitmgate.core.rules import Cors


@dataclass(frozen=True, slots=True)
class Grant:
    """The CORS fields that the response gets in place of the upstream's own. vary: depends on the Origin field."""

    fields: Fields
    vary: bool


class OriginRules:
    """What the rules of a policy, all together, allow each origin; the same for every path."""

    __slots__ = ("_any", "_by_origin", "_nothing")

    def __init__(self, rules: Iterable[Cors] = ()) -> None:
        """Join the rules by the origins that they name."""
        rules = tuple(rules)
        exact = dict.fromkeys(origin for rule in rules for origin in rule.origins if origin != "*")
        self._any = _joined("*", rules)
        self._by_origin = {origin: _joined(origin, rules) for origin in exact}
        self._nothing = Grant((), vary=bool(exact))

    def __bool__(self) -> bool:
        """Tell whether there is any rule."""
        return self._any is not None or bool(self._by_origin)

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins that any rule names, "*" last."""
        return (*self._by_origin, *(() if self._any is None else ("*",)))

    def rule(self, origin: str) -> Cors | None:
        """Return what an origin is allowed; None: nothing."""
        return self._by_origin.get(origin) or self._any

    def grant(self, origin: str | None) -> Grant:
        """Make the fields of an answer that says nothing of the path."""
        rule = None if origin is None else self.rule(origin)
        return self._nothing if rule is None else Grant(grant(rule, origin).fields, self._nothing.vary)


def _joined(origin: str, rules: Iterable[Cors]) -> Cors | None:
    """Join the rules that allow an origin; "*": those that allow every one. None where there are none."""
    those = [rule for rule in rules if origin in rule.origins or "*" in rule.origins]
    if not those:
        return None
    credentials = any(rule.credentials for rule in those)
    # Where credentials go along, a star of another rule, which has none, must not stand for every header.
    except_for = {"*"} if credentials else set()
    ages = [rule.max_age for rule in those if rule.max_age is not None]
    return Cors(
        origins=(origin,),
        methods=tuple(dict.fromkeys(method for rule in those for method in rule.methods)),
        headers=tuple(dict.fromkeys(name for rule in those for name in rule.headers if name not in except_for)),
        credentials=credentials,
        expose=tuple(dict.fromkeys(name for rule in those for name in rule.expose if name not in except_for)),
        max_age=min(ages) if len(ages) == len(those) else None,
    )


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
