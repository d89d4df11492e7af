"""The same requests on every front and in two hosts: one engine must decide and forward them alike.

Each is generated from a seed, well-formed or not, and asked over HTTP/1.1 and, where HTTP/2 can say it, over that, with
TLS and without, of `serve` and of stock mitmdump. What is compared: the status, the reason and the decision on record,
and what a stock Node server logged, field by field. What a front must change (X-Forwarded-Proto, Via's version) is left
out.
"""

import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.attack.gateways import CORP, Attacked, Front, Rig
from tests.attack.wire import DATA, END_HEADERS, END_STREAM, HEADERS, Http1, Http2, Partial, block, frame
from tests.live.harness import Front as Host
from tests.live.harness import mint

BATCH = 200
"""Requests that are asked before the logs are read."""
SECONDS = 5.0
"""How long an answer is waited for; a connection may end without one."""
SHOWN = 10
"""Differences that are shown."""
TARGETS: Final[tuple[tuple[Host, Front], ...]] = (
    ("serve", "http1"),
    ("serve", "http1-tls"),
    ("serve", "http2"),
    ("serve", "http2-plain"),
    ("stock", "http1"),
    ("stock", "http1-tls"),
    ("stock", "http2"),
    ("stock", "http2-plain"),
)
ITS_OWN: Final = frozenset(
    ["x-request-id", "traceparent", "tracestate", "x-forwarded-proto", "x-forwarded-port", "via", "connection", "te"]
)
"""Fields of a forwarded request that differ from one time to the next, or say which front it came by."""
_UNSAID: Final = frozenset(b"connection keep-alive proxy-connection transfer-encoding upgrade http2-settings".split())
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Said:
    """A request in parts. fields: without Host and framing. body: None: there is none."""

    tag: str
    method: bytes
    target: bytes
    host: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes | None = None
    chunked: bool = False

    def http1(self, *, tls: bool = False) -> bytes:
        """Write it in HTTP/1.1. tls: an absolute target has the connection's scheme."""
        target = self.target.replace(b"http://", b"https://", 1) if tls else self.target
        lines = [b"%b %b HTTP/1.1" % (self.method, target), b"Host: " + self.host]
        lines += [b"%b: %b" % one for one in self.fields]
        body = self.body or b""
        if self.body is not None and self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif self.body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def http2(self, stream: int, scheme: bytes) -> bytes | None:
        """Write its frames; None where HTTP/2 can't say it: it has no such field, or no such octet."""
        fields = [(b":method", self.method), (b":scheme", scheme)]
        fields += [(b":authority", self.host), (b":path", self.target)]
        for name, value in self.fields:
            lower = name.lower()
            if lower in _UNSAID or (lower == b"te" and value != b"trailers") or lower == b"host":
                return None
            if _TOKEN.fullmatch(name) is None or value != value.strip(b" \t"):
                return None
            fields.append((lower, value))
        if sum(len(name) + len(value) for name, value in fields) > _LARGE:
            return None
        octets = b"".join(part for one in fields for part in one)
        if self.method == b"CONNECT" or _TOKEN.fullmatch(self.method) is None or octets.translate(None, _VISIBLE):
            return None
        if not self.target.startswith(b"/") or b" " in self.target or b"#" in self.target or b"\t" in self.target:
            return None
        if self.body is not None and not self.chunked:
            fields.append((b"content-length", b"%d" % len(self.body)))
        ends = END_STREAM if self.body is None else 0
        frames = frame(HEADERS, END_HEADERS | ends, stream, block(fields))
        return frames if self.body is None else frames + frame(DATA, END_STREAM, stream, self.body)


_LARGE: Final = 16_000  # what fits into one frame
_VISIBLE: Final = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))


@dataclass(frozen=True)
class Found:
    """What became of a request. forwarded: what the service logged, of one request or several."""

    status: int
    reason: str | None = None
    decision: str | None = None
    forwarded: tuple[object, ...] = ()


@dataclass
class Generator:
    """Makes requests from a seed. tokens: by what they are good for."""

    seed: int
    tokens: Mapping[str, bytes]
    count: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def one(self) -> Said:
        """Make the next request."""
        rng = self.rng
        self.count += 1
        tag = f"d{self.seed}-{self.count}-"
        method = rng.choice(_METHODS) if rng.random() < 0.3 else rng.choice((b"GET", b"POST", b"PUT"))
        target = rng.choice(_ROUTES).encode() + b"/" + tag.encode()
        if rng.random() < 0.35:
            target = rng.choice(_ODD_TARGETS)(target, tag.encode())
        host = rng.choice(_HOSTS) if rng.random() < 0.1 else b"gateway.test"
        fields = [self._credential()] if rng.random() < 0.9 else []
        fields += rng.sample(_FIELDS, rng.choice((0, 0, 1, 1, 2, 4)))
        if rng.random() < 0.1:
            fields.append(rng.choice(_REFUSED))
        rng.shuffle(fields)
        body, chunked = None, False
        if method not in {b"GET", b"HEAD"} and rng.random() < 0.7:
            body = bytes(rng.choice((0, 1, 300, 5000)))
            chunked = rng.random() < 0.4
        return Said(tag, method, target, host, tuple(fields), body, chunked)

    def _credential(self) -> tuple[bytes, bytes]:
        kind = self.rng.choice(("alice",) * 10 + (*self.tokens,))
        scheme = self.rng.choice((b"Bearer ",) * 16 + (b"bearer ", b"Basic ", b"Bearer  ", b""))
        return b"Authorization", scheme + self.tokens[kind]


