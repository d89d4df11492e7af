"""Memory over many requests, and descriptors over many connections, most of which end badly."""

import itertools
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from bench import policy
from bench.finding import Finding
from bench.load import Ask
from bench.processes import Process, links
from bench.rig import Rig
from bench.subjects import FULL, serve

PRINCIPALS = 500
LIMIT = 10_000  # of each in a minute, more than they use: what counts fills the window meanwhile, 8 bytes a request
GROWTH = 5.0  # MiB that memory may grow
CLIENTS = 8
PATIENCE = 30.0  # seconds until everything that ends has ended
END = b"\r\n\r\n"
CUT = "cut off"


def memory(rig: Rig, requests: int, warm: int) -> Finding:
    """Make this many requests of 500 principals; compare resident memory with that after the first `warm`."""
    ask = Ask(policy.PATH, bearers=tuple(policy.bearer(f"user-{number}") for number in range(PRINCIPALS)))
    with rig.running(serve(rig.upstream.port, replace(FULL, limit=LIMIT))) as gateway:
        done = failed = 0
        begin: float | None = None
        at = 0
        while done < requests:
            sample = rig.saturate(gateway, ask, 5 if requests > 10 * warm else 1)
            done += sample.requests
            failed += sample.failed
            if begin is None and done >= warm:
                time.sleep(2)  # the audit queue empties
                begin, at = gateway.resident_mib(), done
        time.sleep(2)
        growth = gateway.resident_mib() - (begin or 0.0)
    seen = f"{growth:+.1f} MiB from request {at:,} to {done:,}, {failed} failed"
    passed = growth < GROWTH and failed == 0 and done > at
    return Finding(f"memory over {done:,} requests", seen, f"under {GROWTH:.0f} MiB, none failed", passed)


