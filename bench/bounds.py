"""What a hostile or large request costs: answer before the body, memory while streaming, deadlines, slow clients.

Run: .venv/bin/python bench/bounds.py [serve|web]. Starts a gateway and an upstream of its own on 127.0.0.1, prints one
line a measurement. Bounded: about a minute.
"""

import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import request
from tests.live.harness_upstream import (
    HANG,
    RecordingUpstream,
)

MB = 1 << 20
HUGE = 200 * MB


def memory(pid: int, member: str = "VmRSS") -> float:
    """Return a size of a process in MiB; VmHWM is its peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(member):
            return int(line.split()[1]) / 1024
    raise LookupError(member)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Sink:
    """An upstream that swallows what is sent, and sends as much as the path says; nothing is kept."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            link, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        with link:
            got = b""
            while b"\r\n\r\n" not in got:
                part = link.recv(65536)
                if not part:
                    return
                got += part
            head, _, rest = got.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                chunked = b"chunked" in head.split(b"\r\n")[0]
                framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % HUGE
                link.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + framing + b"\r\n\r\n")
                block = b"x" * 65536
                for _ in range(HUGE // len(block)):
                    link.sendall(b"10000\r\n" + block + b"\r\n" if chunked else block)
                if chunked:
                    link.sendall(b"0\r\n\r\n")
                return
            self.received = len(rest)
            length = HUGE
            if b"chunked" in head.lower():
                while not rest.endswith(b"0\r\n\r\n"):
                    rest = rest[-8:] + link.recv(1 << 18)
            else:
                while self.received < length:
                    self.received += len(link.recv(1 << 18))
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def post(port: int, target: str, size: int, *lines: str, chunked: bool = False) -> tuple[bytes, float]:
    """Send a large POST as far as it is taken; return the answer's first bytes and the seconds until they came."""
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    head = "".join(f"{line}\r\n" for line in (f"POST {target} HTTP/1.1", "Host: a", framing, *lines))
    block = b"x" * 65536
    piece = b"10000\r\n" + block + b"\r\n" if chunked else block
    answer: list[tuple[bytes, float]] = []
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        began = time.perf_counter()

        def read() -> None:
            try:
                answer.append((link.recv(4096), time.perf_counter() - began))
            except OSError:
                answer.append((b"", time.perf_counter() - began))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            link.sendall(head.encode() + b"\r\n")
            for _ in range(size // len(block)):
                if answer:
                    break
                link.sendall(piece)
            if chunked and not answer:
                link.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        reader.join(60)
    return answer[0]


def say(what: str, value: object) -> None:
    print(json.dumps({"measured": what, "value": value}), flush=True)


def denials(gateway: Gateway) -> None:
    pid = gateway.process.pid
    for _ in range(5):
        post(gateway.port, "/big", 50 * MB)
    time.sleep(1)
    rss, fds = memory(pid), descriptors(pid)
    answers = [post(gateway.port, "/big", 50 * MB) for _ in range(200)]
    wrong = [first for first, _ in answers if not first.startswith(b"HTTP/1.1 401 ")]
    times = sorted(seconds * 1000 for _, seconds in answers)
    time.sleep(4)
    say(
        "50 MB POST without a token, 200 times: ms until 401 (median, worst)",
        (round(statistics.median(times), 1), round(times[-1], 1)),
    )
    say("… answers other than 401", len(wrong))
    say("… memory growth, MiB; descriptors more", (round(memory(pid) - rss, 2), descriptors(pid) - fds))


def streams(gateway: Gateway) -> None:
    pid, token = gateway.process.pid, f"Authorization: Bearer {mint()}"
    tasks: dict[str, Callable[[], object]] = {
        "200 MB up": lambda: post(gateway.port, "/big", HUGE, token),
        "200 MB up, chunked": lambda: post(gateway.port, "/big", HUGE, token, chunked=True),
        "200 MB down": lambda: download(gateway.port, "/big", token),
        "200 MB down, chunked": lambda: download(gateway.port, "/big/chunked", token),
    }
    for name, task in tasks.items():
        forget_peak(pid)
        rss, began = memory(pid), time.perf_counter()
        told = task()
        seconds = time.perf_counter() - began
        say(f"{name}: peak memory growth, MiB; seconds", (round(memory(pid, "VmHWM") - rss, 1), round(seconds, 1)))
        if isinstance(told, tuple) and not told[0].startswith(b"HTTP/1.1 200 "):
            say("… unexpected", repr(told[0][:80]))


def download(port: int, target: str, token: str) -> int:
    got = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(f"GET {target} HTTP/1.1\r\nHost: a\r\n{token}\r\nConnection: close\r\n\r\n".encode())
        while part := link.recv(1 << 18):
            got += len(part)
    if got < HUGE:
        say("… short download", got)
    return got


@contextmanager
def slow_clients(port: int, count: int) -> Iterator[list[float]]:
    """Hold `count` clients that send a byte of a head now and then, and as many that say nothing."""
    stop, timeouts, links = threading.Event(), [], []

    def drip() -> None:
        while not stop.is_set():
            for at, (link, since) in enumerate(links):
                try:
                    link.send(b"X")
                    link.setblocking(False)
                    if link.recv(64, socket.MSG_PEEK).startswith(b"HTTP/1.1 408"):
                        timeouts.append(time.perf_counter() - since)
                    raise OSError
                except BlockingIOError:
                    continue
                except OSError:
                    link.close()
                    links[at] = fresh()
            stop.wait(1)

    def fresh() -> tuple[socket.socket, float]:
        link = socket.create_connection(("127.0.0.1", port), timeout=10)
        link.send(b"GET / HTTP/1.1\r\nA: ")
        return link, time.perf_counter()

    links += [fresh() for _ in range(count)]
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(count)]
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield timeouts
    finally:
        stop.set()
        thread.join()
        for link in [*idle, *(link for link, _ in links)]:
            link.close()


def throughput(gateway: Gateway, seconds: float = 3.0) -> float:
    """Return requests a second of one keep-alive client."""
    asked = b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n"
    done, began = 0, time.perf_counter()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as link:
        while time.perf_counter() - began < seconds:
            link.sendall(asked)
            got = link.recv(65536)
            while b"\r\n\r\n" not in got or not got.endswith(b"hello"):
                got += link.recv(65536)
            done += 1
    return done / (time.perf_counter() - began)


def crowd(gateway: Gateway) -> None:
    ratios, timeouts = [], []
    for _ in range(3):
        alone = throughput(gateway)
        with slow_clients(gateway.port, 500) as times:
            time.sleep(1)
            ratios.append(throughput(gateway, 5.0) / alone)
        timeouts += times
    say("throughput beside 500 slow heads and 500 idle clients, of that without", [round(ratio, 2) for ratio in ratios])
    if timeouts:
        say("… seconds until 408 (first, last) at head_timeout 3 s", (round(min(timeouts), 2), round(max(timeouts), 2)))


def deadlines(gateway: Gateway, upstream: RecordingUpstream) -> None:
    upstream.reply = HANG
    times = []
    for _ in range(10):
        began = time.perf_counter()
        answered = request(gateway.port, "GET", "/slow")
        times.append(time.perf_counter() - began)
        if answered.status != 504:
            say("… unexpected", answered.status)
    say("504 at response_timeout 1 s: seconds (first, last)", (round(min(times), 3), round(max(times), 3)))


def main() -> None:
    host = "web" if sys.argv[1:] == ["web"] else "serve"
    sink = Sink()
    with tempfile.TemporaryDirectory() as name, RecordingUpstream() as upstream:
        directory = Path(name)
        made = policy(directory, upstream)
        made["limits"] = {"head_timeout": "3s", "connections": 10000, "body": "300MiB"}
        made["upstreams"]["sink"] = {"endpoints": [sink.url]}
        made["upstreams"]["slow"] = {
            "endpoints": [upstream.url],
            "response_timeout": "1s",
            "circuit": {"failures": 100},
        }
        made["routes"] += [
            {"name": "big", "match": {"prefix": "/big"}, "upstream": "sink"},
            {"name": "slow", "match": {"prefix": "/slow"}, "upstream": "slow", "auth": "none"},
        ]
        with Gateway(write_policy(directory, made), host=host) as gateway:
            say("host", host)
            denials(gateway)
            streams(gateway)
            crowd(gateway)
            deadlines(gateway, upstream)


if __name__ == "__main__":
    main()
