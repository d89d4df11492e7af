"""What a hostile or large request costs: answer before the body, memory while streaming, deadlines, slow clients.

Run: .venv/bin/python bench/bounds.py [serve|web]. Starts a gateway and an upstream of its own on 127.0.0.1, prints one
line a measurement. Bounded: about a minute.
"""

import asyncio
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "addons")]

from tests.live.harness import Gateway, Host, mint, policy, write_policy
from tests.live.harness_http import request
from tests.live.harness_upstream import (
    HANG,
    RecordingUpstream,
)

MB = 1 << 20
HUGE = 200 * MB
HEAD_TIMEOUT = 3


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


@dataclass
class Crowd:
    """What became of the slow clients: seconds from the first byte of a head to its 408, and other ends."""

    timeouts: list[float] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)


async def slow_client(port: int, crowd: Crowd) -> None:
    """Send a byte of a head each second until the answer comes, note when it came, and begin again."""
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        writer.write(b"GET / HTTP/1.1\r\nA: ")
        answer = asyncio.ensure_future(reader.read(64))
        try:
            while not (await asyncio.wait([answer], timeout=1))[0]:
                writer.write(b"X")
            got = answer.result()
            if got.startswith(b"HTTP/1.1 408 "):
                crowd.timeouts.append(time.perf_counter() - began)
            else:
                crowd.others.append(got)
        except OSError as error:
            crowd.others.append(repr(error).encode())
        finally:
            answer.cancel()
            writer.close()


async def idle_client(port: int) -> None:
    """Say nothing for as long as the gateway lets one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await reader.read()
    finally:
        writer.close()


@contextmanager
def slow_clients(port: int, count: int) -> Iterator[Crowd]:
    """Hold `count` clients that send a byte of a head each second, and as many that say nothing."""
    crowd, loop = Crowd(), asyncio.new_event_loop()

    async def run() -> None:
        clients = [slow_client(port, crowd) for _ in range(count)]
        await asyncio.gather(*clients, *(idle_client(port) for _ in range(count)))

    task = loop.create_task(run())

    def serve() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield crowd
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()


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
    ratios: list[float] = []
    timeouts: list[float] = []
    others: list[bytes] = []
    throughput(gateway)  # mitmweb keeps flows: from the bound on, each new one lets an old one go
    for _ in range(3):
        alone = throughput(gateway)
        with slow_clients(gateway.port, 500) as seen:
            time.sleep(1)
            ratios.append(throughput(gateway, 5.0) / alone)
        timeouts += seen.timeouts
        others += seen.others
    say("throughput beside 500 slow heads and 500 idle clients, of that without", [round(ratio, 2) for ratio in ratios])
    spread = (min(timeouts), statistics.median(timeouts), max(timeouts)) if timeouts else ()
    say(
        f"… seconds until 408 (first, median, last) of {len(timeouts)} slow heads at head_timeout {HEAD_TIMEOUT} s",
        [round(seconds, 3) for seconds in spread],
    )
    if others:
        say("… ends other than 408", (len(others), repr(others[0])))


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
    host: Host = "web" if sys.argv[1:] == ["web"] else "serve"
    sink = Sink()
    with tempfile.TemporaryDirectory() as name, RecordingUpstream() as upstream:
        directory = Path(name)
        made = policy(directory, upstream)
        made["limits"] = {"head_timeout": f"{HEAD_TIMEOUT}s", "connections": 10000, "body": "300MiB"}
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
