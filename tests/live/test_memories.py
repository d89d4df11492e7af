"""What clients make up, of any length and in any place, takes no memory for good; also where all of it is recorded."""

from collections.abc import Iterator
from pathlib import Path

from tests.live.harness import Gateway, policy_file
from tests.live.harness_http import raw_request, wait_for
from tests.live.harness_upstream import RecordingUpstream

LONG = 26_000
"""Characters; a head has 32 KiB."""
COUNT = 250
GROWTH = 16
"""MiB, for 16 MiB of made-up text: of each request something was kept that took ten times as much."""


def heads(first: int, last: int) -> Iterator[bytes]:
    """Make heads with one long text each."""
    for number in range(first, last):
        text = f"{number:x}".rjust(LONG, "a")
        line, field = (
            ("/public", f"Authorization: Bearer {text}"),
            ("/public", f"X-{text}: y"),
            ("/public", f"X-Any: {text}"),
            (f"/public?{text[-7000:]}=x", f"Cookie: {text[-18_000:]}"),
            (f"/public/{text[-7000:]}", f"User-Agent: {text[-18_000:]}"),
        )[0 if number % 2 else number % 5]
        yield f"GET {line} HTTP/1.1\r\nHost: h{text[-40:]}.example\r\n{field}\r\nConnection: close\r\n\r\n".encode()


def resident(gateway: Gateway) -> float:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(each.split()[1]) for each in lines if each.startswith("VmRSS")) / 1024


def test_what_clients_make_up_does_not_stay(tmp_path: Path) -> None:
    arguments = ("--record", str(tmp_path / "traffic.mitm"), "--record-rotate", "1MiB", "--record-keep", "1")
    with RecordingUpstream() as upstream, Gateway(policy_file(tmp_path, upstream), arguments=arguments) as gateway:
        for head in heads(0, 20):
            raw_request(gateway.port, head)
        before = resident(gateway)
        for head in heads(20, 20 + COUNT):
            raw_request(gateway.port, head)
        upstream.forget_requests()
        wait_for(lambda: resident(gateway) - before < GROWTH, "the memory to be given back")