_METHODS = (*b"GET HEAD POST PUT PATCH DELETE OPTIONS TRACE PROPFIND get M-SEARCH CONNECT".split(), b"G(T", b"G\xe9T")
_ROUTES = (
    *("/node/auto", "/node/auto", "/node/always", "/node/never", "/open", "/admin", "/inside", "/tenant", "/browser"),
    *("/nowhere", "/node", "/NODE/auto", "/few2", "/health", "/open/../admin"),
)
_HOSTS = (
    b"a.example",
    b"b.example",
    b"A.EXAMPLE",
    b"gateway.test:443",
    b"gateway.test.",
    b"x y",
    b"",
    b"a@b",
    b"[::1]",
)

_NO_AUTHORITY = (b"x y", b"", b"a@b")

Target = Callable[[bytes, bytes], bytes]
_ODD_TARGETS: tuple[Target, ...] = (
    *(
        (lambda target, tag, tail=tail: target + tail)
        for tail in (
            *(
                b"?q=1",
                b"?q=%20&a=b",
                b"?a=1;b=2",
                b"?",
                b"/",
                b"//",
                b"/.",
                b"/..",
                b"/../x",
                b"/%2e%2e/x",
            ),
            *(
                b"/..%2fx",
                b"/..;x=1/y",
                b"/..%00/x",
                b"/%2E%2E%5Cx",
                b"/a%2fb",
                b"/%41",
                b"/%",
                b"/%zz",
                b"/[1]",
                b"/a|b",
            ),
            *(b"/;a=b", b"/\xc3\xa9", b"/%c3%a9", b"/%c0%ae", b"/a b", b"#x", b"/\\x", b"/%5cx", b"/" + b"a" * 9000),
            *(b"/a\tb", b"/%0d%0aX:1", b"/%EF%BC%8E%EF%BC%8E/x", b"?\xff", b"/~x", b"/x:y@z", b"/" + b"a/" * 300),
        )
    ),
    lambda target, tag: b"http://gateway.test" + target,
    lambda target, tag: b"http://other.test" + target,
    lambda target, tag: b"*",
    lambda target, tag: target[1:],
    lambda target, tag: b"/" + target,
)
_FIELDS = (
    (b"X-User-ID", b"mallory"),
    (b"x-user-role", b"admin"),
    (b"X_User_ID", b"mallory"),
    (b"Remote-User", b"mallory"),
    (b"X-Forwarded-For", b"10.0.0.1"),
    (b"X-Forwarded-Proto", b"https"),
    (b"Forwarded", b"for=10.0.0.1"),
    (b"X-Request-ID", b"forged"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"X-HTTP-Method-Override", b"DELETE"),
    (b"X-Original-URL", b"/admin"),
    (b"Proxy", b"http://evil.example"),
    (b"Connection", b"X-Hop"),
    (b"X-Hop", b"1"),
    (b"Upgrade", b"h2c"),
    (b"Expect", b"100-continue"),
    (b"TE", b"trailers"),
    (b"Cookie", b"a=1"),
    (b"Content-Type", b"application/grpc"),
    (b"Content-Type", b"text/plain"),
    (b"Origin", b"https://app.example"),
    (b"Origin", b"https://evil.example"),
    (b"Access-Control-Request-Method", b"POST"),
    (b"Max-Forwards", b"0"),
    (b"Range", b"bytes=0-1"),
    (b"Accept-Encoding", b"gzip"),
    (b"X-Obs", b"\xe9\xff"),
    (b"X-Tab", b"a\tb"),
    (b"X-Empty", b""),
    (b"X-Long", b"x" * 3000),
    (b"Via", b"1.1 other"),
)
_REFUSED = (
    (b"Expect", b"200-ok"),
    (b"Host", b"evil.example"),
    (b"Authorization", b"Bearer two"),
    (b"X-Nul", b"a\0b"),
    (b"X-Cr", b"a\rb"),
    (b"X Space", b"1"),
    (b"X-Larger", b"x" * 40000),
    (b"Transfer-Encoding", b"identity"),
)


def tokens() -> dict[str, bytes]:
    """Mint tokens, good and bad ones."""
    made = {
        "alice": mint("alice", lifetime=24 * 3600),
        "admin": mint("root", roles="admin", lifetime=24 * 3600),
        "expired": mint("alice", lifetime=-3600),
        "audience": mint("alice", aud="api://other"),
        "forged": mint("alice", key="another-secret-that-is-long-enough-for-HS512-and-is-used-nowhere-else-at-all"),
        "issuer": mint("alice", iss=CORP),
        "none": "a.b.c",
    }
    return {kind: token.encode() for kind, token in made.items()}


