"""A new request, as both protocols make it: it points nowhere until Enforcer has let it through."""

from mitmproxy.http import Headers, Request

from mitmgate.stages.enforcer import BLACK_HOLE
from mitmgate.stages.message import make_request


def new_request(
    method: bytes, path: bytes, version: bytes, headers: Headers, scheme: bytes, authority: bytes = b""
) -> Request:
    """Make mitmproxy's request out of parsed parts. authority: HTTP/2's `:authority`, empty on HTTP/1."""
    return make_request(BLACK_HOLE, method, path, version, headers, scheme, authority)
