"""What a refused request costs, whatever its head: no head within the bounds is to cost much more than others do."""

import json
import socket
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import policy
from bench.policy import Parts
from bench.processes import Process
from bench.rig import Rig
from bench.settings import Settings
from bench.subjects import Command, serve

TARGET = 8000
FIELD = 16_000
"""Octets that a shape fills of a target and of a field; two such fields are within every bound."""

COUNT = 200
FEW = 20
"""Requests of one shape in a round, and in a reduced one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of head. lines: fields beside Host."""

    name: str
    method: str = "GET"
    target: str = policy.PATH
    lines: tuple[str, ...] = ()
    host: str = "a"


def _part(object_: object) -> str:
    return urlsafe_b64encode(json.dumps(object_).encode()).rstrip(b"=").decode()


def _token(claims: object) -> str:
    return f"Authorization: Bearer {_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}.{'A' * 43}"


def _filled(piece: str, size: int) -> str:
    return piece * (size // len(piece))


def shapes() -> Iterator[Shape]:
    """Yield the heads: what parsers, decoders, comparers and redactors may find hard."""
    yield Shape("plain")
    paths = {
        "segments": "/a",
        "encoded letters": "/%41",
        "one encoded segment": "%41",
        "encoded slashes": "%2F",
        "encoded dots": "a%2E",
        "combining marks": "%CC%81",
        "full stops": "%EF%BC%8Ea",
        "parameters": ";a=b",
        "empty segments": "a//",
        "dots": "a./",
        "browsers' brackets": "[]|^",
    }
    for name, piece in paths.items():
        yield Shape(f"path: {name}", target="/a" + _filled(piece, TARGET))
    queries = {
        "members": "a=b&",
        "odd escapes": "%1&",
        "escaped": "%25",
        "doubly escaped": "%2525",
        "credentials": "token=a&",
        "escaped names": "%74oken=a&",
        "equals": "=",
        "tokens": "x=eyJhbGciOiJIUzI1NiJ9.e30.AAAA&",
        "long random": "q=Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZg&",
        "one word": "a",
        "dots": "a.b.",
        "base64": "QUJD",
    }
    for name, piece in queries.items():
        yield Shape(f"query: {name}", target=policy.PATH + "?" + _filled(piece, TARGET - 40))
    agents = {
        "escaped": "%25",
        "odd escapes": "%1&",
        "words": "ab ",
        "dots": "a.",
        "tokens": "eyJhbGciOiJIUzI1NiJ9.e30.AAAA ",
        "bearers": "Bearer a ",
        "half tokens": "eyJ",
        "equals": "token=a;",
        "colons": "a:b ",
        "base64": "QUJDZDEy",
        "one word": "a",
        "blanks": "\t ",
        "accents": "\xe9",
    }
    for name, piece in agents.items():
        yield Shape(f"user agent: {name}", lines=("User-Agent: " + _filled(piece, 2 * FIELD - 2000),))
    yield Shape("fields: a hundred", lines=tuple(f"X-Field-{n}: value" for n in range(97)))
    yield Shape("fields: a hundred of no dictionary", lines=tuple(f"X#-{n}: value" for n in range(97)))
    yield Shape("fields: one name", lines=("Accept: a",) * 97)
    yield Shape("fields: long names", lines=tuple(f"{n:03}{'x' * 300}: v" for n in range(90)))
    yield Shape("fields: that look like identity", lines=tuple(f"X_User_{n}-Id: v" for n in range(97)))
    lists = {
        "Connection": "a, ",
        "Cookie": "a=b; ",
        "Accept": "text/html;q=0.1, ",
        "Via": "1.1 a, ",
        "X-Forwarded-For": "192.0.2.1, ",
        "Forwarded": "for=192.0.2.1;host=a, ",
        "TE": "trailers, ",
        "Accept-Language": "de-DE, ",
        "traceparent": "00-",
        "X-Request-ID": "a",
        "Origin": "https://a.example",
        "Referer": "https://a.example/?token=",
        "Max-Forwards": "1",
    }
    for name, piece in lists.items():
        yield Shape(f"{name}: long", lines=(f"{name}: {_filled(piece, FIELD)}",))
    asked = ("Origin: https://app.example", "Access-Control-Request-Method: GET")
    yield Shape("preflight", "OPTIONS", lines=asked)
    yield Shape("preflight: long", "OPTIONS", lines=(*asked, f"Access-Control-Request-Headers: {_filled('a,', FIELD)}"))
    yield Shape("websocket", lines=("Upgrade: websocket, " * 400, f"Connection: {_filled('upgrade, ', 8000)}"))
    yield Shape(
        "token: forged", lines=(_token({"iss": policy.ISSUER, "aud": policy.AUDIENCE, "sub": "a", "exp": 9e9}),)
    )
    yield Shape("token: deep", lines=(f"Authorization: Bearer {_part({})}.{_deep()}.AAAA",))
    yield Shape("token: many members", lines=(_token({f"{n}": n for n in range(400)}),))
    yield Shape("token: a long number", lines=(f"Authorization: Bearer {_part({})}.{_number()}.AAAA",))
    yield Shape("token: dots", lines=("Authorization: Bearer " + "." * FIELD,))
    yield Shape("token: blanks", lines=("Authorization: Bearer" + " " * FIELD + "a",))
    yield Shape("basic", lines=(f"Authorization: Basic {_filled('YTpi', FIELD)}",))
    yield Shape("method: long", "X" * 8000)
    yield Shape("Host: accents", lines=(f"X-A: {_filled('a', FIELD)}",), host="\xe9" * FIELD)
    yield Shape("Host: labels", host="a." * 120 + "example")
    yield Shape("Host: long", host="a" * FIELD)


def _deep() -> str:
    return urlsafe_b64encode(b"[" * 2500 + b"]" * 2500).rstrip(b"=").decode()


def _number() -> str:
    return urlsafe_b64encode(b'{"exp":' + b"9" * 4000 + b"}").rstrip(b"=").decode()


def head_of(shape: Shape) -> bytes:
    """Write a head."""
    lines = (f"{shape.method} {shape.target} HTTP/1.1", f"Host: {shape.host}", *shape.lines)
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


@dataclass(slots=True)
class Denials:
    """CPU microseconds a request, one for each round, of each shape; and of a request that is admitted."""

    costs: dict[str, list[float]] = field(default_factory=dict)
    admitted: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """What the median head costs."""
        return median(median(costs) for costs in self.costs.values())

    def dearest(self) -> list[tuple[str, float]]:
        """Return the shapes and what they cost, the dearest first."""
        return sorted(((name, median(costs)) for name, costs in self.costs.items()), key=lambda one: -one[1])


def closed(upstream_port: int) -> Command:
    """Start a gateway whose client limit is used up by one request."""

    def command(directory: Path, port: int) -> list[str]:
        words = serve(upstream_port, Parts())(directory, port)
        path = directory / "policy.yaml"
        made = json.loads(path.read_text())
        made["rate_limits"]["client"] = {"limit": 1, "window": "1h", "key": "client_ip"}
        made["client_limits"] = ["client"]
        made["cors"] = {"web": {"origins": ["https://app.example"], "methods": ["GET"], "headers": ["X-A"]}}
        path.write_text(json.dumps(made))
        return words

    return command


def denials(rig: Rig, settings: Settings) -> Denials:
    """Measure each shape in turns, one connection and one request at a time; all but the first are refused."""
    found, count = Denials(), FEW if settings.reduced else COUNT
    heads = {shape.name: head_of(shape) for shape in shapes()}
    admitted = head_of(Shape("admitted", lines=(f"Authorization: {policy.bearer()}",)))
    up = rig.upstream.port
    with rig.running(closed(up)) as gateway, rig.running(serve(up)) as opened:
        cost(gateway, heads["plain"], count)
        cost(opened, admitted, count, 200)
        for _ in range(settings.rounds):
            found.admitted.append(cost(opened, admitted, count, 200))
            for name, head in heads.items():
                found.costs.setdefault(name, []).append(cost(gateway, head, count))
    return found


def cost(process: Process, head: bytes, count: int, wanted: int | None = None) -> float:
    """Send a head again and again, and return CPU microseconds a request; wanted None: each has to be refused."""
    done, began = 0, process.cpu_seconds()
    while done < count:
        with socket.create_connection(("127.0.0.1", process.port), timeout=30) as link:
            closed_now = False
            while done < count and not closed_now:
                link.sendall(head)
                answer = _answer(link)
                status = int(answer.split(b" ", 2)[1])
                if (status != wanted) if wanted else (status < 400) and done:
                    raise ValueError(f"{head[:80]!r} was answered with {status}")
                done += 1
                closed_now = b"\r\nconnection: close\r\n" in answer.lower()
    return (process.cpu_seconds() - began) / count * 1e6


def _answer(link: socket.socket) -> bytes:
    got = b""
    while True:
        head, end, body = got.partition(b"\r\n\r\n")
        if end:
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if len(body) >= (int(lengths[0].split(b":")[1]) if lengths else 0):
                return got
        part = link.recv(65536)
        if not part:
            raise ConnectionError(f"no answer; so far {got[:200]!r}")
        got += part
