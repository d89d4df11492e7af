"""The opening handshake of a WebSocket: what asks for one, and what is one."""

import pytest

from mitmgate.core.headers import Headers, listed
from mitmgate.core.websocket import asks, is_handshake

HANDSHAKE = {
    b"upgrade": b"websocket",
    b"connection": b"keep-alive, Upgrade",
    b"sec-websocket-version": b"13",
    b"sec-websocket-key": b"AAAAAAAAAAAAAAAAAAAAAA==",
}


def headers(**changes: bytes | None) -> Headers:
    fields = HANDSHAKE | {name.replace("_", "-").encode(): value for name, value in changes.items()}
    return Headers([(name, value) for name, value in fields.items() if value is not None])


@pytest.mark.parametrize(
    ("offer", "version", "asked"),
    [
        (b"websocket", "HTTP/1.1", True),
        (b"WebSocket", "HTTP/1.1", True),
        (b"h2c, websocket", "HTTP/1.1", True),
        (b"h2c", "HTTP/1.1", False),
        (b"websockets", "HTTP/1.1", False),
        (b"websocket/13", "HTTP/1.1", False),
        (b"websocket", "HTTP/1.0", False),
        (b"websocket", "HTTP/2.0", False),
        (None, "HTTP/1.1", False),
    ],
)
def test_what_asks_for_one(offer: bytes | None, version: str, asked: bool) -> None:
    assert asks(version, headers(upgrade=offer)) is asked


@pytest.mark.parametrize(
    ("method", "changes", "body", "valid"),
    [
        ("GET", {}, 0, True),
        ("GET", {"connection": b"upgrade"}, 0, True),
        ("POST", {}, 0, False),
        ("HEAD", {}, 0, False),
        ("GET", {"connection": b"keep-alive"}, 0, False),
        ("GET", {"connection": b"x-upgrade, upgrades"}, 0, False),
        ("GET", {"connection": None}, 0, False),
        ("GET", {"sec_websocket_version": b"8"}, 0, False),
        ("GET", {"sec_websocket_version": None}, 0, False),
        ("GET", {"sec_websocket_key": b"AAAA"}, 0, False),
        ("GET", {"sec_websocket_key": b"AAAAAAAAAAAAAAAAAAAAAAA="}, 0, False),
        ("GET", {"sec_websocket_key": b"?AAAAAAAAAAAAAAAAAAAAA=="}, 0, False),
        ("GET", {"sec_websocket_key": b"no base64"}, 0, False),
        ("GET", {"sec_websocket_key": None}, 0, False),
        ("GET", {}, 1, False),
        ("GET", {}, None, False),
    ],
)
def test_what_is_one(method: str, changes: dict[str, bytes | None], body: int | None, valid: bool) -> None:
    assert is_handshake(method, headers(**changes), body) is valid


def test_a_word_of_a_list_is_a_whole_one() -> None:
    for values, found in (
        ([b"close"], True),
        ([b"a", b"b , CLOSE"], True),
        ([b"closed"], False),
        ([b"not close"], False),
        ([b"a,b"], False),
        ([], False),
    ):
        assert listed(values, b"close") is found
