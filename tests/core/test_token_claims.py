"""Claims: times at their edges, audiences, subjects, roles and scopes of every shape."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.claims import Times, VerifiedClaims, check_times, principal_of, read_times, verify_claims
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer, KeySource
from mitmgate.core.token import SignedClaims

NOW = 1_800_000_000.0
ISSUER = Issuer("corp", "https://issuer.example", ("api://orders",), ("RS256",), KeySource("secret"), leeway=30.0)
CLAIMS: dict[str, Any] = {"iss": ISSUER.issuer, "aud": "api://orders", "sub": "alice", "exp": NOW + 60}


def reason_of(changes: dict[str, Any], issuer: Issuer = ISSUER, now: float = NOW) -> Reason | None:
    """Verify CLAIMS with changes; a change to ... removes the member. Returns None where there is a principal."""
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ...}
    verified = verify_claims(SignedClaims(claims), issuer, now)
    result = verified if isinstance(verified, Refusal) else principal_of(verified, issuer)
    return result.reason if isinstance(result, Refusal) else None


def principal(changes: dict[str, Any], issuer: Issuer = ISSUER) -> Principal:
    verified = verify_claims(SignedClaims(CLAIMS | changes), issuer, NOW)
    assert isinstance(verified, VerifiedClaims)
    made = principal_of(verified, issuer)
    assert isinstance(made, Principal)
    return made


NO_TIMES: tuple[object, ...] = (None, True, False, "1900000000", "", [NOW], {}, -1, -0.5, 1e300, 10**18, NOW * 1000)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"exp": NOW - 29.9}, None),  # leeway
        ({"exp": NOW - 30}, Reason.TOKEN_EXPIRED),  # on or after (RFC 7519, section 4.1.4)
        ({"exp": NOW - 31}, Reason.TOKEN_EXPIRED),
        ({"exp": 0}, Reason.TOKEN_EXPIRED),
        ({"nbf": NOW + 30}, None),
        ({"nbf": NOW + 30.1}, Reason.TOKEN_NOT_YET_VALID),
        ({"nbf": 0}, None),
        ({"iat": NOW + 30}, None),
        ({"iat": NOW + 31}, Reason.TOKEN_NOT_YET_VALID),
        ({"exp": ...}, Reason.TOKEN_CLAIM_INVALID),
        *(({name: value}, Reason.TOKEN_CLAIM_INVALID) for name in ("exp", "nbf", "iat") for value in NO_TIMES),
    ],
)
def test_times(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes) is reason


@pytest.mark.parametrize(
    ("changes", "now", "reason"),
    [
        ({"iat": NOW, "exp": NOW + 3600}, NOW, None),
        ({"iat": NOW, "exp": NOW + 3601}, NOW, Reason.TOKEN_LIFETIME_EXCEEDED),
        ({"iat": NOW, "exp": NOW + 3601}, NOW + 3500, Reason.TOKEN_LIFETIME_EXCEEDED),  # old, and too long all the same
        ({"exp": NOW + 3630}, NOW, None),  # without iat: what is left, within leeway
        ({"exp": NOW + 3631}, NOW, Reason.TOKEN_LIFETIME_EXCEEDED),
        ({"exp": NOW + 3631}, NOW + 1, None),
    ],
)
def test_lifetime(changes: dict[str, Any], now: float, reason: Reason | None) -> None:
    assert reason_of(changes, replace(ISSUER, max_lifetime=3600.0), now) is reason


@pytest.mark.parametrize(
    "value", [{"jkt": "x"}, {"x5t#S256": "x"}, {"jwk": {}}, {}, [], None, "", "x", 0, 1, False, True]
)
def test_a_token_that_is_bound_to_a_key_is_no_bearer_token(value: Any) -> None:
    assert reason_of({"cnf": value}) is Reason.TOKEN_PROOF_UNSUPPORTED
    assert reason_of({"act": {"cnf": value}, "CNF": value, "cnf ": value}) is None  # RFC 7800, section 3.1: `cnf` alone


def test_no_lifetime_is_too_long_unless_the_policy_says_so() -> None:
    assert reason_of({"iat": 0, "exp": 253_402_300_799}) is None


@pytest.mark.parametrize("issued", [None, 100.0])
@pytest.mark.parametrize("now", [69.0, 70.0, 99.0, 100.0, 229.0, 230.0])
def test_the_window_is_exact_at_its_edges(issued: float | None, now: float) -> None:
    times = Times(200.0, 100.0, issued)
    for max_lifetime in (None, 99.0, 100.0, 101.0):
        earliest, latest = times.window(30.0, max_lifetime)
        assert (earliest <= now < latest) is (check_times(times, now, 30.0, max_lifetime) is None)


@given(
    times=st.builds(Times, st.floats(0, 200), st.none() | st.floats(0, 200), st.none() | st.floats(0, 200)),
    now=st.floats(0, 300),
    leeway=st.floats(0, 60),
    max_lifetime=st.none() | st.floats(0, 200),
)
def test_the_window_is_where_the_times_hold(
    times: Times, now: float, leeway: float, max_lifetime: float | None
) -> None:
    earliest, latest = times.window(leeway, max_lifetime)
    assert (earliest <= now < latest) is (check_times(times, now, leeway, max_lifetime) is None)


@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat"]), st.floats() | st.integers() | st.text() | st.booleans()))
def test_no_times_make_it_raise(claims: dict[str, Any]) -> None:
    times = read_times(claims)
    if isinstance(times, Times):
        assert all(value is None or 0 <= value < 1e12 for value in times)


@pytest.mark.parametrize(
    ("audience", "reason"),
    [
        ("api://orders", None),
        (["api://orders"], None),
        (["api://other", "api://orders"], None),
        ("api://order", Reason.TOKEN_AUDIENCE_REFUSED),
        ("api://orders ", Reason.TOKEN_AUDIENCE_REFUSED),
        ("API://ORDERS", Reason.TOKEN_AUDIENCE_REFUSED),
        ("", Reason.TOKEN_AUDIENCE_REFUSED),
        ([], Reason.TOKEN_AUDIENCE_REFUSED),
        (..., Reason.TOKEN_AUDIENCE_REFUSED),
        (None, Reason.TOKEN_AUDIENCE_REFUSED),
        ({}, Reason.TOKEN_CLAIM_INVALID),
        ({"api://orders": 1}, Reason.TOKEN_CLAIM_INVALID),
        (["api://orders", 1], Reason.TOKEN_CLAIM_INVALID),
        ([["api://orders"]], Reason.TOKEN_CLAIM_INVALID),
        (True, Reason.TOKEN_CLAIM_INVALID),
    ],
)
def test_audience(audience: Any, reason: Reason | None) -> None:
    assert reason_of({"aud": audience}) is reason


def test_an_audience_that_is_not_configured_is_not_checked() -> None:
    assert reason_of({"aud": ...}, replace(ISSUER, audience=())) is None


@pytest.mark.parametrize("issuer", ["https://issuer.example/", "HTTPS://issuer.example", "https://evil.example", None])
def test_the_issuer_is_compared_exactly(issuer: Any) -> None:
    assert reason_of({"iss": issuer}) is Reason.TOKEN_ISSUER_UNKNOWN


@pytest.mark.parametrize("subject", ["alice", "a b", "auth0|5f7", "CN=alice,O=x", "ålice", "a" * 255])
def test_subjects(subject: str) -> None:
    assert principal({"sub": subject}).subject == subject


NO_NAMES: list[Any] = [
    *("", " ", " alice", "alice ", "a" * 256, "a\nb", "a\r\nX-Admin: 1", "a\0", "a\x7f", "a\x85", "a\u2028b"),
    *("a\u202eb", "a\u200bb", "a\u00a0b", 7, 1.5, True, ["alice"], {}, None),
]


@pytest.mark.parametrize("subject", NO_NAMES)
def test_what_names_no_subject(subject: Any) -> None:
    assert reason_of({"sub": subject}) is Reason.TOKEN_CLAIM_INVALID


def test_a_missing_subject() -> None:
    assert reason_of({"sub": ...}) is Reason.TOKEN_CLAIM_INVALID


@pytest.mark.parametrize("token_id", [name for name in NO_NAMES if name is not None])
def test_odd_token_ids(token_id: Any) -> None:
    assert reason_of({"jti": token_id}) is Reason.TOKEN_CLAIM_INVALID


def test_the_first_subject_that_is_present_counts_and_all_roles_and_scopes() -> None:
    issuer = replace(
        ISSUER,
        subject=("user", "sub"),
        roles=("/realm_access/roles", "https://acme.example/roles", "groups", "/groups/0/a~1b~0c"),
        scopes=("scp", "scope"),
    )
    claims: dict[str, Any] = {
        "user": "bob",
        "realm_access": {"roles": ["b", "c"]},
        "https://acme.example/roles": "d",
        "groups": ["c", "a"],
        "scp": ["s2"],
        "scope": "s1",
        "jti": "t1",
    }
    made = principal(claims, issuer)
    assert made.roles == ("b", "c", "d", "a")
    assert (made.subject, made.scopes, made.token_id) == ("bob", frozenset({"s1", "s2"}), "t1")
    assert (made.issuer, made.expires, made.claims) == ("corp", NOW + 60, CLAIMS | claims)


def test_a_present_claim_of_the_wrong_form_is_not_passed_over() -> None:
    for bad in (7, None):
        assert reason_of({"user": bad}, replace(ISSUER, subject=("user", "sub"))) is Reason.TOKEN_CLAIM_INVALID
        assert reason_of({"a": {"b": bad}}, replace(ISSUER, subject=("/a/b", "sub"))) is Reason.TOKEN_CLAIM_INVALID
    for member in ("roles", "scopes"):  # whichever of several it is
        issuer = replace(ISSUER, **{member: ("good", "/a/b")})  # type: ignore[arg-type]  # both are tuples of names
        assert reason_of({"good": "x", "a": {"b": "y"}}, issuer) is None
        assert reason_of({"good": "x", "a": {"b": [7]}}, issuer) is Reason.TOKEN_CLAIM_INVALID
        assert reason_of({"good": "x", "a": {"b": {}}}, issuer) is Reason.TOKEN_CLAIM_INVALID


ENTRA = replace(
    ISSUER,
    name="entra/t1",
    issuer="https://login.example/t1/v2.0",
    aliases=("https://sts.example/t1/",),
    tenant=("tid", "t1"),
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://login.example/t1/v2.0", "tid": "t1"}, None),
        ({"iss": "https://sts.example/t1/", "tid": "t1"}, None),
        ({"iss": "https://login.example/t1/v2.0"}, None),  # not every provider says it twice
        ({"iss": "https://login.example/t1/v2.0", "tid": "t2"}, Reason.TOKEN_CLAIM_INVALID),
        ({"iss": "https://login.example/t1/v2.0", "tid": None}, Reason.TOKEN_CLAIM_INVALID),
        ({"iss": "https://login.example/t2/v2.0", "tid": "t1"}, Reason.TOKEN_ISSUER_UNKNOWN),
        ({"iss": "https://login.example/{tid}/v2.0", "tid": "t1"}, Reason.TOKEN_ISSUER_UNKNOWN),
        ({"iss": "https://sts.example/t1", "tid": "t1"}, Reason.TOKEN_ISSUER_UNKNOWN),
        ({"iss": ["https://sts.example/t1/"], "tid": "t1"}, Reason.TOKEN_ISSUER_UNKNOWN),
    ],
)
def test_an_issuer_with_tenants_and_two_spellings(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes, ENTRA) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"token_use": "access"}, None),
        ({"typ": "Bearer"}, None),
        *(({name: "x"}, Reason.TOKEN_TYPE_REFUSED) for name in ("nonce", "at_hash", "c_hash", "s_hash")),
        *(({"token_use": use}, Reason.TOKEN_TYPE_REFUSED) for use in ("id", "refresh", None, ["access"], "Access")),
        *(
            ({"typ": typ}, Reason.TOKEN_TYPE_REFUSED)
            for typ in ("ID", "Refresh", "Offline", "bearer", None, ["Bearer"])
        ),
        ({"events": {}}, Reason.TOKEN_TYPE_REFUSED),
        ({"nonce": None}, Reason.TOKEN_TYPE_REFUSED),
    ],
)
def test_access_tokens_and_others_are_told_apart(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes, replace(ISSUER, token_type="access")) is reason
    assert reason_of(changes) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"client_id": "api://orders"}, None),
        ({"client_id": "other"}, Reason.TOKEN_AUDIENCE_REFUSED),
        ({"client_id": None}, Reason.TOKEN_AUDIENCE_REFUSED),  # it is there, and no audience
        ({"client_id": ["other", "api://orders"]}, None),
        ({}, None),  # the next one
        ({"aud": "other"}, Reason.TOKEN_AUDIENCE_REFUSED),
        ({"aud": ...}, Reason.TOKEN_AUDIENCE_REFUSED),
    ],
)
def test_the_audience_may_be_in_another_claim(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes, replace(ISSUER, audience_in=("client_id", "aud"))) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"azp": "app", "a": {"b": False}}, None),
        ({"azp": "app"}, Reason.TOKEN_CLAIM_INVALID),
        ({"azp": None, "a": {"b": 1}}, Reason.TOKEN_CLAIM_INVALID),
        ({"a": {"b": 1}}, Reason.TOKEN_CLAIM_INVALID),
    ],
)
def test_required_claims(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes, replace(ISSUER, required=("azp", "/a/b"))) is reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"repository_owner": "octo-org", "email_verified": True}, None),
        ({"repository_owner": ["other", "octo-org"], "email_verified": True}, None),
        ({"repository_owner": "other", "email_verified": True}, Reason.TOKEN_CLAIM_INVALID),
        ({"repository_owner": "Octo-Org", "email_verified": True}, Reason.TOKEN_CLAIM_INVALID),
        ({"repository_owner": "octo-org"}, Reason.TOKEN_CLAIM_INVALID),
        ({"repository_owner": "octo-org", "email_verified": 1}, Reason.TOKEN_CLAIM_INVALID),
        ({"repository_owner": "octo-org", "email_verified": "true"}, Reason.TOKEN_CLAIM_INVALID),
        ({}, Reason.TOKEN_CLAIM_INVALID),
    ],
)
def test_claims_that_an_issuers_tokens_must_have(changes: dict[str, Any], reason: Reason | None) -> None:
    require = (("repository_owner", ("octo-org", "octo-inc")), ("email_verified", (True,)))
    assert reason_of(changes, replace(ISSUER, require=require)) is reason


AT: dict[str, Any] = {"client_id": "app", "jti": "1", "iat": NOW, "scope": "a b"}
NO_ACCESS_TOKENS: list[dict[str, Any]] = [
    *({"client_id": client} for client in (..., None, "", 7, ["app"])),
    *({"jti": jti} for jti in (..., None, "", 7)),
    *({"sub": sub} for sub in (..., None, "", 7)),
    *({"iat": iat} for iat in (..., None, "1", True)),
    *({"scope": words} for words in (["a"], 7, None)),
    *({"auth_time": time} for time in ("1", None, True, -1)),
    *({"acr": acr} for acr in (1, None, ["0"])),
    *({"amr": methods} for methods in ("pwd", [1], 7)),
    {"exp": ...},
]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (AT, None),
        (AT | {"scope": ..., "auth_time": NOW, "acr": "0", "amr": ["pwd"], "azp": 7}, None),
        *((AT | lie, Reason.TOKEN_CLAIM_INVALID) for lie in NO_ACCESS_TOKENS),
        (AT | {"aud": ...}, Reason.TOKEN_AUDIENCE_REFUSED),
    ],
)
def test_the_profile_of_rfc_9068(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes, replace(ISSUER, rfc9068=True)) is reason


SPIFFE = replace(ISSUER, issuer="spiffe://prod.example", aliases=("https://oidc.prod.example",))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": ..., "sub": "spiffe://prod.example/ns/a/sa/orders"}, None),
        ({"iss": "https://oidc.prod.example", "sub": "spiffe://prod.example/x"}, None),
        ({"iss": ..., "sub": "spiffe://other.example/x"}, Reason.TOKEN_ISSUER_UNKNOWN),
        ({"iss": "https://oidc.prod.example", "sub": "spiffe://other.example/x"}, Reason.TOKEN_CLAIM_INVALID),
        ({"iss": "https://oidc.prod.example", "sub": "alice"}, Reason.TOKEN_CLAIM_INVALID),
        *(
            ({"iss": ..., "sub": sub}, Reason.TOKEN_ISSUER_UNKNOWN)
            for sub in (
                *("spiffe://prod.example", "spiffe://prod.example/", "spiffe://prod.example/a//b", "alice", None),
                *("spiffe://prod.example/a/../b", "spiffe://prod.example/.", "SPIFFE://prod.example/a"),
                *("spiffe://PROD.example/a", "spiffe://prod.example/a/", "spiffe://prod.example/a%2Fb", ["x"]),
                *("spiffe://prod.example:8080/a", "spiffe://u@prod.example/a", "spiffe://prod.example/a?b"),
            )
        ),
        ({"iss": None, "sub": "spiffe://prod.example/x"}, Reason.TOKEN_ISSUER_UNKNOWN),
    ],
)
def test_the_issuer_of_a_jwt_svid_is_its_trust_domain(changes: dict[str, Any], reason: Reason | None) -> None:
    assert reason_of(changes, SPIFFE) is reason


def test_who_has_no_role_has_the_default() -> None:
    issuer = replace(ISSUER, default_role="user", roles=("role", "/a/roles"))
    without: list[dict[str, Any]] = [{}, {"role": ""}, {"role": []}, {"role": None}, {"a": {"roles": []}}]
    for claims in without:
        assert principal(claims, issuer).roles == ("user",)
    assert principal({"a": {"roles": ["admin"]}}, issuer).roles == ("admin",)
    assert reason_of({"role": 7}, issuer) is Reason.TOKEN_CLAIM_INVALID, "a bad form is not none"


@pytest.mark.parametrize(
    ("roles", "read"),
    [
        ("admin", ("admin",)),
        ("admin user", ("admin user",)),  # never split
        ("admin,user", ("admin,user",)),
        (["admin", "user", "admin"], ("admin", "user")),
        ([], ()),
        ("", ()),
        (None, ()),
    ],
)
def test_roles(roles: Any, read: tuple[str, ...]) -> None:
    assert principal({"role": roles}).roles == read


@pytest.mark.parametrize(
    ("scopes", "read"),
    [
        ("users.read", {"users.read"}),
        ("users.read  users.write ", {"users.read", "users.write"}),
        (["users.read", "users.write"], {"users.read", "users.write"}),
        ("", set()),
        ([], set()),
        (None, set()),
    ],
)
def test_scopes(scopes: Any, read: set[str]) -> None:
    assert principal({"scope": scopes}).scopes == read


@pytest.mark.parametrize("name", ["role", "scope"])
@pytest.mark.parametrize("value", [7, True, {}, {"admin": True}, ["admin", 7], [["admin"]], ["ad\nmin"], [""], [None]])
def test_lists_of_the_wrong_form(name: str, value: Any) -> None:
    assert reason_of({name: value}) is Reason.TOKEN_CLAIM_INVALID


@pytest.mark.parametrize("value", ["users.read\tadmin", "users.read\nadmin", "a\u00a0b", "ä", ["users.read admin"]])
def test_scopes_are_split_at_spaces_alone(value: Any) -> None:
    assert reason_of({"scope": value}) is Reason.TOKEN_CLAIM_INVALID


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


WITH_ALL = replace(
    ISSUER,
    aliases=("https://issuer.example/",),
    tenant=("tid", "one"),
    token_type="access",
    subject=("/a/b", "sub"),
    roles=("role", "/a/0/b", "/a/a"),
    scopes=("scope", "/b"),
    audience_in=("/aud", "aud"),
    required=("/a", "sub"),
    require=(("/a/b", ("x", True)),),
    default_role="user",
)
NAMES = ["iss", "aud", "sub", "role", "scope", "exp", "nbf", "iat", "jti", "cnf", "tid", "typ", "token_use"]


@given(st.dictionaries(st.sampled_from([*NAMES, "nonce", "acr", "amr", "auth_time", "client_id", "a", "b"]), JSON))
def test_no_claims_make_it_raise(changes: dict[str, Any]) -> None:
    for issuer in (ISSUER, WITH_ALL, replace(ISSUER, rfc9068=True), SPIFFE):
        assert reason_of(changes, issuer) in {None, *Reason}
