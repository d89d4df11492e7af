"""No credential gets through, in whatever position or spelling."""

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mitmgate.audit.redact import Redaction, mark
from mitmgate.audit.settings import Redact
from mitmgate.core.credentials import hide_in_path
from tests.audit.facts import JWT

REDACTION = Redaction(Redact(headers=("X-Api-Key",), query=("token", "api_key", "a.b")))


@pytest.mark.parametrize(
    "query",
    [
        "token=SECRET",
        "a=1&token=SECRET&b=2",
        "a=1&TOKEN=SECRET",
        "Token=SECRET",
        "api_key=SECRET;x=1",
        "x=1;api_key=SECRET",
        "token[]=SECRET",
        "token[0]=SECRET",
        "token%5B%5D=SECRET",
        "%74oken=SECRET",
        "%2574oken=SECRET",
        "+token=SECRET",
        "token+=SECRET",
        "token=SECRET%20more",
        "token=SECRET=SECRET",
        "access_token=SECRET",
        "x=1#access_token=SECRET",
        "x=1?token=SECRET",
        "client_secret=SECRET&grant=x",
        "token=SECRET&token=SECRET",
        "a.b=SECRET",
        "x=%41&id_token=SECRET",
        "&&token=SECRET",
        "mytoken=SECRET",
    ],
)
def test_named_parameters_are_redacted(query: str) -> None:
    written = REDACTION.query(query)
    assert "SECRET" not in written
    assert "[redacted]" in written


@pytest.mark.parametrize(
    "query", ["", "a=1", "tokens=5", "x=token=", "token", "token=", "axb=1", "q=a%20b&c=d+e", "a;b&c"]
)
def test_the_rest_stays_as_it_is(query: str) -> None:
    assert REDACTION.query(query) == query


@pytest.mark.parametrize(
    "text",
    [
        "x=" + JWT.replace("eyJ", "%65yJ", 1),
        "x=" + "".join(f"%{ord(character):02x}" for character in JWT),
        "x=" + JWT.replace(".", "%252e"),
        "x=" + "".join(f"%25{ord(character):02x}" for character in JWT),
    ],
)
def test_an_encoded_jwt_is_redacted(text: str) -> None:
    for written in (REDACTION.query(text), REDACTION.path(text), REDACTION.field("x-any", text)):
        assert "[redacted]" in written
        assert not any(part in written for part in ("JhbGci", "%4a", "JzdWIi"))


@pytest.mark.parametrize(
    "json", ['{ "alg": "HS256" }', '{\n  "alg": "HS256"}', '{\r\n"alg": "HS256"}', '{\t"alg": "HS256"}']
)
def test_a_jwt_whose_json_has_white_space_is_redacted(json: str) -> None:
    token = f"{base64.urlsafe_b64encode(json.encode()).decode().rstrip('=')}.ewogICJzdWIiOiAiYSIKfQ.c2ln"
    for text in (token, f"a/{token}/b", f"x=1&v={token}"):
        assert token.split(".", maxsplit=1)[0] not in REDACTION.path(text)
        assert token.split(".")[1] not in REDACTION.query(text)


def test_a_path_with_harmless_escapes_stays() -> None:
    assert REDACTION.path("/a%20b/eyJ/ewo") == "/a%20b/eyJ/ewo"


@given(st.text(st.sampled_from("abzEY019eyJw.-_/=@%:;,~ \u00e4"), max_size=30))
@example("/" + "a" * 18)
@example("/" + "4" * 19)
@example("eyJ.eyJ.a")
@example("//u:p@h/")
@example("/a;token=x")
@example("%65yJ.eyJ.a")
def test_a_short_path_is_shown_as_a_long_one_would_be(text: str) -> None:
    assert REDACTION.path(text) == hide_in_path(text, mark)


def test_headers_are_named_without_regard_to_case() -> None:
    redaction = Redaction(Redact(headers=("X-Odd-Name",), query=()))
    assert redaction.is_secret_field("x-odd-NAME")
    assert all(map(redaction.is_secret_field, ("Authorization", "PROXY-AUTHORIZATION", "cookie", "Set-Cookie")))
    assert not redaction.is_secret_field("X-Odd")


def test_settings_show_no_secret() -> None:
    from mitmgate.audit.settings import ChainSettings, RedisStreamSink

    assert "hunter2" not in repr(RedisStreamSink("s", "redis://:hunter2@h"))
    assert "hunter2" not in repr(ChainSettings(b"hunter2"))
