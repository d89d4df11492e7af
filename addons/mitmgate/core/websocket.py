"""The one upgrade that there is, to WebSocket (RFC 6455, section 4.2.1); other offers are ignored (RFC 9110, 7.8)."""

import base64
import binascii
from typing import Final

from mitmgate.core.headers import Headers, listed

VERSION: Final = b"13"
_KEY: Final = 16  # bytes


def asks(version: str, headers: Headers) -> bool:
    """Tell whether a request asks for a WebSocket, in good form or not.

    An offer of anything else, such as the `h2c` that Java's client and `curl --http2` make with each request, is none;
    nor is that of an HTTP/1.0 client, which a server must ignore.
    """
    return b"upgrade" in headers and version == "HTTP/1.1" and listed(headers.all(b"upgrade"), b"websocket")


def is_handshake(method: str, headers: Headers, body: int | None) -> bool:
    """Check the opening handshake of a request that asks for a WebSocket. body: octets that are declared of it."""
    try:
        key = len(base64.b64decode(headers.one(b"sec-websocket-key") or b"", validate=True))
    except binascii.Error:
        return False
    return (
        method == "GET"
        and listed(headers.all(b"connection"), b"upgrade")
        and headers.one(b"sec-websocket-version") == VERSION
        and key == _KEY
        and body == 0
    )
