"""Offers of another protocol (RFC 9110, section 7.8): ignored, but for a WebSocket where the route takes one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.live.harness_upstream import Recorded, Reply
from tests.rfc.fronts import Front, Kind, bearer

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
ASKS = ("Connection: Upgrade", "Upgrade: websocket", KEY)
HANDSHAKE = (*ASKS, "Sec-WebSocket-Version: 13")
OFFERS = {
    "h2c": H2C,
    "tls": ("Connection: upgrade", "Upgrade: TLS/1.0, HTTP/2.0"),
    "unknown": ("Connection: Upgrade", "Upgrade: foo/2"),
    "two lines": ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: foo"),
    "no option": ("Upgrade: h2c",),
    "empty": ("Connection: Upgrade", "Upgrade:"),
    "websockets": ("Connection: Upgrade", "Upgrade: websockets, xwebsocket"),
}


def assert_nothing_of_the_offer(seen: Recorded) -> None:
    for name in ("upgrade", "connection", "http2-settings"):
        assert seen.all(name) == [], name


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("target", ["/public", "/ws"])
def test_an_offer_is_ignored(front: Front, target: str, offer: str) -> None:
    assert_nothing_of_the_offer(front.seen(target, *OFFERS[offer]))
    seen = front.seen(target, *OFFERS[offer], method="POST", body=b"a body")
    assert_nothing_of_the_offer(seen)
    assert seen.body == b"a body"


def test_http_1_0_can_not_upgrade_to_anything(front: Front) -> None:
    for lines in (H2C, HANDSHAKE):
        seen = front.seen("/ws", *lines, version="HTTP/1.0")
        assert_nothing_of_the_offer(seen)


def test_an_offer_is_decided_on_as_any_request(front: Front) -> None:
    front.refused(401, "credential-missing", "/api/v1/users", *H2C)
    front.refused(413, "body-too-large", "/api/v1/users", bearer(), "Content-Length: 1025", *H2C, method="POST")
    front.refused(400, "header-invalid", "/public", "Connection: Upgrade, Host", "Upgrade: h2c")


def test_offers_on_one_connection(front: Front) -> None:
    """The connection stays what it was: the next request, and a pipelined one, are read as requests."""
    front.upstream.forget()
    lines = "".join(f"{line}\r\n" for line in H2C)
    one = f"GET /public HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()
    got = front.raw(one * 3 + b"GET /public HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert got.count(b"HTTP/1.1 200 ") == 4
    assert b"HTTP/1.1 101" not in got
    front.upstream.assert_saw_only(4)


def test_a_service_that_switches_all_the_same_is_not_followed(front: Front) -> None:
    front.upstream.forget()
    front.upstream.script.append(Reply(101, headers=[("Upgrade", "h2c"), ("Connection", "Upgrade")]))
    answered = front.ask("/public", *H2C)
    assert (answered.status, answered.reason) == (502, "upstream-malformed")


@pytest.mark.parametrize("upgrade", ["Upgrade: websocket", "Upgrade: h2c, WebSocket", "upgrade: WEBSOCKET"])
def test_a_websocket_is_asked_for_where_the_route_takes_one(front: Front, upgrade: str) -> None:
    lines = ("Connection: keep-alive, Upgrade", upgrade, KEY, "Sec-WebSocket-Version: 13")
    front.upstream.forget()
    front.upstream.script.append(Reply(403))
    assert front.ask("/ws", *lines).status == 403
    seen = front.upstream.last()
    assert (seen.all("connection"), seen.all("upgrade")) == (["Upgrade"], ["websocket"])


def test_a_handshake_that_can_not_be_followed_is_refused(front: Front) -> None:
    front.refused(400, "upgrade-refused", "/public", *HANDSHAKE)
    for lines in (ASKS, (*ASKS, "Sec-WebSocket-Version: 8"), ("Upgrade: websocket", KEY, "Sec-WebSocket-Version: 13")):
        answered = front.refused(400, "upgrade-refused", "/ws", *lines)
        assert answered.one("sec-websocket-version") == "13"


def test_curl_with_its_offer(front: Front) -> None:
    command = shutil.which("curl")
    assert command, "curl is not installed"
    scheme = "https" if front.kind == "tls" else "http"
    url = f"{scheme}://localhost:{front.gateway.port}/public"
    words = ["--http2", "--cacert", front.authority.ca, "-w", " %{http_code} %{http_version}", url]
    done = subprocess.run([command, "-s", "--max-time", "20", *words, url], capture_output=True, text=True, check=False)
    version = "2" if front.kind == "tls" else "1.1"
    assert done.stdout == f"upstream says hello 200 {version}upstream says hello 200 {version}"


def test_java_with_its_defaults(fronts: dict[Kind, Front]) -> None:
    command = shutil.which("java")
    assert command, "java is not installed"
    kinds: tuple[Kind, ...] = ("lane", "web")
    for kind in kinds:
        fronts[kind].upstream.forget()
    urls = [f"http://127.0.0.1:{fronts[kind].gateway.port}/public" for kind in kinds]
    program = str(Path(__file__).with_name("Offers.java"))
    done = subprocess.run([command, program, *urls], capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.split("\n") == [*["200 GET", "200 POST"] * 2, ""], done
    for kind in kinds:
        fronts[kind].upstream.assert_saw_only(2)
        assert fronts[kind].upstream.last().body == b"a body"
        assert_nothing_of_the_offer(fronts[kind].upstream.last())