def descriptors(rig: Rig, connections: int) -> Finding:
    """Make this many connections in every way that one can end; count what stays open.

    Pooled connections to the upstream are meant to stay, at most one for each client; everything else must not.
    """
    with rig.running(serve(rig.upstream.port, FULL)) as gateway:
        _hammer(gateway.port, max(len(KINDS) * CLIENTS, connections // 20))
        before, _ = _settled(gateway, rig.upstream.port)
        wrong = _hammer(gateway.port, connections)
        after, pooled = _settled(gateway, rig.upstream.port, before)
    seen = f"{after - before:+d} open, {pooled} pooled to the upstream, {sum(wrong.values())} wrong answers"
    if wrong:
        seen += f" ({', '.join(f'{what}: {count}' for what, count in sorted(wrong.items()))})"
    passed = after <= before and pooled <= CLIENTS and not wrong
    what = f"descriptors over {connections:,} connections, {len(KINDS)} kinds of end"
    return Finding(what, seen, f"+0 open, at most {CLIENTS} pooled, none wrong", passed)


def _settled(gateway: Process, upstream_port: int, wanted: int | None = None) -> tuple[int, int]:
    """Wait until descriptors stop to change (or come down to `wanted`); return those open and those pooled."""
    deadline = time.monotonic() + PATIENCE
    last, since = -1, time.monotonic()
    while True:
        pooled = sum(len(links(pid, upstream_port)) for pid in gateway.tree())
        count = gateway.descriptors() - pooled
        if count != last:
            last, since = count, time.monotonic()
        still = time.monotonic() - since
        if (still > 2 and (wanted is None or count <= wanted)) or time.monotonic() > deadline:
            return count, pooled
        time.sleep(0.2)


def _hammer(port: int, connections: int) -> Counter[str]:
    """Make connections of every kind in turn; return what was answered otherwise than it should be."""
    bearer = policy.bearer("soak").encode()
    wrong: Counter[str] = Counter()

    def one(kind: Callable[[int, bytes], str | None]) -> str | None:
        try:
            seen = kind(port, bearer)
        except OSError as error:
            seen = type(error).__name__
        return None if seen is None else f"{kind.__name__.strip('_')}: {seen}"

    kinds = itertools.islice(itertools.cycle(KINDS), connections)
    with ThreadPoolExecutor(CLIENTS) as pool:
        for start in iter(lambda: list(itertools.islice(kinds, 1000)), []):
            wrong.update(seen for seen in pool.map(one, start) if seen is not None)
    return wrong


def _link(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=15)


def _get(bearer: bytes, path: str = policy.PATH) -> bytes:
    return b"GET " + path.encode() + b" HTTP/1.1\r\nHost: a\r\nAuthorization: " + bearer + END


def _reset(link: socket.socket) -> None:
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def _answer(link: socket.socket, wanted: bytes) -> str | None:
    """Read one answer with a known length; return what is wrong with it."""
    got = b""
    while END not in got:
        part = link.recv(65536)
        if not part:
            return "closed before the answer"
        got += part
    head, _, body = got.partition(END)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            left = int(line.partition(b":")[2]) - len(body)
            while left > 0 and (part := link.recv(65536)):
                left -= len(part)
            if left > 0:
                return CUT
    status = head[9:12]
    return None if status == wanted else f"status {status.decode('latin-1')}"


def _ordinary(port: int, bearer: bytes) -> str | None:
    with _link(port) as link:
        link.sendall(_get(bearer))
        return _answer(link, b"200")


def _kept(port: int, bearer: bytes) -> str | None:
    with _link(port) as link:
        for _ in range(3):
            link.sendall(_get(bearer))
            wrong = _answer(link, b"200")
            if wrong is not None:
                return wrong
    return None


def _half_closed(port: int, bearer: bytes) -> str | None:
    with _link(port) as link:
        link.sendall(_get(bearer))
        link.shutdown(socket.SHUT_WR)
        _drain(link)  # whether it is answered is another matter: the protocol layer may take it as the client's end
    return None


def _denied(port: int, _: bytes) -> str | None:
    with _link(port) as link:
        link.sendall(
            b"POST " + policy.PATH.encode() + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(9)
        )
        return _answer(link, b"401")


def _silent(port: int, _: bytes) -> str | None:
    _link(port).close()
    return None


def _reset_in_head(port: int, bearer: bytes) -> str | None:
    link = _link(port)
    link.sendall(_get(bearer)[:60])
    _reset(link)
    return None


def _reset_in_body(port: int, bearer: bytes) -> str | None:
    link = _link(port)
    head = _get(bearer).replace(b"GET", b"POST", 1)[:-2] + b"Content-Length: 100000\r\n\r\n"
    link.sendall(head + bytes(1000))
    _reset(link)
    return None


def _reset_before_answer(port: int, bearer: bytes) -> str | None:
    link = _link(port)
    link.sendall(_get(bearer))
    _reset(link)
    return None


def _reset_in_answer(port: int, bearer: bytes) -> str | None:
    link = _link(port)
    link.sendall(_get(bearer, f"{policy.PREFIX}/bytes/1000000"))
    link.recv(1000)
    _reset(link)
    return None


def _upstream_reset(port: int, bearer: bytes) -> str | None:
    with _link(port) as link:
        link.sendall(_get(bearer, f"{policy.PREFIX}/reset"))
        try:
            wrong = _answer(link, b"502")
        except ConnectionResetError:
            return None
    return None if wrong == CUT else wrong  # never 200 and complete


def _upstream_vanished(port: int, bearer: bytes) -> str | None:
    with _link(port) as link:
        link.sendall(_get(bearer, f"{policy.PREFIX}/vanish"))
        return _answer(link, b"502")


def _drain(link: socket.socket) -> None:
    try:
        while link.recv(65536):
            pass
    except ConnectionResetError:
        pass


KINDS = (
    _ordinary,
    _kept,
    _half_closed,
    _denied,
    _silent,
    _reset_in_head,
    _reset_in_body,
    _reset_before_answer,
    _reset_in_answer,
    _upstream_reset,
    _upstream_vanished,
)
"""Every way that a connection ends here. Each returns what was wrong with an answer that should have come."""
