"""A new request, as both protocols make it: it points nowhere until Enforcer has let it through."""

import time

from mitmproxy.http import Headers, Request

from mitmgate.stages.enforcer import BLACK_HOLE


def new_request(
    method: bytes, path: bytes, version: bytes, headers: Headers, scheme: bytes, authority: bytes = b""
) -> Request:
    """Make mitmproxy's request out of parsed parts. authority: HTTP/2's `:authority`, empty on HTTP/1."""
    return Request(
        host=BLACK_HOLE,
        port=80,
        method=method,
        scheme=scheme,
        authority=authority,
        path=path,
        http_version=version,
        headers=headers,
        content=None,
        trailers=None,
        timestamp_start=time.time(),
        timestamp_end=None,
    )
