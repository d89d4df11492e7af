"""CORS decisions."""

import pytest

from mitmgate.core.cors import OriginRules, allowed_origin, grant, is_preflight, is_same_origin, preflight
from mitmgate.core.headers import Headers
from mitmgate.core.rules import Cors

RULE = Cors(
    ("https://app.example",), ("GET", "POST"), ("Authorization", "Content-Type"), True, ("X-Request-ID",), 600.0
)
ANY = Cors(("*",), ("GET",), ("*",), False, (), None)


def headers(**fields: str) -> Headers:
    return Headers((name.replace("_", "-").lower().encode(), value.encode()) for name, value in fields.items())


@pytest.mark.parametrize(
    "origin",
    ["https://app.example.evil", "https://app.example:443", "http://app.example", "https://APP.example", "null", "*"],
)
def test_origins_match_byte_for_byte(origin: str) -> None:
    assert allowed_origin(RULE, origin) is None
    assert grant(RULE, origin).fields == ()


def test_an_allowed_origin_is_echoed_with_what_the_policy_exposes() -> None:
    given = grant(RULE, "https://app.example")
    assert dict(given.fields) == {
        b"Access-Control-Allow-Origin": b"https://app.example",
        b"Access-Control-Allow-Credentials": b"true",
        b"Access-Control-Expose-Headers": b"X-Request-ID",
    }
    assert given.vary


def test_a_star_never_comes_with_credentials_and_does_not_vary() -> None:
    given = grant(ANY, "https://anyone.example")
    assert dict(given.fields) == {b"Access-Control-Allow-Origin": b"*"}
    assert not given.vary


def test_only_a_true_preflight_is_one() -> None:
    full = headers(Origin="https://app.example", Access_Control_Request_Method="POST")
    assert is_preflight("OPTIONS", full)
    assert not is_preflight("GET", full)
    assert not is_preflight("OPTIONS", headers(Origin="https://app.example"))
    assert not is_preflight("OPTIONS", headers(Access_Control_Request_Method="POST"))


def test_a_preflight_is_answered_or_refused_by_method_and_headers() -> None:
    asked = headers(Access_Control_Request_Method="POST", Access_Control_Request_Headers="authorization, content-type")
    answer = preflight(RULE, asked)
    assert not isinstance(answer, str)
    assert dict(answer)[b"Access-Control-Allow-Methods"] == b"GET, POST"
    assert dict(answer)[b"Access-Control-Max-Age"] == b"600"
    assert isinstance(preflight(RULE, headers(Access_Control_Request_Method="DELETE")), str)
    assert isinstance(
        preflight(RULE, headers(Access_Control_Request_Method="GET", Access_Control_Request_Headers="x-evil")), str
    )


def test_same_origin_names_the_very_host() -> None:
    assert is_same_origin("https://api.example", "api.example")
    assert not is_same_origin("https://api.example", "api.example:8080")
    assert not is_same_origin("https://api.example.evil", "api.example")


def test_what_all_rules_together_allow_an_origin() -> None:
    other = Cors(("https://app.example", "https://tool.example"), ("PUT",), ("X-Tool",), False, ("ETag",), 60.0)
    rules = OriginRules([RULE, other, ANY])
    assert rules
    assert rules.origins == ("https://app.example", "https://tool.example", "*")
    app = rules.rule("https://app.example")
    assert app == Cors(
        ("https://app.example",),
        ("GET", "POST", "PUT"),
        ("Authorization", "Content-Type", "X-Tool"),  # without the star of the rule that takes no credentials
        True,
        ("X-Request-ID", "ETag"),
        None,
    )
    tool = rules.rule("https://tool.example")
    assert tool == Cors(("https://tool.example",), ("PUT", "GET"), ("X-Tool", "*"), False, ("ETag",), None)
    assert rules.rule("https://anyone.example") == Cors(("*",), ("GET",), ("*",), False, (), None)
    assert all(rules.grant(origin).vary for origin in (None, "https://app.example", "https://anyone.example"))
    assert dict(rules.grant("https://anyone.example").fields) == {b"Access-Control-Allow-Origin": b"*"}


def test_rules_for_everybody_are_rules() -> None:
    rules = OriginRules([ANY])
    assert rules
    assert rules.origins == ("*",)
    assert rules.rule("https://anyone.example") == ANY
    assert rules.grant(None).fields == ()
    assert OriginRules([RULE]).origins == RULE.origins
    assert OriginRules([RULE]).rule("https://anyone.example") is None


def test_what_is_joined_is_remembered_no_longer_than_by_the_shortest() -> None:
    def joined(*ages: float | None, expose: tuple[str, ...] = (), credentials: bool = False) -> Cors:
        rules = [Cors(("https://app.example",), ("GET",), (), credentials, expose, age) for age in ages]
        found = OriginRules(rules).rule("https://app.example")
        assert found is not None
        return found

    assert joined(60.0, 600.0).max_age == 60.0
    assert joined(60.0).max_age == 60.0
    assert joined(60.0, None).max_age is None
    assert joined(None).max_age is None
    assert joined(None, expose=("*",)).expose == ("*",)
    assert joined(None, expose=("*", "ETag"), credentials=True).expose == ("ETag",), (
        "a star is no name where credentials go along"
    )


@pytest.mark.parametrize(
    ("rule", "method", "asked", "fields"),
    [
        (RULE, "GET", None, {"Methods": "GET, POST", "Headers": "Authorization, Content-Type"}),
        (RULE, "", None, None),
        (RULE, "*", None, None),
        (RULE, "get", None, None),
        (RULE, "GET", "x-evil", None),
        (RULE, "GET", "*", None),
        (RULE, "GET", " , authorization ,", {"Methods": "GET, POST", "Headers": "Authorization, Content-Type"}),
        (Cors(("*",), ("*",), ("*",), False, (), None), "BREW", "x-a, X-B", {"Methods": "BREW", "Headers": "x-a, x-b"}),
        (Cors(("*",), ("*",), ("*",), False, (), None), "BREW", None, {"Methods": "BREW"}),
        (Cors(("*",), ("GET",), (), False, (), None), "GET", None, {"Methods": "GET"}),
        (Cors(("*",), ("GET",), (), False, (), None), "GET", "x-a", None),
        (Cors(("*",), ("GET",), (), False, (), None), "PUT", None, None),
    ],
)
def test_what_a_preflight_is_told(rule: Cors, method: str, asked: str | None, fields: dict[str, str] | None) -> None:
    sent = {} if asked is None else {"Access_Control_Request_Headers": asked}
    answer = preflight(rule, headers(Access_Control_Request_Method=method, **sent))
    assert isinstance(answer, str) is (fields is None)
    if fields is not None and not isinstance(answer, str):
        told = {name.decode(): value.decode() for name, value in answer if name != b"Access-Control-Max-Age"}
        assert told == {f"Access-Control-Allow-{name}": value for name, value in fields.items()}
        assert (b"Access-Control-Max-Age" in dict(answer)) is (rule.max_age is not None)


def test_without_a_method_nothing_is_a_preflight() -> None:
    assert isinstance(preflight(RULE, headers()), str)


def test_without_rules_nothing_is_allowed_and_nothing_varies() -> None:
    rules = OriginRules()
    assert not rules
    assert rules.rule("https://app.example") is None
    assert rules.grant("https://app.example") == grant(ANY, None)
    assert not OriginRules([ANY]).grant("https://app.example").vary
