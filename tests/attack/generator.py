"""Conversations: what clients write to one gateway, piece by piece, made from a seed.

A conversation has several connections whose writes are interleaved. Each connection belongs to one user, and every
path it asks for names that user. What it writes is valid HTTP, or was valid before it was mutated. Pieces stand for
themselves (HTTP/2's field sections need none before them), so that any of them can be left out.
"""

import hashlib
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tests.attack.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITISED,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Field,
    block,
    frame,
)

SPOOFS: tuple[Field, ...] = (
    (b"X-User-ID", b"mallory"),
    (b"x-user-role", b"admin"),
    (b"X_User_ID", b"mallory"),
    (b"X-Forwarded-For", b"10.0.0.1"),
    (b"X-Request-ID", b"forged"),
    (b"X-HTTP-Method-Override", b"DELETE"),
    (b"X-Original-URL", b"/admin"),
    (b"Connection", b"X-Request-ID, X-User-ID"),
    (b"X-Long", b"x" * 3000),
)
SMUGGLED = (
    b"GET /node/auto/mallory/smuggled HTTP/1.1\r\nHost: gateway.test\r\n"
    b"X-User-ID: mallory\r\nX-Request-ID: smuggled\r\n\r\n"
)
ENCODINGS = (
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\tchunked",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding\r\n : chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer_Encoding: chunked",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding: chunked;q=1",
)
SIZES = (
    b"%x",
    b"0%x",
    b"0x%x",
    b"+%x",
    b"%x ",
    b" %x",
    b"%x;a=b",
    b'%x;a="\r\n"',
    b"-%x",
    b"%x\n",
    b"00000000000000000%x",
)
QUERIES = (
    *("chunked", "size=70000", "size=300000&chunked", "status=204", "status=500", "status=304", "close", "slow"),
    *("hints", "trailer", "cut", "cut&size=100000", "early", "early&close", "early&slow"),
)


@dataclass(frozen=True)
class Piece:
    """Bytes, written together with the next ones unless `flush`; answers: how many are waited for behind them."""

    data: bytes
    flush: bool = False
    answers: int = 0

    @property
    def writes(self) -> bool:
        """Whether what was gathered so far goes out with it."""
        return self.flush or self.answers > 0


@dataclass(frozen=True)
class Expected:
    """A request as it was before any mutation.

    sha256: of its body. status: of its answer; 0: any, since it may be answered before its body was read, or be cut, so
    that an HTTP/1.1 connection may end with it.
    """

    method: str
    target: str
    sha256: str
    status: int = 200


@dataclass
class Plan:
    """What one client writes.

    ending: `read` (all answers, then it closes), `half` (it closes its side, then reads), `close` or `reset` at once.
    valid: nothing in it was mutated, so that each of `expected` must be answered.
    """

    user: str
    http2: bool
    pieces: list[Piece] = field(default_factory=list)
    ending: str = "read"
    valid: bool = True
    expected: list[Expected] = field(default_factory=list)


@dataclass
class Conversation:
    """The connections, and the order in which they write: places in `plans`, each for one write."""

    seed: str
    plans: list[Plan]
    order: list[int]


def generate(seed: str, tls: bool, tokens: Mapping[str, str]) -> Conversation:
    """Make the conversation of a seed. tokens: of alice and bob."""
    rng = random.Random(seed)
    plans = []
    for number in range(rng.randint(1, 4)):
        user = rng.choice(("alice", "bob"))
        http2 = tls and rng.random() < 0.7
        made = _Maker(rng, f"{seed.replace(':', '-')}-{number}", user, tokens[user].encode())
        plans.append(made.http2() if http2 else made.http1())
    order = [place for place, plan in enumerate(plans) for piece in plan.pieces if piece.writes]
    order += range(len(plans))
    rng.shuffle(order)
    return Conversation(seed, plans, order)


