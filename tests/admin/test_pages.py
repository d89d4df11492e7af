"""The pages of a real gateway's admin listener: what they say, to whom, and that they only read."""

import asyncio
import html.parser
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mitmgate.admin.listener import Listener, bind
from mitmgate.admin.report import Report
from tests.admin.asking import AdminGateway, admin_gateway
from tests.live.harness import Gateway, Host, mint, policy_file
from tests.live.harness_http import free_port, raw_request, request, status_of, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.live.test_user_mistakes import assert_mistake, start
from tests.protocol.harness import crowd


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminGateway]:
    """Run one gateway for all tests that change nothing."""
    with RecordingUpstream() as upstream, admin_gateway(tmp_path_factory.mktemp("shared"), upstream) as gateway:
        yield gateway


PAGES = ("/livez", "/readyz", "/metrics", "/status")


def test_every_page_answers_in_every_host(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    with admin_gateway(tmp_path, upstream, host) as gateway:
        assert gateway.get("/api/v1/users/1", token=mint()).status == 200
        assert gateway.ask("/livez").json == {"status": "live"}
        assert gateway.ask("/readyz").json == {"status": "ready"}
        labels = {"route": "users", "method": "GET", "status": "200", "reason": "ok"}
        assert gateway.value("mitmgate_requests_total", **labels) == 1
        assert gateway.status()["ready"] is True
        upstream.assert_saw_only(1)


class Tags(html.parser.HTMLParser):
    """What a page is made of, and what a person without scripts is shown of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_status_page_reads_without_scripts_and_loads_nothing(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with admin_gateway(tmp_path, upstream) as gateway:
        answer = gateway.ask("/status", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
        assert answer.one("content-type") == "text/html; charset=utf-8"
        page = answer.body.decode()
        made = Tags(page)
        assert not made.tags & {"form", "link", "img", "iframe", "a", "object", "base"}
        assert page.count("<script") == 1
        shown = page.partition("<noscript>")[2].partition("</noscript>")[0]
        assert not [name for name in made.attributes if name.startswith("on") or name in {"src", "href"}]
        status = gateway.status()
        assert status["policy"][0] in shown
        assert status["policy_since"] in shown
        for text in ("users", upstream.url, "closed", "dev", "file:audit.jsonl"):
            assert text in shown
        assert "default-src 'none'" in (answer.one("content-security-policy") or "")


def test_what_a_policy_holds_is_escaped(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with admin_gateway(tmp_path, upstream) as gateway:
        text = gateway.policy_path.read_text().replace('"version": 1', '"version": 1, "<script>alert(1)</script>": 1')
        gateway.policy_path.write_text(text)
        wait_for(lambda: bool(gateway.status()["rejections"]), "the rejection")
        page = gateway.ask("/status").body.decode()
        assert page.count("<script") == 1
        assert "&lt;script&gt;" in page


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_nothing_can_be_changed(shared: AdminGateway, method: str) -> None:
    for path in (*PAGES, "/", "/other"):
        answer = shared.ask(path, method)
        assert answer.status == 405, path
        assert answer.one("allow") == "GET, HEAD"
        assert answer.one("content-type") == "application/problem+json"
        assert answer.json["status"] == 405


def test_the_root_leads_to_the_page_for_people(shared: AdminGateway) -> None:
    answer = shared.ask("/")
    assert (answer.status, answer.one("location")) == (302, "/status")


@pytest.mark.parametrize(
    "path", ["/status/", "/status/denials/", "/livez/", "/metrics/x", "/health", "/debug/pprof", "/.well-known/x"]
)
def test_any_other_path_is_not_found(shared: AdminGateway, path: str) -> None:
    answer = shared.ask(path)
    assert (answer.status, answer.json) == (404, {"type": "about:blank", "title": "Not Found", "status": 404})
    assert answer.one("content-type") == "application/problem+json"


@pytest.mark.parametrize("path", PAGES)
def test_head_has_the_fields_and_no_body(shared: AdminGateway, path: str) -> None:
    got, head = shared.ask(path), shared.ask(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.one("content-type") == got.one("content-type")
    assert int(head.one("content-length") or 0) > 0


@pytest.mark.parametrize("path", [*PAGES, "/other"])
def test_nobody_is_told_what_serves(shared: AdminGateway, path: str) -> None:
    for method in ("GET", "HEAD", "POST"):
        answer = shared.ask(path, method)
        assert answer.one("server") is None
        assert b"ornado" not in answer.body
        assert answer.one("cache-control") == "no-store"
        assert answer.one("x-content-type-options") == "nosniff"


GOOD = ("localhost", "localhost:8090", "LOCALHOST", "127.0.0.1", "127.0.0.1:1", "10.0.0.7:8090", "[::1]", "[::1]:8090")
BAD = (
    "evil.example",
    "evil.example:8090",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "localhost@evil.example",
    "a,localhost",
    "[::1",
    "localhost:x",
    "",
)


@pytest.mark.parametrize("name", GOOD)
def test_addresses_and_localhost_are_answered_to(shared: AdminGateway, name: str) -> None:
    assert shared.ask("/livez", host=name).status == 200


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_was_pointed_here_is_not(shared: AdminGateway, name: str) -> None:
    answer = raw_request(shared.admin_port, f"GET /metrics HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    assert status_of(answer) in {400, 421}
    assert b"mitmgate" not in answer


def test_two_hosts_are_no_host(shared: AdminGateway) -> None:
    answer = raw_request(shared.admin_port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert status_of(answer) in {400, 421}


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
)
def test_junk_is_refused_and_names_nobody(shared: AdminGateway, junk: bytes) -> None:
    answer = raw_request(shared.admin_port, junk, until_close=True)
    assert status_of(answer) in {0, 400}
    assert b"ornado" not in answer
    assert shared.ask("/livez").status == 200


def test_a_name_that_the_policy_gives_is_answered_to() -> None:
    async def ask() -> Report:
        return Report({})

    async def run() -> list[int]:
        listener = Listener("Admin.Internal", bind("127.0.0.1", 0), ask)
        listener.start()
        port = int(listener.address.rpartition(":")[2])
        names = ("admin.internal", "admin.internal:8090", "other.internal")
        answers = [await asyncio.to_thread(request, port, "GET", "/livez", host=name) for name in names]
        await listener.close()
        return [answer.status for answer in answers]

    assert asyncio.run(run()) == [200, 200, 421]


def test_the_data_port_has_none_of_it(shared: AdminGateway) -> None:
    for path in PAGES:
        assert shared.get(path).status == 401


def test_without_the_member_nothing_listens(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with Gateway(policy_file(tmp_path, upstream)) as gateway:
        assert "admin listener" not in gateway.log
        assert listening(gateway.process.pid) == {gateway.port}


def test_with_it_the_port_is_the_policys(shared: AdminGateway) -> None:
    assert listening(shared.process.pid) == {shared.port, shared.admin_port}


def listening(pid: int) -> set[int]:
    """Return the TCP ports that a process listens on."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
        except FileNotFoundError:
            continue
        if match:
            inodes.add(match[1])
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                ports.add(int(words[1].rpartition(":")[2], 16))
    return ports


LIVE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_of_more_connections_than_the_bound_the_silent_ones_are_closed(shared: AdminGateway) -> None:
    with crowd(shared.admin_port, 100) as links:
        assert shared.ask("/livez").status == 200
        assert links[0].recv(100) == b""
        links[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert links[-1].recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", ["serve", "web"])
def test_an_address_in_use_is_a_users_mistake(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = policy_file(tmp_path, "http://127.0.0.1:9", admin={"port": port})
        listen = ("--listen", f"127.0.0.1:{free_port()}")
        more = ("--web-port", str(free_port())) if kind == "web" else ()
        assert_mistake(start(kind, "--policy", str(path), *listen, *more), "admin listener", f"127.0.0.1:{port}")


def test_an_address_of_nobody_is_a_users_mistake(tmp_path: Path) -> None:
    path = policy_file(tmp_path, "http://127.0.0.1:9", admin={"host": "192.0.2.1", "port": 8090})
    assert_mistake(start("serve", "--policy", str(path)), "admin listener", "192.0.2.1:8090")


def test_the_data_port_is_refused(tmp_path: Path) -> None:
    path = policy_file(tmp_path, "http://127.0.0.1:9", admin={"port": 8080})
    assert_mistake(start("serve", "--policy", str(path)), "policy.yaml:", "admin.port", "clients connect to this port")
