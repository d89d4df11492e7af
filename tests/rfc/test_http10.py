"""HTTP/1.0, and who still speaks it: a health check without Host is answered, and is for no service."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness_http import raw_request, status_of, wait_for
from tests.rfc.fronts import KINDS, Front, Kind, bearer

LINES = "\r\n\r\n"


def test_the_health_check_needs_no_host(front: Front) -> None:
    front.upstream.forget()
    for data in (b"GET /health HTTP/1.0\r\n\r\n", b"OPTIONS / HTTP/1.0\r\n\r\n"):
        got = front.raw(data)
        assert status_of(got) == 200, got
        assert got.endswith(b'{"status":"ok"}\n')
    assert status_of(front.raw(b"HEAD /health HTTP/1.0\r\n\r\n")) == 200
    front.upstream.assert_saw_nothing()


@pytest.mark.parametrize(
    ("target", "method"),
    [("/public", "GET"), ("/", "GET"), ("/health", "POST"), ("/public", "OPTIONS"), ("/ws", "GET")],
)
def test_nothing_else_goes_without_one(front: Front, target: str, method: str) -> None:
    front.refused(400, "host-invalid", target, method=method, version="HTTP/1.0", host=None)


@pytest.mark.parametrize("target", ["/health", "/", "/public"])
def test_http_1_1_has_a_host_always(front: Front, target: str) -> None:
    for method in ("GET", "OPTIONS"):
        front.refused(400, "host-invalid", target, method=method, host=None)
    front.refused(400, "host-invalid", target, "Host: other", version="HTTP/1.0")


def test_an_options_with_a_host_is_a_request_as_any(front: Front) -> None:
    for version in ("HTTP/1.0", "HTTP/1.1"):
        front.refused(401, "credential-missing", "/", method="OPTIONS", version=version)


def test_http_1_0_gets_a_body_that_ends_with_the_connection(front: Front) -> None:
    seen = front.seen("/public", "Connection: keep-alive", version="HTTP/1.0")
    assert seen.version == "HTTP/1.1", "a proxy sends its own version (RFC 9112, section 2.3)"


def test_head_where_get_is_allowed(front: Front) -> None:
    seen = front.seen("/reads", method="HEAD")
    assert seen.method == "HEAD"
    refused = front.refused(405, "method-not-allowed", "/reads", bearer(), method="PUT")
    assert refused.one("allow") == "GET, HEAD"


@pytest.mark.parametrize("data", [b"GET /readyz HTTP/1.0", b"GET /livez HTTP/1.0", b"OPTIONS / HTTP/1.0"])
def test_the_admin_listener_needs_none_either(fronts: dict[Kind, Front], data: bytes) -> None:
    got = raw_request(fronts["lane"].admin, data + LINES.encode(), until_close=True)
    assert got.startswith(b"HTTP/1.1 200 "), got


@pytest.mark.parametrize(
    "data", [b"GET /readyz HTTP/1.1", b"OPTIONS / HTTP/1.1\r\nHost: localhost", b"GET /x HTTP/1.0"]
)
def test_but_that_is_all(fronts: dict[Kind, Front], data: bytes) -> None:
    got = raw_request(fronts["lane"].admin, data + LINES.encode())
    assert status_of(got) in {400, 404, 405}, got


class Haproxy:
    """A real HAProxy that checks servers as its configuration says, and what it finds."""

    def __init__(self, directory: Path, servers: dict[str, str]) -> None:
        """servers: each with the directives of its backend and of its server line, apart by "|"."""
        self._socket = directory / "haproxy.sock"
        lines = [
            *("global", f"    stats socket {self._socket} mode 600", "defaults", "    mode http"),
            *("    timeout connect 20s", "    timeout server 20s", "    timeout client 20s", "    timeout check 20s"),
        ]
        for name, words in servers.items():
            directives, _, server = words.partition("|")
            lines += [f"backend {name}", *(f"    {one.strip()}" for one in directives.split(";"))]
            lines += [f"    server {name} {server.strip()} check inter 500ms"]
        configuration = directory / "haproxy.cfg"
        configuration.write_text("\n".join(lines) + "\n")
        command = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        assert command, "haproxy is not installed"
        self.process = subprocess.Popen([command, "-db", "-f", str(configuration)], stderr=subprocess.DEVNULL)

    def checks(self) -> dict[str, str]:
        """Return what the last check of each server found, such as "L7OK 200"."""
        with socket.socket(socket.AF_UNIX) as link:
            try:
                link.connect(str(self._socket))
            except OSError:
                return {}
            link.sendall(b"show stat\n")
            text = b"".join(iter(lambda: link.recv(65536), b"")).decode()
        header, *rows = [line.split(",") for line in text.removeprefix("# ").strip().split("\n")]
        found = [dict(zip(header, row, strict=False)) for row in rows]
        return {
            row["pxname"]: f"{row['check_status']} {row['check_code']}" for row in found if row["svname"] != "BACKEND"
        }


@pytest.fixture
def haproxy(fronts: dict[Kind, Front], tmp_path: Path) -> Iterator[Haproxy]:
    servers = {}
    for kind in KINDS:
        front = fronts[kind]
        tls = " check-ssl verify none" if kind == "tls" else ""
        servers[f"{kind}-plain"] = f"option httpchk | 127.0.0.1:{front.gateway.port}{tls}"
        servers[f"{kind}-health"] = f"option httpchk GET /health | 127.0.0.1:{front.gateway.port}{tls}"
        servers[f"{kind}-admin"] = f"option httpchk | 127.0.0.1:{front.gateway.port} port {front.admin}"
        servers[f"{kind}-ready"] = f"option httpchk GET /readyz | 127.0.0.1:{front.gateway.port} port {front.admin}"
    servers["nowhere"] = f"option httpchk GET /public | 127.0.0.1:{fronts['lane'].gateway.port}"
    running = Haproxy(tmp_path, servers)
    try:
        yield running
    finally:
        running.process.terminate()
        running.process.wait(20)


def test_haproxys_own_health_checks(haproxy: Haproxy) -> None:
    """`option httpchk`, with and without words of its own, is HTTP/1.0 without Host."""
    wanted = {f"{kind}-{check}": "L7OK 200" for kind in KINDS for check in ("plain", "health", "admin", "ready")}
    wanted["nowhere"] = "L7STS 400"

    def settled() -> bool:
        found = haproxy.checks()
        return len(found) == len(wanted) and not any(one.startswith(("INI", "* ", " ")) for one in found.values())

    wait_for(settled, "a check of every server", 60)
    assert haproxy.checks() == wanted
