"""CORS fields go with every answer to an allowed origin, the gateway's own included, and give no route away."""

import socket
import subprocess

import pytest

from tests.live.harness_upstream import Reply
from tests.rfc.fronts import Front, Kind, bearer, parse

ALLOWED = "https://app.example"
ORIGIN = f"Origin: {ALLOWED}"
OWN: dict[str, tuple[int, str, tuple[str, ...], str]] = {
    "health": (200, "/health", (), "GET"),
    "ambiguous path": (400, "/public/../x", (), "GET"),
    "repeated field": (400, "/public", ("Content-Type: a", "Content-Type: b"), "GET"),
    "no credential": (401, "/api/v1/users", (), "GET"),
    "no credential, no CORS": (401, "/api/v1/orders", (), "GET"),
    "no credential, no route": (401, "/nowhere", (), "GET"),
    "no route": (404, "/nowhere", (bearer(),), "GET"),
    "no method": (405, "/api/v1/orders", (bearer(),), "PUT"),
    "body": (413, "/api/v1/users", (bearer(), "Content-Length: 1025"), "POST"),
    "target": (414, "/" + "a" * 13000, (), "GET"),
    "expectation": (417, "/public", ("Expect: miracles",), "GET"),
    "many fields": (431, "/public", tuple(f"A{number}: b" for number in range(150)), "GET"),
    "long field, origin first": (431, "/public", (f"A: {'b' * 60_000}",), "GET"),
    "framing": (400, "/public", ("Content-Length: 1", "Transfer-Encoding: chunked"), "POST"),
    "handshake": (400, "/ws", ("Connection: upgrade", "Upgrade: websocket"), "GET"),
    "loop": (508, "/public", ("Via: 1.1 mitmgate",) * 8, "GET"),
}


@pytest.mark.parametrize("name", OWN)
def test_our_own_answers_can_be_read_by_an_allowed_origin(front: Front, name: str) -> None:
    status, target, lines, method = OWN[name]
    answered = front.ask(target, ORIGIN, *lines, method=method)
    assert answered.status == status, answered
    assert answered.all("access-control-allow-origin") == [ALLOWED]
    assert "Origin" in ", ".join(answered.all("vary"))
    assert answered.all("access-control-allow-credentials") == ["true"]


@pytest.mark.parametrize("name", OWN)
def test_a_foreign_origin_and_none_get_no_field_but_vary(front: Front, name: str) -> None:
    status, target, lines, method = OWN[name]
    for origin in (("Origin: https://app.example.evil",), ()):
        answered = front.ask(target, *origin, *lines, method=method)
        assert answered.status in {status, 403}
        assert [field for field, _ in answered.headers if field.lower().startswith("access-control")] == []
        assert "Origin" in ", ".join(answered.all("vary"))


@pytest.mark.parametrize(
    "data",
    [
        b"GET /public HTTP/3.0\r\nHost: localhost\r\nOrigin: https://app.example\r\n\r\n",
        b"GET /public HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example\r\nA: " + b"b" * 90_000,
        b"GET /public HTTP/1.1\r\nHost: localhost\r\norigin:https://app.example\r\nBad Name: x\r\n\r\n",
        b"GET /public HTTP/1.1\r\nHost: localhost\r\nORIGIN: https://app.example \r\nA: \x01\r\n\r\n",
        b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nOrigin: https://app.example\r\n\r\n",
        b"GET /public HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 60_000 + b"\r\nOrigin: https://app.example\r\n\r\n",
    ],
)
def test_so_can_what_answers_a_head_that_is_none(front: Front, data: bytes) -> None:
    answered = parse(front.raw(data, answers=1))
    assert answered.status in {400, 414, 431, 505}
    assert answered.all("access-control-allow-origin") == [ALLOWED]


def test_two_origins_are_nobodys(front: Front) -> None:
    data = (
        b"GET /public HTTP/3.0\r\nHost: localhost\r\nOrigin: https://app.example\r\nOrigin: https://app.example\r\n\r\n"
    )
    assert parse(front.raw(data, answers=1)).all("access-control-allow-origin") == []
    answered = front.refused(400, "header-repeated", "/public", ORIGIN, ORIGIN)
    assert answered.all("access-control-allow-origin") == []


def test_a_services_answer_is_read_by_the_routes_own_rule(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = Reply(headers=[("Access-Control-Allow-Origin", "*")])
    assert front.ask("/api/v1/users", ORIGIN, bearer()).all("access-control-allow-origin") == [ALLOWED]
    front.upstream.reply = Reply()
    assert front.ask("/reads", ORIGIN).all("access-control-allow-origin") == []


@pytest.mark.parametrize("target", ["/api/v1/users", "/reads"])
def test_what_fails_after_admission_is_told_of_in_the_same_way(front: Front, target: str) -> None:
    """In the gateway's own word, whether the route has a rule or not."""
    front.upstream.forget()
    front.upstream.reply = Reply(headers=[("Content-Length", "x")])
    answered = front.ask(target, ORIGIN, bearer())
    assert (answered.status, answered.all("access-control-allow-origin")) == (502, [ALLOWED])
    foreign = front.ask("/reads", "Origin: https://evil.example")
    assert (foreign.status, foreign.all("access-control-allow-origin")) == (502, [])


@pytest.mark.parametrize("target", ["/api/v1/users", "/public"])
def test_so_is_a_body_that_is_none(front: Front, target: str) -> None:
    lines = (f"POST {target} HTTP/1.1", "Host: localhost", bearer(), ORIGIN, "Transfer-Encoding: chunked", "", "zz", "")
    answered = parse(front.raw("\r\n".join(lines).encode(), answers=1))
    assert (answered.status, answered.reason) == (400, "body-malformed")
    assert answered.all("access-control-allow-origin") == [ALLOWED]


def test_so_is_a_target_of_another_scheme(front: Front) -> None:
    other = "http" if front.kind == "tls" else "https"
    answered = front.refused(400, "target-invalid", f"{other}://localhost/public", ORIGIN)
    assert answered.all("access-control-allow-origin") == [ALLOWED]


@pytest.mark.parametrize("kind", ["lane", "web"])
def test_so_is_a_head_whose_end_does_not_come(fronts: dict[Kind, Front], kind: Kind) -> None:
    with fronts[kind].connect() as link:
        link.sendall(f"GET /public HTTP/1.1\r\nHost: localhost\r\n{ORIGIN}\r\n".encode())
        link.shutdown(socket.SHUT_WR)
        answered = parse(b"".join(iter(lambda: link.recv(65536), b"")))
    assert (answered.status, answered.reason) == (400, "head-malformed")
    assert answered.all("access-control-allow-origin") == [ALLOWED]


@pytest.mark.parametrize("words", [["-H", f"A: {'b' * 50_000}"], [w for n in range(151) for w in ("-H", f"A{n}: b")]])
def test_over_http2(fronts: dict[Kind, Front], words: list[str]) -> None:
    front = fronts["tls"]
    command = ["curl", "-s", "-i", "--http2", "--cacert", front.authority.ca, "-H", ORIGIN, *words]
    url = f"https://localhost:{front.gateway.port}/public"
    done = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("HTTP/2 431")
    assert f"access-control-allow-origin: {ALLOWED}" in done.stdout
