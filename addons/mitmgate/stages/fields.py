"""mitmproxy's Headers made of pairs of bytes that are known to be such."""

from mitmproxy.http import Headers

from mitmgate.core.headers import Fields


def headers_of(fields: Fields) -> Headers:
    """Make Headers without the constructor, which looks at every pair and takes keyword arguments: 2 µs a time."""
    made = Headers.__new__(Headers)
    made.fields = fields
    return made
