"""Templates: what parses, what is refused, what is rendered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.template import parse, placeholders

VALUES = {"subject": "alice", "claim:tenant": "acme", "header:x-a": "b", "claim:https://ns/t": "ns"}


@pytest.mark.parametrize(
    ("text", "names", "rendered"),
    [
        ("", (), ""),
        ("plain", (), "plain"),
        ("{subject}", ("subject",), "alice"),
        ("t-{claim:tenant}/{subject}.", ("claim:tenant", "subject"), "t-acme/alice."),
        ("{header:X-A}", ("header:x-a",), "b"),
        ("{claim:https://ns/t}", ("claim:https://ns/t",), "ns"),
        ("{{{subject}}}", ("subject",), "{alice}"),
        ("{{subject}}", (), "{subject}"),
        ("{subject}{issuer}", ("subject", "issuer"), None),  # half a value is no value
    ],
)
def test_renders(text: str, names: tuple[str, ...], rendered: str | None) -> None:
    assert placeholders(text) == names
    assert parse(text).render(VALUES.get) == rendered


@pytest.mark.parametrize(
    "text", ["{", "}", "a{b", "{}", "{claim}", "{claim:}", "{header:}", "{header:a b}", "{subject:x}", "{nope}", "{{}"]
)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"brace|placeholder"):
        parse(text)


@given(st.text())
def test_escaped_text_is_itself(text: str) -> None:
    assert parse(text.replace("{", "{{").replace("}", "}}")).render(lambda _: None) == text


def test_a_value_is_not_parsed_again() -> None:
    assert parse("{subject}").render(lambda _: "{claim:tenant}") == "{claim:tenant}"