class _Maker:
    """Makes one connection."""

    def __init__(self, rng: random.Random, tag: str, user: str, token: bytes) -> None:
        self.rng = rng
        self.tag = tag
        self.user = user
        self.token = token
        self.count = 0
        self.origin = self._origin() if rng.random() < 0.6 else None  # so that requests share upstream connections
        self.stream = self._stream() if rng.random() < 0.6 else None

    # What both protocols have.

    def _often(self, probability: float) -> bool:
        return self.rng.random() < probability

    def _origin(self) -> str:
        return self.rng.choice(("node", "node", "nginx"))

    def _stream(self) -> str:
        return self.rng.choice(("auto", "always", "always", "never"))

    def _target(self) -> tuple[str, int]:
        self.count += 1
        origin, stream = self.origin or self._origin(), self.stream or self._stream()
        if origin == "nginx" and self._often(0.3):
            return f"/nginx/always/early/{self.user}/{self.tag}.{self.count}", 0
        target = f"/{origin}/{stream}/{self.user}/{self.tag}.{self.count}"
        if origin == "nginx" or self._often(0.65):
            return target, 200
        query = self.rng.choice(QUERIES)
        status = int(query[7:]) if query.startswith("status=") else 0 if "cut" in query or "early" in query else 200
        return f"{target}?{query}", status

    def _body(self) -> bytes:
        size = self.rng.choice((1, 5, 30, 200, 200, 5000, 70000))
        content = self.rng.choice((SMUGGLED, b"0\r\n\r\n" + SMUGGLED, b"x" * 30, self.tag.encode(), b"\r\n" + SMUGGLED))
        return (content * (size // len(content) + 1))[: max(size, self.rng.choice((0, len(content))))]

    def _fields(self) -> list[Field]:
        fields: list[Field] = [(b"Authorization", b"Bearer " + self.token)]
        if self._often(0.05):
            fields = [] if self._often(0.5) else [(b"Authorization", b"Bearer " + self.token[:-3] + b"AAA")]
        fields += self.rng.sample(SPOOFS, self.rng.choice((0, 0, 0, 1, 2)))
        if self._often(0.1):
            fields.append((b"Cookie", b"a=1"))
        return fields

    def _expected(self, fields: list[Field], method: str, target: str, status: int, body: bytes) -> Expected:
        authorized = (b"Authorization", b"Bearer " + self.token) in fields
        if body and method in {"GET", "HEAD", "DELETE", "OPTIONS"}:
            status = 0  # origins answer it before they have read the body
        return Expected(method, target, hashlib.sha256(body).hexdigest(), status if authorized else 401)

    # HTTP/1.1.

    def http1(self) -> Plan:
        rng = self.rng
        made = Plan(self.user, http2=False)
        mutated = self._often(0.55)
        total = rng.randint(1, 5)
        for number in range(total):
            made.pieces += self._request1(made, last=number == total - 1, mutate=mutated and self._often(0.5))
        if mutated and self._often(0.3):
            made.pieces = _mutate_bytes(rng, made.pieces)
            made.valid = False
        made.ending = (
            rng.choice(("read", "read", "read", "close", "reset"))
            if made.valid
            else rng.choice(("half", "half", "half", "close", "reset"))
        )
        made.pieces = _fragmented(rng, made.pieces)
        return made

    def _request1(self, made: Plan, *, last: bool, mutate: bool) -> list[Piece]:
        rng = self.rng
        method = rng.choice(("GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS"))
        target, status = self._target()
        fields = self._fields()
        framing = (
            rng.choice(("none", "length", "length", "chunked", "chunked"))
            if method not in {"GET", "HEAD"}
            else (rng.choice(("none", "none", "none", "length", "chunked")))
        )
        body = b"" if framing == "none" else self._body()
        if last and self._often(0.4):
            fields.append((b"Connection", b"close"))
        if framing == "length":
            fields.append((b"Content-Length", b"%d" % len(body)))
        elif framing == "chunked":
            fields.append((b"Transfer-Encoding", b"chunked"))
        if framing != "none" and self._often(0.1):
            fields.append((b"Expect", b"100-continue"))
        rng.shuffle(fields)
        lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: gateway.test", *[b": ".join(one) for one in fields]]
        parts = self._chunks(body) if framing == "chunked" else [body] if body else []
        made.expected.append(self._expected(fields, method, target, status, body))
        if mutate:
            made.valid = False
            rng.choice(MUTATIONS1)(rng, lines, parts)
        head = Piece(b"\r\n".join(lines) + b"\r\n\r\n", flush=self._often(0.5))
        return [head, *map(Piece, parts), Piece(b"", answers=len(made.expected) if self._often(0.3) else 0)]

    def _chunks(self, body: bytes) -> list[bytes]:
        parts, at = [], 0
        while at < len(body):
            size = self.rng.choice((1, 7, 100, len(body)))
            piece = body[at : at + size]
            parts.append(
                b"%x\r\n%s\r\n" % (len(piece), piece) if self._often(0.9) else b"%x;e=1\r\n%s\r\n" % (len(piece), piece)
            )
            at += size
            if len(parts) > 20:
                parts.append(b"%x\r\n%s\r\n" % (len(body) - at, body[at:]) if at < len(body) else b"")
                break
        return [*parts, b"0\r\nX-Trailer: 1\r\n\r\n" if self._often(0.15) else b"0\r\n\r\n"]

    # HTTP/2.

    def http2(self) -> Plan:
        rng = self.rng
        made = Plan(self.user, http2=True)
        mutated = self._often(0.55)
        streams = []
        for number in range(rng.randint(1, 6)):
            streams.append(self._request2(made, 2 * number + 1, mutate=mutated and self._often(0.5)))
        # Heads come in the order of their streams; what follows them is interleaved.
        pieces, rest = [], []
        for frames in streams:
            heads, others = frames
            pieces += heads
            rest.append(others)
            while self._often(0.5) and any(rest):
                pieces.append(rng.choice([one for one in rest if one]).pop(0))
            if self._often(0.15):
                pieces.append(Piece(self._control()))
            if self._often(0.4):
                while any(rest):
                    pieces.append(rng.choice([one for one in rest if one]).pop(0))
                pieces.append(Piece(b"", answers=len(rest)))
        while any(rest):
            pieces.append(rng.choice([one for one in rest if one]).pop(0))
        if mutated and self._often(0.3):
            pieces = _mutate_frames(rng, pieces)
            made.valid = False
        made.ending = rng.choice(("read", "read", "read", "close", "reset"))
        made.pieces = [replace(one, flush=self._often(0.2)) for one in pieces]
        return made

    def _control(self) -> bytes:
        return self.rng.choice(
            (
                frame(PING, 0, 0, b"12345678"),
                frame(SETTINGS, 0, 0),
                frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1000)),
                frame(PRIORITY, 0, 1, struct.pack(">IB", 0, 1)),
                frame(0xF0, 0, 0, b"unknown"),
            )
        )

    def _request2(self, made: Plan, stream: int, *, mutate: bool) -> tuple[list[Piece], list[Piece]]:
        rng = self.rng
        method = rng.choice(("GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE"))
        target, status = self._target()
        fields = [(name.lower(), value) for name, value in self._fields() if name != b"Connection"]
        has_body = self._often(0.15 if method in {"GET", "HEAD"} else 0.8)
        body = self._body() if has_body else b""
        if self._often(0.5):
            fields.append((b"content-length", b"%d" % len(body)))
        head = [
            (b":method", method.encode()),
            (b":scheme", b"https"),
            (b":authority", b"gateway.test"),
            (b":path", target.encode()),
        ]
        data = []
        at = 0
        while at < len(body):
            size = min(rng.choice((1, 100, 16384, 16384)), len(body) - at)
            data.append(body[at : at + size])
            at += size
            if len(data) > 10:
                data += [body[n : n + 16384] for n in range(at, len(body), 16384)]
                break
        trailers = self._often(0.15) and has_body
        made.expected.append(self._expected([(n.title(), v) for n, v in fields], method, target, status, body))
        frames = _frames(rng, stream, head + fields, data, trailers=trailers)
        if mutate:
            made.valid = False
            frames = rng.choice(MUTATIONS2)(rng, stream, head, fields, data)
        if self._often(0.1):
            made.valid = False
            frames.insert(rng.randint(1, len(frames)), frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
        heads = 1
        while heads < len(frames) and frames[heads][3:4] == bytes([CONTINUATION]):
            heads += 1
        pieces = [Piece(one) for one in frames]
        return [Piece(b"".join(frames[:heads]))], pieces[heads:]


def _frames(
    rng: random.Random, stream: int, fields: list[Field], data: list[bytes], *, trailers: bool = False, end: bool = True
) -> list[bytes]:
    """Write a request. end: whether its last frame says that it is."""
    section = block(fields)
    ends = END_STREAM if end and not data and not trailers else 0
    if rng.random() < 0.2:
        cut = rng.randint(0, len(section))
        frames = [frame(HEADERS, ends, stream, section[:cut]), frame(CONTINUATION, END_HEADERS, stream, section[cut:])]
    elif rng.random() < 0.2:
        section = b"\x03" + section + b"\0\0\0"
        frames = [frame(HEADERS, ends | END_HEADERS | PADDED, stream, section)]
    elif rng.random() < 0.2:
        frames = [frame(HEADERS, ends | END_HEADERS | PRIORITISED, stream, struct.pack(">IB", 0, 10) + section)]
    else:
        frames = [frame(HEADERS, ends | END_HEADERS, stream, section)]
    for number, part in enumerate(data):
        ends = END_STREAM if end and not trailers and number == len(data) - 1 else 0
        if rng.random() < 0.1:
            frames.append(frame(DATA, ends | PADDED, stream, b"\x02" + part[:16381] + b"\0\0"))
            if len(part) > 16381:
                frames[-1] = frame(DATA, ends, stream, part)
        else:
            frames.append(frame(DATA, ends, stream, part))
    if trailers:
        frames.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, block([(b"x-trailer", b"1")])))
    return frames


