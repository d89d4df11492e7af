"""What an unauthenticated request passes takes a time that grows with its length, and with nothing else."""

import timeit
from collections.abc import Callable

import pytest

from mitmgate.audit.record import render
from mitmgate.audit.redact import Redaction
from mitmgate.audit.settings import Redact
from mitmgate.core.address import CidrSet
from mitmgate.core.bearer import holds_token
from mitmgate.core.client_fields import ClientFields
from mitmgate.core.cors import preflight
from mitmgate.core.forwarding import walk
from mitmgate.core.headers import Headers, listed
from mitmgate.core.http1 import Bounds, RequestReader
from mitmgate.core.hygiene import screen
from mitmgate.core.path import canonical_path
from mitmgate.core.routing import RouteTable
from mitmgate.core.rules import Cors
from mitmgate.core.token import read_token
from mitmgate.core.via import Via
from tests.core.test_routing import route

PIECES = [
    *("a", "/", "/a", ".", "/.", "a.", "%41", "/%41", "%2F", "%2e", "a%2E", "%CC%81", "%EF%BC%8Ea", ";", ";a=b", "//"),
    *(
        "[]|^",
        "%1&",
        "%25",
        "%2525",
        "token=a&",
        "%74oken=a&",
        "=",
        "&",
        "eyJ",
        "eyJhbGciOiJIUzI1NiJ9.e30.AAAA ",
        "\xe9",
    ),
    *(
        "Bearer ",
        "Basic YTpi ",
        "a, ",
        ", ",
        ",",
        " ",
        "\t",
        "1.1 a, ",
        "mitmgate, ",
        "192.0.2.1, ",
        "QUJDZDEy",
        "a:b@",
        "-",
    ),
    *("close,", "closeclose", "upgrade", "websocket ", "_", "x-user-", "session=a; ", "https://a:b@c/", "?", "\\u00e9"),
]
SHORT, LONG = 1000, 16_000
WIDE = Bounds(head=1 << 20, target=1 << 20, fields=1 << 14)
RULES = ClientFields([b"x-user-id"])
REDACTION = Redaction(Redact((), ()))
TABLE = RouteTable([route("a", "/" + "a/" * 200), route("b", "/b", hosts=("*.example",)), route("c", "/")])
VIA = Via(b"mitmgate")
RULE = Cors(("*",), ("GET",), ("X-A",), False, (), None)


def many_fields(text: str) -> Headers:
    """Make many fields of a text's parts."""
    parts = [text[at : at + 20].encode("latin-1") for at in range(0, len(text), 20)]
    return Headers([(b"Host", b"a"), *((b"X-%d" % at, part) for at, part in enumerate(parts))])


def head(headers: Headers) -> bytes:
    """Write a head."""
    return b"GET / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % field for field in headers.fields) + b"\r\n"


def one_field(name: bytes, text: str) -> Headers:
    return Headers([(b"Host", b"a"), (name, text.encode("latin-1"))])


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "a path is folded": lambda text: canonical_path("/" + text),
    "a route is matched": lambda text: TABLE.match("GET", "a.b.example", "/" + text),
    "a host is matched": lambda text: TABLE.match("GET", text[:253], "/b"),  # what is longer is none
    "a request line is parsed": lambda text: RequestReader(WIDE).feed(
        b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % text.encode("latin-1")
    ),
    "a field is parsed": lambda text: RequestReader(WIDE).feed(
        b"GET / HTTP/1.1\r\nConnection: %b\r\n\r\n" % text.encode("latin-1")
    ),
    "fields are parsed": lambda text: RequestReader(WIDE).feed(head(many_fields(text))),
    "fields are screened": lambda text: screen(many_fields(text), RULES),
    "a field's name is screened": lambda text: screen(one_field(text.encode("latin-1"), "a"), RULES),
    "Host is screened": lambda text: screen(Headers([(b"Host", text.encode("latin-1"))]), RULES),
    "Connection is screened": lambda text: screen(one_field(b"Connection", text), RULES),
    "a list is looked through": lambda text: listed([text.encode("latin-1")], b"upgrade"),
    "Via is looked through": lambda text: VIA.circles(one_field(b"Via", text)),
    "X-Forwarded-For is walked": lambda text: walk(text.split(","), CidrSet(["192.0.2.0/24"])),
    "a preflight is answered": lambda text: preflight(RULE, one_field(b"Access-Control-Request-Headers", text)),
    "a token is read": lambda text: read_token(text.encode("latin-1")),
    "a second token is looked for": holds_token,
    "a path is redacted": REDACTION.path,
    "a query is redacted": REDACTION.query,
    "a field is redacted": lambda text: REDACTION.field("user-agent", text),
    "an event is written": lambda text: render({"path": text}),
}


def seconds(function: Callable[[str], object], text: str) -> float:
    return min(timeit.repeat(lambda: function(text), number=1, repeat=5))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sixteen_times_the_length_takes_no_more_than_so_many_times(name: str) -> None:
    """A square would take 256 times as long; the room is for a busy machine. What is short costs a call alone."""
    function = FUNCTIONS[name]
    for piece in PIECES:
        short, long = (piece * (size // len(piece)) for size in (SHORT, LONG))
        for suffix in ("", "!", "/..", "a"):
            once = max(seconds(function, short + suffix), 20e-6)
            for _ in range(3):
                ratio = seconds(function, long + suffix) / once
                if ratio < 90:
                    break
            assert ratio < 90, (piece, suffix, ratio)
