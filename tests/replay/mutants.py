"""One rule changed at a time, over every stage, and what an observer who knows the traffic expects of each."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.replay.corpus import Case

Made = dict[str, Any]
Expect = Callable[[Case, str], str | None]
"""Of a case and what was decided of it: what is decided now ("deny x", "admit"), or which kind of difference there is
in what is forwarded ("headers", "target", "upstream", "observed"); None where nothing changes."""


@dataclass(frozen=True)
class Mutant:
    """A change of one rule. `expect` is made anew for each run: it may count."""

    stage: str
    name: str
    change: Callable[[Made], None]
    expect: Callable[[], Expect]


def route(made: Made, name: str) -> Made:
    found: Made = next(each for each in made["routes"] if each["name"] == name)
    return found


def simple(*rules: tuple[set[str], str, str]) -> Callable[[], Expect]:
    """Expect by tag: (tags, what was decided, what is decided now); "*" is any decision."""

    def expect(case: Case, before: str) -> str | None:
        return next((after for tags, was, after in rules if case.tag in tags and was in {before, "*"}), None)

    return lambda: expect


def nth(tags: set[str], was: str, now: str, first: int, by: Callable[[Case], str]) -> Callable[[], Expect]:
    """Expect a change from the n-th request on that was decided as `was`, counted by a key."""

    def make() -> Expect:
        counts: Counter[str] = Counter()

        def expect(case: Case, before: str) -> str | None:
            if case.tag not in tags or before != was:
                return None
            counts[by(case)] += 1
            return now if counts[by(case)] > first else None

        return expect

    return make


def put(*path: Any, value: Any) -> Callable[[Made], None]:
    """Set a member; a route is named, not numbered."""

    def change(made: Made) -> None:
        inner: Any = made
        steps = list(path)
        if steps[0] == "routes":
            inner, steps = route(made, steps[1]), steps[2:]
        for step in steps[:-1]:
            inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
        inner[steps[-1]] = value

    return change


def drop(*path: Any) -> Callable[[Made], None]:
    """Remove a member."""

    def change(made: Made) -> None:
        inner: Any = made
        steps = list(path)
        if steps[0] == "routes":
            inner, steps = route(made, steps[1]), steps[2:]
        for step in steps[:-1]:
            inner = inner[step]
        del inner[steps[-1]]

    return change


def _ask(made: Made) -> None:
    """Have a decision service decide on what is public."""
    made["decision_services"] = {"pdp": {"protocol": "opa", "url": "http://127.0.0.1:9/v1/data/x"}}
    route(made, "public")["decision"] = "pdp"


ON_USERS = {"users", "delete-user", "delete-admin", "origin", "body-ok", "umlaut", "scope"}
USERS_ADMITTED = {"users", "delete-admin", "origin", "body-ok"}
ORDERS = {"orders", "orders-post"}
PUBLIC = {"public", "public-token", "public-forged", "large-head", "bucket"}
PETS = Path(__file__).with_name("coverage") / "pets.yaml"
TENANTS = {"tenant-acme", "tenant-globex"}
BAD = {
    "token-malformed",
    "token-signature-invalid",
    "token-expired",
    "token-audience-refused",
    "token-issuer-unknown",
    "token-algorithm-refused",
    "token-claim-invalid",
    "token-type-refused",
    "token-lifetime-exceeded",
    "token-not-yet-valid",
    "token-proof-unsupported",
}
GOOD_TOKEN = {
    *ON_USERS,
    *ORDERS,
    *TENANTS,
    *{"role", "tenant-initech", "limited", "watched", "no-route", "reported", "origin-no", "body", "method", "slash"},
}
"""Requests that authentication sees a good token of."""
QUOTA, OPEN = "deny quota-exceeded", "deny circuit-open"


def _principals_headers(case: Case, before: str) -> str | None:
    with_principal = USERS_ADMITTED | ORDERS | TENANTS | {"limited", "watched", "reported"}
    return "headers" if case.tag in with_principal and before == "admit" else None


def _no_users(case: Case, before: str) -> str | None:
    """What becomes of requests to /api/v1/users when no route takes them."""
    return "deny no-route" if case.tag in ON_USERS | {"origin-no", "body", "slash"} else None


def _all_refused(reason: str) -> Callable[[], Expect]:
    def expect(case: Case, before: str) -> str | None:
        if case.tag == "reported":  # report mode lets it pass, without an identity
            return "headers"
        return f"deny {reason}" if case.tag in GOOD_TOKEN else None

    return lambda: expect


def _either(*makers: Callable[[], Expect]) -> Callable[[], Expect]:
    """The first expectation that says anything; the first one wins."""

    def make() -> Expect:
        each = [maker() for maker in makers]
        return lambda case, before: next((found for one in each if (found := one(case, before)) is not None), None)

    return make


MUTANTS = [
    Mutant(
        "arrival",
        "trusted-proxies",
        put("trusted_proxies", value=["127.0.0.2/32"]),
        simple(({"spoofed"}, "deny address-denied", "admit")),
    ),
    Mutant(
        "hygiene",
        "head-size",
        put("limits", "head", value="2KiB"),
        simple(({"large-head"}, "admit", "deny head-too-large")),
    ),
    Mutant(
        "endpoints",
        "health-moved",
        put("endpoints", value={"health": "/healthz"}),
        simple(({"health"}, "answer health", "deny credential-missing")),
    ),
    Mutant(
        "routing",
        "prefix",
        put("routes", "users", "match", value={"prefix": "/api/v1/userz"}),
        lambda: _no_users,
    ),
    Mutant(
        "routing",
        "methods",
        put("routes", "orders", "match", "methods", value=["GET"]),
        simple(({"orders-post"}, "admit", "deny method-not-allowed")),
    ),
    Mutant(
        "routing",
        "more-methods",
        put("routes", "get-only", "match", "methods", value=["GET", "PUT"]),
        simple(({"method"}, "deny method-not-allowed", "admit")),
    ),
    Mutant(
        "routing",
        "encoded-slash",
        put("routes", "users", "allow_encoded_slash", value=True),
        simple(({"slash"}, "deny path-ambiguous", "admit")),
    ),
    Mutant(
        "cors",
        "origin",
        put("cors", "web", "origins", value=["https://other.example"]),
        simple(
            ({"preflight"}, "answer preflight", "deny origin-not-allowed"),
            ({"preflight-no"}, "deny preflight-refused", "deny origin-not-allowed"),
            ({"origin"}, "admit", "deny origin-not-allowed"),
        ),
    ),
    Mutant(
        "cors",
        "method",
        put("cors", "web", "methods", value=["GET", "POST", "DELETE"]),
        simple(({"preflight-no"}, "deny preflight-refused", "answer preflight")),
    ),
    Mutant(
        "network-access",
        "deny-gone",
        put("networks", value={"deny": []}),
        simple(({"barred"}, "deny address-denied", "admit")),
    ),
    Mutant(
        "network-access",
        "deny-more",
        put("networks", "deny", value=["127.0.0.13/32", "127.0.0.3/32"]),
        simple(({"bucket"}, "admit", "deny address-denied"), ({"bucket"}, QUOTA, "deny address-denied")),
    ),
    Mutant(
        "network-access",
        "allow-less",
        put("routes", "office", "networks", "allow", value=["127.0.0.4/32"]),
        simple(({"office"}, "admit", "deny address-denied")),
    ),
    Mutant(
        "size-limit",
        "larger",
        put("routes", "users", "max_body", value="4KiB"),
        simple(({"body"}, "deny body-too-large", "admit")),
    ),
    Mutant(
        "size-limit",
        "smaller",
        put("routes", "users", "max_body", value="512B"),
        simple(({"body-ok"}, "admit", "deny body-too-large")),
    ),
    Mutant(
        "client-quota",
        "none",
        put("client_limits", value=[]),
        simple(({"bucket"}, QUOTA, "admit")),
    ),
    Mutant(
        "client-quota",
        "tighter",
        put("rate_limits", "per-bucket", "limit", value=15),
        nth({"bucket"}, "admit", QUOTA, 15, lambda case: case.bucket),
    ),
    Mutant(
        "authentication",
        "leeway",
        put("identity", "issuers", "dev", "leeway", value="3h"),
        simple(
            ({"token-expired"}, "deny token-expired", "admit"),
            ({"token-not-yet-valid"}, "deny token-not-yet-valid", "admit"),
        ),
    ),
    Mutant(
        "authentication",
        "lifetime",
        drop("identity", "issuers", "dev", "max_lifetime"),
        simple(({"token-lifetime-exceeded"}, "deny token-lifetime-exceeded", "admit")),
    ),
    Mutant(
        "authentication",
        "audience",
        put("identity", "issuers", "dev", "audience", value=["api://other"]),
        _either(
            simple(
                ({"token-audience-refused"}, "*", "admit"),
                *(
                    ({tag}, "*", "deny token-audience-refused")
                    for tag in (
                        "token-expired",
                        "token-claim-invalid",
                        "token-lifetime-exceeded",
                        "token-not-yet-valid",
                        "token-proof-unsupported",
                    )
                ),
            ),
            _all_refused("token-audience-refused"),
        ),
    ),
    Mutant(
        "authentication",
        "token-type",
        put("identity", "issuers", "dev", "token_type", value="at+jwt"),
        _either(
            simple(
                (
                    BAD - {"token-malformed", "token-issuer-unknown", "token-algorithm-refused", "token-type-refused"},
                    "*",
                    "deny token-type-refused",
                )
            ),
            _all_refused("token-type-refused"),
        ),
    ),
    Mutant(
        "authentication",
        "issuer",
        put("identity", "issuers", "dev", "issuer", value="https://other.example"),
        _either(
            simple((BAD - {"token-malformed", "token-issuer-unknown"}, "*", "deny token-issuer-unknown")),
            _all_refused("token-issuer-unknown"),
        ),
    ),
    Mutant(
        "authentication",
        "public-no-more",
        put("routes", "public", "auth", value={"issuers": ["dev"]}),
        simple(
            ({"public", "large-head", "bucket"}, "admit", "deny credential-missing"),
            ({"public-token"}, "admit", "headers"),
            ({"public-forged"}, "admit", "deny token-signature-invalid"),
        ),
    ),
    Mutant(
        "authorization",
        "other-scope",
        put("routes", "users", "require", "scopes_all", value=["users.write"]),
        simple((ON_USERS - {"scope"}, "*", "deny scope-missing")),
    ),
    Mutant(
        "authorization",
        "no-scope",
        drop("routes", "users", "require", "scopes_all"),
        simple(({"scope"}, "deny scope-missing", "admit")),
    ),
    Mutant(
        "authorization",
        "fewer-roles",
        put("routes", "orders", "require", "roles_any", value=["admin"]),
        simple((ORDERS, "admit", "deny role-missing")),
    ),
    Mutant(
        "authorization",
        "more-roles",
        put("routes", "orders", "require", "roles_any", value=["user", "admin", "guest"]),
        simple(({"role"}, "deny role-missing", "admit")),
    ),
    Mutant(
        "authorization",
        "fewer-tenants",
        put("routes", "tenants", "require", "claims", value={"tenant": ["acme"]}),
        simple(({"tenant-globex"}, "admit", "deny claim-mismatch")),
    ),
    Mutant(
        "authorization",
        "more-tenants",
        put("routes", "tenants", "require", "claims", value={"tenant": ["acme", "globex", "initech"]}),
        simple(({"tenant-initech"}, "deny claim-mismatch", "admit")),
    ),
    Mutant(
        "authorization",
        "condition-gone",
        drop("routes", "users", "require", "when"),
        simple(({"delete-user"}, "deny condition-false", "admit")),
    ),
    Mutant(
        "authorization",
        "condition-stricter",
        put("routes", "users", "require", "when", value='request.method == "GET"'),
        simple(({"delete-admin", "body-ok"}, "admit", "deny condition-false")),
    ),
    Mutant(
        "rate-limit",
        "wider",
        put("rate_limits", "per-user", "limit", value=100_000),
        simple(({"limited"}, QUOTA, "admit")),
    ),
    Mutant(
        "rate-limit",
        "tighter",
        put("rate_limits", "per-user", "limit", value=4),
        nth({"limited"}, "admit", QUOTA, 4, lambda case: case.who),
    ),
    Mutant(
        "rate-limit",
        "enforced",
        put("rate_limits", "watched", "mode", value="enforce"),
        nth({"watched"}, "admit", QUOTA, 5, lambda case: case.who),
    ),
    Mutant(
        "circuit-breaker",
        "patient",
        put("upstreams", "flaky", "circuit", "failures", value=10_000),
        simple(({"flaky"}, OPEN, "admit")),
    ),
    Mutant(
        "circuit-breaker",
        "other-statuses",
        put("upstreams", "flaky", "circuit", "statuses", value=[503]),
        simple(({"flaky"}, OPEN, "admit")),
    ),
    Mutant(
        "rewrite",
        "prefix-kept",
        put("routes", "orders", "rewrite", "strip_prefix", value=False),
        simple((ORDERS, "admit", "target")),
    ),
    Mutant(
        "rewrite",
        "other-prefix",
        put("routes", "tenants", "rewrite", "replace_prefix", value="/service"),
        simple((TENANTS, "admit", "target")),
    ),
    Mutant(
        "rewrite",
        "header",
        put("routes", "orders", "rewrite", "set", "X-Via", value="door"),
        simple((ORDERS, "admit", "headers")),
    ),
    Mutant(
        "rewrite",
        "nothing-removed",
        drop("routes", "orders", "rewrite", "remove"),
        simple(({"orders"}, "admit", "headers")),
    ),
    Mutant(
        "rewrite",
        "identity-header",
        put("identity", "forward", value={"subject": "X-Who"}),
        lambda: _principals_headers,
    ),
    Mutant(
        "rewrite",
        "other-service",
        put("routes", "orders", "upstream", value="users"),
        simple((ORDERS, "admit", "upstream")),
    ),
    Mutant(
        "rewrite",
        "host",
        put("upstreams", "orders", "host", value="orders.internal"),
        simple((ORDERS, "admit", "headers")),
    ),
    Mutant(
        "openapi",
        "of-another-service",
        put("routes", "public", "openapi", value={"document": str(PETS)}),
        simple((PUBLIC, "admit", "deny operation-unknown")),
    ),
    Mutant(
        "decision-service",
        "nobody-was-asked",
        _ask,
        simple((PUBLIC, "admit", "deny decision-unavailable")),
    ),
    Mutant(
        "report mode",
        "route",
        put("routes", "orders", "mode", value="report"),
        simple(({"role"}, "deny role-missing", "admit")),
    ),
    Mutant(
        "report mode",
        "no-more",
        drop("routes", "reported", "mode"),
        simple(({"reported"}, "admit", "deny scope-missing")),
    ),
]