# Mutations of a request in HTTP/1.1: `lines` of its head, `parts` of its body, both changed in place.

Mutation1 = Callable[[random.Random, list[bytes], list[bytes]], None]


def _two_framings(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    size = rng.choice((0, 5, len(b"".join(parts)), 10**6))
    lines += rng.sample([b"Content-Length: %d" % size, rng.choice(ENCODINGS)], 2)
    if not parts:
        parts.append(b"0\r\n\r\n" + SMUGGLED)


def _other_length(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    lines[:] = [line for line in lines if not line.lower().startswith(b"content-length")]
    size = len(b"".join(parts))
    values = (
        b"%d",
        b"+%d",
        b"0x%x",
        b"%d ",
        b"%d, %d",
        b" %d",
        b"-%d",
        b"%d.0",
        b"0%d",
        b"%d\r\nContent-Length: %d",
        b"%d\t",
    )
    value = rng.choice(values)
    size = max(0, size + rng.choice((0, 0, -1, 1, 10, -len(SMUGGLED))))
    lines.append(b"Content-Length: " + (value % ((size,) * value.count(b"%d") or (size,))))
    if not parts:
        parts.append(SMUGGLED)


def _other_encoding(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    lines[:] = [line for line in lines if not line.lower().startswith((b"content-length", b"transfer-encoding"))]
    lines.insert(rng.randint(1, len(lines)), rng.choice(ENCODINGS))
    if not parts or not parts[-1].endswith(b"0\r\n\r\n"):
        parts[:] = [b"5\r\nhello\r\n", b"0\r\n\r\n"]


def _other_chunk(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    lines[:] = [line for line in lines if not line.lower().startswith((b"content-length", b"transfer-encoding"))]
    lines.append(b"Transfer-Encoding: chunked")
    size = rng.choice(SIZES) % rng.choice((5, 4, 6, 2**31, 2**64 + 5))
    end = rng.choice((b"\r\n", b"\r\n", b"\n", b"\r", b""))
    parts[:] = [size + end + b"hello" + rng.choice((b"\r\n", b"\n", b"", b"xx")), b"0\r\n\r\n"]
    if rng.random() < 0.3:
        parts[-1] = rng.choice(
            (b"0\r\nHost: evil\r\nX-User-ID: mallory\r\n\r\n", b"0\r\n\r", b"0\n\n", b"0\r\nbad trailer\r\n\r\n")
        )


def _lines(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    at = rng.randrange(len(lines))
    kind = rng.choice(("drop", "twice", "fold", "bare-cr", "bare-lf", "nul", "space", "swap", "empty", "tab"))
    line = lines[at]
    cut = rng.randint(0, len(line))
    if kind == "drop":
        del lines[at]
    elif kind == "twice":
        lines.insert(at, line)
    elif kind == "swap":
        rng.shuffle(lines)
    elif kind == "empty":
        lines.insert(at, b"")
    else:
        put = {"fold": b"\r\n ", "bare-cr": b"\r", "bare-lf": b"\n", "nul": b"\0", "space": b" ", "tab": b"\t"}[kind]
        lines[at] = line[:cut] + put + line[cut:]


def _first_line(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    method, target, _ = lines[0].split(b" ", 2)
    lines[0] = rng.choice(
        (
            b"%s http://gateway.test%s HTTP/1.1" % (method, target),
            b"%s http://evil.example%s HTTP/1.1" % (method, target),
            b"%s https://gateway.test%s HTTP/1.1" % (method, target),
            b"%s %s HTTP/1.0" % (method, target),
            b"%s %s HTTP/1.2" % (method, target),
            b"%s %s HTTP/2.0" % (method, target),
            b"%s %s" % (method, target),
            b"%s  %s HTTP/1.1" % (method, target),
            b"%s %s HTTP/1.1 " % (method, target),
            b"%s %s HTTP/1.1 HTTP/1.1" % (method.lower(), target),
            b"CONNECT gateway.test:443 HTTP/1.1",
            b"OPTIONS * HTTP/1.1",
            b"%s %s#x HTTP/1.1" % (method, target),
            b"%s /x/..%s HTTP/1.1" % (method, target),
            b"%s %s/%%2e%%2e/x HTTP/1.1" % (method, target),
            b"PRI * HTTP/2.0",
        )
    )


def _more_fields(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    lines.insert(
        rng.randint(1, len(lines)),
        rng.choice(
            (
                b"Host: evil.example",
                b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
                b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
                + b"A" * 22
                + b"==",
                b"Connection: close",
                b"Connection: content-length",
                b"Connection: transfer-encoding",
                b"Connection: host",
                b"Expect: 100-continue",
                b"Expect: 200-ok",
                b"TE: trailers",
                b"Trailer: Host",
                b"Keep-Alive: timeout=0",
                b"Proxy-Connection: close",
                b"Content-Length: 0",
                b"Authorization: Basic YTpi",
                b"X" * 40000 + b": y",
            )
        ),
    )


def _cut(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    if parts:
        parts[-1] = parts[-1][: rng.randint(0, len(parts[-1]) - 1)]
        if rng.random() < 0.5:
            parts.append(SMUGGLED)
    else:
        lines[-1] = lines[-1][: rng.randint(0, len(lines[-1]))]


def _behind(rng: random.Random, lines: list[bytes], parts: list[bytes]) -> None:
    parts.append(rng.choice((SMUGGLED, b"\r\n", b"\r\n\r\n" + SMUGGLED, b"0\r\n\r\n", b"\0", b"X: y\r\n\r\n")))


MUTATIONS1: tuple[Mutation1, ...] = (
    _two_framings,
    _two_framings,
    _other_length,
    _other_length,
    _other_encoding,
    _other_chunk,
    _lines,
    _first_line,
    _more_fields,
    _cut,
    _behind,
)


def _mutate_bytes(rng: random.Random, pieces: list[Piece]) -> list[Piece]:
    """Change some bytes, wherever they are."""
    made = list(pieces)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(made))
        data = bytearray(made[at].data)
        spot = rng.randint(0, len(data))
        kind = rng.choice(("insert", "delete", "change", "repeat"))
        if kind == "insert":
            data[spot:spot] = rng.choice(
                (b"\r\n", b"\n", b"\r", b" ", b"\0", b":", b"0", b"\r\n\r\n", bytes([rng.randrange(256)]))
            )
        elif kind == "delete":
            del data[spot : spot + rng.choice((1, 2, 10))]
        elif kind == "change" and spot < len(data):
            data[spot] = rng.randrange(256)
        else:
            data[spot:spot] = data[spot : spot + 40]
        made[at] = replace(made[at], data=bytes(data))
    return made


def _fragmented(rng: random.Random, pieces: list[Piece]) -> list[Piece]:
    """Cut some pieces into writes of their own."""
    made = []
    for piece in pieces:
        if len(piece.data) > 1 and rng.random() < 0.2:
            cut = rng.randrange(1, len(piece.data))
            made += [Piece(piece.data[:cut], flush=True), replace(piece, data=piece.data[cut:])]
        else:
            made.append(piece)
    return made


# Mutations of a request in HTTP/2: they return its frames.

Mutation2 = Callable[[random.Random, int, list[Field], list[Field], list[bytes]], list[bytes]]


def _length2(rng: random.Random, stream: int, head: list[Field], fields: list[Field], data: list[bytes]) -> list[bytes]:
    data = data if rng.random() < 0.5 else []
    size = len(b"".join(data))
    fields = [one for one in fields if one[0] != b"content-length"]
    wrong = rng.choice((size + 1, max(0, size - 1), size + len(SMUGGLED), 0, 10**6, 2**64))
    value = rng.choice((b"%d", b"%d", b"%d", b"+%d", b"%d, %d", b"0%d", b" %d"))
    fields.append((b"content-length", value % ((wrong,) * value.count(b"%d"))))
    if rng.random() < 0.2:
        fields.append((b"content-length", b"%d" % size))
    return _frames(rng, stream, head + fields, data, trailers=rng.random() < 0.4)


def _fields2(rng: random.Random, stream: int, head: list[Field], fields: list[Field], data: list[bytes]) -> list[bytes]:
    fields.insert(
        rng.randint(0, len(fields)),
        rng.choice(
            (
                (b"transfer-encoding", b"chunked"),
                (b"connection", b"close"),
                (b"x", b"y\r\nX-User-ID: mallory"),
                (b"x\r\nx-user-id", b"mallory"),
                (b"x: y", b"z"),
                (b"X-Upper", b"y"),
                (b"", b"y"),
                (b"host", b"evil.example"),
                (b"host", b"gateway.test"),
                (b"te", b"gzip"),
                (b"expect", b"100-continue"),
                (b"upgrade", b"websocket"),
                (b"x", b"\0"),
                (b"x", b" y"),
                (b":path", b"/admin"),
                (b":authority", b"evil.example"),
                (b":protocol", b"websocket"),
                (b"x" * 40000, b"y"),
                (b"cookie", b"b=2"),
                (b"authorization", b"Bearer x"),
            )
        ),
    )
    return _frames(rng, stream, head + fields, data)


def _pseudo2(rng: random.Random, stream: int, head: list[Field], fields: list[Field], data: list[bytes]) -> list[bytes]:
    head = list(head)
    at = rng.randrange(len(head))
    kind = rng.choice(("drop", "twice", "late", "value"))
    if kind == "drop":
        del head[at]
    elif kind == "twice":
        head.append(head[at])
    elif kind == "late":
        fields.append(head.pop(at))
    else:
        path = dict(head)[b":path"]
        values = {
            b":method": (b"GET / HTTP/1.1\r\nX: y", b"get", b"CONNECT", b"", b"GET "),
            b":scheme": (b"http", b"ftp", b"", b"https://evil"),
            b":authority": (b"evil.example", b"", b"gateway.test:443", b"a@gateway.test", b"gateway.test/x"),
            b":path": (b"", b"*", b"//x", path + b" HTTP/1.1\r\nX: y", b"http://evil" + path, path + b"#x", b"/../x"),
        }
        head[at] = (head[at][0], rng.choice(values[head[at][0]]))
    return _frames(rng, stream, head + fields, data)


def _frames2(rng: random.Random, stream: int, head: list[Field], fields: list[Field], data: list[bytes]) -> list[bytes]:
    frames = _frames(rng, stream, head + fields, data, trailers=rng.random() < 0.3)
    kind = rng.choice(("no-end", "after-end", "head-twice", "drop", "swap", "other-stream", "flags", "cut", "trailers"))
    at = rng.randrange(len(frames))
    if kind == "no-end":
        return _frames(rng, stream, head + fields, data, end=False)
    if kind == "after-end":
        frames.append(frame(DATA, rng.choice((0, END_STREAM)), stream, SMUGGLED))
    elif kind == "head-twice":
        frames.append(frames[0])
    elif kind == "drop":
        del frames[at]
    elif kind == "swap":
        frames.append(frames.pop(at))
    elif kind == "other-stream":
        frames[at] = frames[at][:5] + struct.pack(">I", rng.choice((0, 2, stream + 2, 1, 2**31 - 1))) + frames[at][9:]
    elif kind == "flags":
        frames[at] = frames[at][:4] + bytes([rng.randrange(256)]) + frames[at][5:]
    elif kind == "cut":
        frames[at] = frames[at][: rng.randint(0, len(frames[at]))]
    else:
        trailer = rng.choice(
            ((b":path", b"/admin"), (b"content-length", b"5"), (b"x", b"y\r\nz"), (b"host", b"evil"), (b"X", b"y"))
        )
        frames = _frames(rng, stream, head + fields, data or [b"abc"], end=False)
        frames.append(frame(HEADERS, END_HEADERS | rng.choice((END_STREAM, 0)), stream, block([trailer])))
    return frames or [b""]


MUTATIONS2: tuple[Mutation2, ...] = (_length2, _length2, _length2, _fields2, _pseudo2, _frames2, _frames2)


def _mutate_frames(rng: random.Random, pieces: list[Piece]) -> list[Piece]:
    """Change the connection as a whole."""
    made = list(pieces)
    at = rng.randint(0, len(made))
    put = rng.choice(
        (
            frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)),
            frame(SETTINGS, 0, 0, struct.pack(">HI", 4, rng.choice((0, 1, 2**31 - 1, 2**31)))),
            frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 16384)),
            frame(SETTINGS, 0, 1),
            frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", rng.choice((0, 2**31 - 1)))),
            frame(WINDOW_UPDATE, 0, 1, struct.pack(">I", rng.choice((0, 1)))),
            frame(PING, 0, 1, b"12345678"),
            frame(PING, 0, 0, b"1234"),
            frame(RST_STREAM, 0, rng.choice((1, 3, 5)), struct.pack(">I", 8)),
            frame(DATA, 0, rng.choice((0, 1, 3)), SMUGGLED),
            frame(CONTINUATION, END_HEADERS, 1, b""),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff"),
            frame(5, END_HEADERS, 1, struct.pack(">I", 2)),
            SMUGGLED,
            b"\0" * 20,
        )
    )
    made.insert(at, Piece(put))
    if rng.random() < 0.3:
        made = _mutate_bytes(rng, made)
    return made