class Asker:
    """Asks one gateway on one front; a connection serves as long as it lasts."""

    def __init__(self, attacked: Attacked, front: Front) -> None:
        self._attacked, self._front = attacked, front
        self._client: Http1 | Http2 | None = None
        self._streams = 0

    def ask(self, said: Said) -> Partial | None:
        """Return the answer; None where the front can't say the request."""
        if self._front.startswith("http2"):
            return self._ask2(said)
        client = self._client
        if not isinstance(client, Http1) or client.link.ended:
            self.leave()
            self._client = client = self._attacked.http1()
        client.link.received.clear()
        client.link.send(said.http1(tls=self._attacked.ca is not None))
        (answer, *_) = client.wait(1, [said.method.decode("latin-1")], SECONDS) or [Partial()]
        if not answer.complete or (answer.one("connection") or "").lower() == "close" or answer.status >= 400:
            self.leave()
        return answer

    def _ask2(self, said: Said) -> Partial | None:
        stream = 2 * self._streams + 1
        frames = said.http2(stream, self._attacked.scheme)
        if frames is None:
            return None
        client = self._client
        if not isinstance(client, Http2) or client.link.ended:
            self.leave()
            client = self._client = self._attacked.http2()
            stream = 1
            frames = said.http2(stream, self._attacked.scheme) or b""
        self._streams += 1
        client.send(frames)
        client.wait([stream], SECONDS)
        answer = client.streams.get(stream, Partial())
        if not answer.complete:
            self.leave()
        return answer

    def leave(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.link.close()
        self._client, self._streams = None, 0


def asked(rig: Rig, host: Host, front: Front, batch: Sequence[Said]) -> dict[str, Found | None]:
    """Ask a batch, and return what became of each request, by its tag."""
    attacked = rig.gateway(host, front)
    asker = Asker(attacked, front)
    answers = {said.tag: asker.ask(said) for said in batch}
    asker.leave()
    events, logged = attacked.judged()
    by_tag: dict[str, list[object]] = {}
    for one in logged:
        kept = sorted((name.lower(), value) for name, value in one.headers if name.lower() not in ITS_OWN)
        # Node answers these before it has read their bodies, and how much it has read then is chance.
        length = None if one.method in {"DELETE", "GET", "HEAD", "OPTIONS"} else one.length
        by_tag.setdefault(_tag(one.url), []).append((one.method, one.url, tuple(kept), length))
    found: dict[str, Found | None] = {}
    ended = {_tag(event.get("path", "") + "?" + event.get("query", "")): event for event in events}
    for said in batch:
        answer = answers[said.tag]
        event = ended.get(said.tag, {})
        forwarded = tuple(by_tag.get(said.tag, ()))
        found[said.tag] = (
            None if answer is None else Found(answer.status, event.get("reason"), event.get("decision"), forwarded)
        )
    return found


def _tag(target: str) -> str:
    match = re.search(r"\bd\d+-\d+-", target)
    return match[0] if match else ""


def run(seed: int, requests: int, say: Callable[[str], None]) -> bool:
    """Ask so many requests of every front and host. Returns whether all were treated alike."""
    generator = Generator(seed, tokens())
    count: Counter[str] = Counter()
    differences: list[str] = []
    with tempfile.TemporaryDirectory(prefix="differential-") as directory, Rig(Path(directory)) as rig:
        while generator.count < requests and len(differences) < SHOWN:
            batch = [generator.one() for _ in range(min(BATCH, requests - generator.count))]
            found = [asked(rig, host, front, batch) for host, front in TARGETS]
            for said in batch:
                differences += _compared(said, [one[said.tag] for one in found], count)
            say(f"{generator.count} of {requests} requests, {len(differences)} differences")
    say(", ".join(f"{number} {what}" for what, number in sorted(count.items())))
    for difference in differences[:SHOWN]:
        say(difference)
    return not differences


def _alike(said: Said, front: Front, one: Found, reference: Found) -> bool:
    """Tell whether HTTP/2 may differ so far.

    What is malformed as a message libnghttp2 has refused itself, whatever else is wrong with it: the stream is reset,
    and the record has no target. A gRPC call is denied by a gRPC status.
    """
    if not front.startswith("http2") or reference.decision != "deny":
        return False
    malformed = reference.status == 400 or said.host in _NO_AUTHORITY
    return (one == Found(0) and malformed) or one == replace(reference, status=200)


def _compared(said: Said, found: Sequence[Found | None], count: Counter[str]) -> list[str]:
    count["asked"] += sum(one is not None for one in found)
    count["said in HTTP/2"] += found[2] is not None
    reference = found[0]
    assert reference is not None
    count[f"{reference.status}"] += 1
    wrong = [
        f"{host} {front}: {one}"
        for (host, front), one in zip(TARGETS, found, strict=True)
        if one is not None and one != reference and not _alike(said, front, one, reference)
    ]
    if not wrong:
        return []
    return ["\n  ".join([f"{said.tag}: {said.http1()[:400]!r}", f"serve http1: {reference}", *wrong])]
