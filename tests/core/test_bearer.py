"""A second token, in the query: found however it is encoded, and nothing else is taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.bearer import holds_token


@pytest.mark.parametrize(
    "query",
    [
        *(
            "access_token=x",
            "access_token=",
            "access_token",
            "a=b&access_token=x",
            "a;access_token=x",
            "access_token&b",
        ),
        *("Access_Token=x", "ACCESS_TOKEN=x", "access.token=x", "access+token=x", "access%20token=x", "access[token=x"),
        *("a=b&+access_token=x", "%20access_token=x", "access_token[]=x", "access_token%5B%5d=x", "access_token%00y=x"),
        *("%61ccess_token=x", "access%5ftoken=x", "access%5Ftoken=x", "a=b&%61%63%63%65%73%73%5f%74%6F%6b%65%6E=x"),
    ],
)
def test_a_token_in_a_query(query: str) -> None:
    assert holds_token(query)


@pytest.mark.parametrize(
    "query",
    ["", "a=access_token", "access_tokens=x", "xaccess_token=x", "access_token.x=y", "token=x", "access_toke%=x"],
)
def test_what_is_none(query: str) -> None:
    assert not holds_token(query)


@given(st.data())
def test_any_encoding_of_the_name(data: st.DataObject) -> None:
    written = "".join(
        data.draw(st.sampled_from([c, c.upper(), f"%{ord(c):02x}", f"%{ord(c.upper()):02X}"])) for c in "access_token"
    )
    assert holds_token(f"q=1&{written}=x")
