"""Load at a fixed rate, open loop: every request has an intended time, and its latency is counted from that.

Requests are due in even steps whether or not earlier ones were answered; one that finds all connections busy waits,
and the wait is part of its latency. So a subject that stalls can't hide it by slowing the load down (coordinated
omission). `python paced.py` reads a Plan as JSON from stdin and prints what happened as JSON.
"""

import ctypes
import gc
import json
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field

END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_SET_TIMERSLACK = 29  # prctl(2): sleep to the microsecond, not to the 50 of the default


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send: whole requests in turn, `rate` a second, on 127.0.0.1. Each must ask for a status of 200.

    close_every: every so many-th request asks for the connection to be closed, so that new ones are made; 0: none.
    drain: seconds that answers may take after the last request was due.
    """

    port: int
    rate: float
    seconds: float
    connections: int
    requests: list[str]
    close_every: int = 0
    drain: float = 10.0


@dataclass(slots=True)
class Link:
    """One connection, and the request that it carries. due: its intended time; None: idle."""

    socket: socket.socket
    local: int
    due: float | None = None
    closing: bool = False
    got: bytearray = field(default_factory=bytearray)


class Generator:
    """The loop. Times are of time.perf_counter, the monotonic clock that other processes read too."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        plain = [request.encode() for request in plan.requests]
        self.requests = plain
        self.closing = [request[:-2] + b"Connection: close\r\n\r\n" for request in plain]
        self.poll = select.epoll()
        self.links: dict[int, Link] = {}
        self.idle: deque[Link] = deque()
        self.missing = 0  # connections that could not be made, to be tried again
        self.waiting: deque[float] = deque()
        self.sent = 0
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.failures: list[tuple[float, str, int]] = []

    def run(self) -> dict[str, object]:
        """Send everything, wait for the last answers, return the figures."""
        plan = self.plan
        for _ in range(plan.connections):
            self.open()
        began, cpu = time.perf_counter() + 0.01, time.process_time()
        total, due_count, retry = int(plan.rate * plan.seconds), 0, 0.0
        end = began + plan.seconds + plan.drain
        while True:
            now = time.perf_counter()
            while due_count < total and (due := began + due_count / plan.rate) <= now:
                due_count += 1
                if self.idle:
                    self.lateness.append(now - due)
                self.waiting.append(due)
                self.feed()
            if self.missing and now >= retry:
                retry = now + 0.02
                self.reopen()
            if (due_count == total and self.settled()) or now > end:
                break
            upcoming = began + due_count / plan.rate if due_count < total else now + 0.01
            select.select([self.poll], [], [], max(0.0, min(upcoming, now + 0.02) - now))
            for number, _ in self.poll.poll(0):
                if (link := self.links.get(number)) is not None:
                    self.receive(link)
        wall = time.perf_counter() - began
        for link in self.links.values():
            if link.due is not None:
                self.fail("unanswered", link.local)
        for _ in self.waiting:
            self.fail("never sent", 0)
        return self.figures(began, total, wall, time.process_time() - cpu)

    def settled(self) -> bool:
        """Say whether nothing is left to send or to receive."""
        return not self.waiting and len(self.idle) == len(self.links)

    def fail(self, kind: str, local: int) -> None:
        """Count a request that was not answered with 200."""
        self.failures.append((time.perf_counter(), kind, local))

    def open(self) -> None:
        """Make one connection; one that is refused is a failed request."""
        try:
            made = socket.create_connection(("127.0.0.1", self.plan.port), timeout=2)
        except OSError as error:
            self.fail(f"connecting: {error.strerror or type(error).__name__}", 0)
            self.missing += 1
            return
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        link = Link(made, made.getsockname()[1])
        self.links[made.fileno()] = link
        self.poll.register(made.fileno(), select.EPOLLIN)
        self.idle.append(link)
        self.feed()

    def reopen(self) -> None:
        """Try again what could not be connected."""
        count, self.missing = self.missing, 0
        for _ in range(count):
            self.open()

    def replace(self, link: Link) -> None:
        """Close a connection and make another."""
        self.poll.unregister(link.socket.fileno())
        del self.links[link.socket.fileno()]
        link.socket.close()
        if link in self.idle:
            self.idle.remove(link)
        self.open()

    def feed(self) -> None:
        """Give waiting requests to idle connections."""
        while self.waiting and self.idle:
            link = self.idle.popleft()
            link.due = self.waiting.popleft()
            self.sent += 1
            every = self.plan.close_every
            link.closing = bool(every) and self.sent % every == 0
            requests = self.closing if link.closing else self.requests
            try:
                link.socket.send(requests[self.sent % len(requests)])
            except OSError:
                self.broken(link)

    def broken(self, link: Link) -> None:
        """Take the end of a connection: a failure where a request was on it, nothing where it was idle."""
        if link.due is not None:
            self.fail("closed within the answer" if link.got else "closed before the answer", link.local)
        self.replace(link)

    def receive(self, link: Link) -> None:
        """Read what has come; count the answer when it is complete."""
        try:
            part = link.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self.broken(link)
            return
        got = link.got
        got += part
        head = got.find(END)
        if head < 0:
            return
        length = _LENGTH.search(got, 0, head + 2)
        if length is not None:
            complete = len(got) >= head + 4 + int(length[1])
        else:
            complete = _CHUNKED.search(got, 0, head + 2) is None or got.endswith(b"0\r\n\r\n")
        if not complete or link.due is None:
            return
        if got.startswith(b"HTTP/1.1 200 "):
            self.latencies.append(time.perf_counter() - link.due)
        else:
            self.fail(f"status {bytes(got[9:12]).decode('latin-1')}", link.local)
        closed = link.closing or _CLOSE.search(got, 0, head + 2) is not None
        link.due = None
        got.clear()
        if closed:
            self.replace(link)
        else:
            self.idle.append(link)
            self.feed()

    def figures(self, began: float, total: int, wall: float, cpu: float) -> dict[str, object]:
        """Sum up. Latencies and lateness in milliseconds."""
        return {
            "began": began,
            "requests": total,
            "answered": len(self.latencies),
            "wall": wall,
            "cpu": cpu,
            "p50": _percentile(self.latencies, 0.50),
            "p99": _percentile(self.latencies, 0.99),
            "worst": _percentile(self.latencies, 1.0),
            "late_p50": _percentile(self.lateness, 0.50),
            "late_p99": _percentile(self.lateness, 0.99),
            "kinds": Counter(kind for _, kind, _ in self.failures),
            "failures": self.failures[:1000],
        }


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


if __name__ == "__main__":
    gc.disable()
    ctypes.CDLL(None).prctl(_SET_TIMERSLACK, 1, 0, 0, 0)
    print(json.dumps(Generator(Plan(**json.load(sys.stdin))).run()))
