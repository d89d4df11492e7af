"""Several gateways behind HAProxy, on hosts of their own: addresses, limits, a host that dies, one that drains."""

import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.deploy.fleet import (
    CLIENTS,
    EDGE,
    EDGE_OUTSIDE,
    GATEWAYS,
    HAPROXY,
    OFFICE,
    PER_CLIENT,
    Fleet,
    Load,
    fleet,
    token,
)
from tests.deploy.hosts import PATIENCE
from tests.live.harness_http import Answered, request, wait_for
from tests.live.harness_upstream import Reply
from tests.protocol.certificates import Authority

CLAIMS_OF_A_CLIENT = [
    {"X-Forwarded-For": OFFICE},
    {"X-Forwarded-For": f"{OFFICE}, {EDGE}"},
    {"X-Real-IP": OFFICE, "Forwarded": f"for={OFFICE}", "True-Client-IP": OFFICE},
    {"x-forwarded-for": OFFICE, "X_Forwarded_For": OFFICE, "X-Forwarded-Proto": "https"},
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(tmp_path_factory.mktemp("fleet")) as made:
        yield made


@pytest.fixture(autouse=True)
def whole(running: Fleet) -> None:
    """Start what an earlier test ended, and forget what the service saw."""
    running.mend()
    with running.hosts["service"].inside():
        running.service.forget()


def test_the_service_and_the_audit_event_have_the_address_of_the_client(running: Fleet) -> None:
    answered = running.ask("GET", "/api/v1/orders/7", source=CLIENTS[0], token=token())
    assert answered.status == 200
    seen = running.service.last()
    assert (seen.target, seen.one("x-user-id")) == ("/7", "alice")
    assert seen.one("x-forwarded-for") == CLIENTS[0]
    assert seen.one("x-forwarded-proto") == "http"
    assert seen.one("x-forwarded-host") == "api.example"
    event = running.event(str(answered.one("x-request-id")))
    assert (event["client_ip"], event["peer"]) == (CLIENTS[0], EDGE)


def test_one_id_is_in_every_place(running: Fleet) -> None:
    answered = running.ask("GET", "/api/v1/orders/7", token=token(), headers={"X-Request-ID": "chosen-by-the-client"})
    identifier = str(answered.one("x-request-id"))
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", identifier)
    assert running.service.last().one("x-request-id") == identifier
    assert running.event(identifier)["status"] == 200
    wait_for(lambda: f'"request_id":"{identifier}"' in running.hosts["edge"].log, "HAProxy's log line")


@pytest.mark.parametrize("claims", CLAIMS_OF_A_CLIENT, ids=range(len(CLAIMS_OF_A_CLIENT)))
def test_a_client_gains_nothing_by_what_it_says_of_itself(running: Fleet, claims: dict[str, str]) -> None:
    denied = running.ask("GET", "/api/v1/orders/exports", source=CLIENTS[1], token=token(), headers=claims)
    assert denied.reason == "address-denied"
    with running.hosts["service"].inside():
        running.service.assert_saw_nothing()
    assert running.event(str(denied.one("x-request-id")))["client_ip"] == CLIENTS[1]
    admitted = running.ask("GET", "/api/v1/orders/7", source=CLIENTS[1], token=token(), headers=claims)
    assert admitted.status == 200
    seen = running.service.last()
    assert seen.all("x-forwarded-for") == [CLIENTS[1]]
    assert seen.all("x-forwarded-proto") == ["http"]
    assert OFFICE.encode() not in seen.raw


def test_an_edge_that_appends_is_as_safe_as_one_that_replaces(running: Fleet) -> None:
    replaced, appended = "http-request set-header X-Forwarded-For %[src]", "option forwardfor"
    text = HAPROXY.read_text()
    assert replaced in text
    text = text.replace(replaced, appended).replace("http-request del-header X-Forwarded-For\n", "\n")
    configuration = running.directory / "appends.cfg"
    configuration.write_text(text)
    ports = {"EDGE_HTTP": ":8082", "EDGE_STATS": "127.0.0.1:8406"}
    running.start_edge({**ports, "EDGE_SOCKET": str(running.directory / "appends.sock")}, configuration)
    client = CLIENTS[11]
    wait_for(lambda: responds(running, client), "the edge that appends to answer")
    claimed = {"X-Forwarded-For": f"{OFFICE}, 203.0.113.9"}
    denied = running.ask("GET", "/api/v1/orders/exports", client, 8082, token=token(), headers=claimed)
    assert denied.reason == "address-denied"
    assert running.event(str(denied.one("x-request-id")))["client_ip"] == client
    assert running.ask("GET", "/api/v1/orders/7", client, 8082, token=token(), headers=claimed).status == 200
    assert running.service.last().all("x-forwarded-for") == [client]


def responds(running: Fleet, client: str) -> bool:
    try:
        return running.ask("GET", "/health", client, 8082).status == 200
    except OSError:
        return False


def test_the_address_that_the_policy_allows_is_let_in(running: Fleet) -> None:
    assert running.ask("GET", "/api/v1/orders/exports", source=OFFICE, token=token()).status == 200
    assert running.service.last().target == "/exports"


def test_a_client_has_one_limit_whoever_it_says_it_is(running: Fleet) -> None:
    link = running.connect(CLIENTS[2])
    statuses = Counter(
        request(
            80,
            "GET",
            "/api/v1/orders/7",
            host="api.example",
            token=token(f"user-{number // 50}"),
            headers={"X-Forwarded-For": f"203.0.113.{number}"},
            connection=link,
        ).status
        for number in range(PER_CLIENT + 10)
    )
    link.close()
    assert statuses == {200: PER_CLIENT, 429: 10}
    assert running.ask("GET", "/api/v1/orders/7", source=CLIENTS[3], token=token("user-9")).status == 200


def test_100_a_minute_are_100_over_both_gateways(running: Fleet) -> None:
    bearer = token("racer")

    def client(number: int) -> list[Answered]:
        link = running.connect(CLIENTS[4 + number % 4])
        try:
            return [
                request(80, "GET", "/api/v1/orders/7", token=bearer, host="api.example", connection=link)
                for _ in range(5)
            ]
        finally:
            link.close()

    with ThreadPoolExecutor(32) as pool:
        answers = [answered for got in pool.map(client, range(32)) for answered in got]
    assert Counter(answered.status for answered in answers) == {200: 100, 429: 60}
    with running.hosts["service"].inside():
        running.service.assert_saw_only(100)
    wait_for(lambda: len([e for e in running.events() if e.get("user") == "racer"]) == 160, "160 audit events")
    admitted = Counter(e["gateway"] for e in running.events() if e.get("user") == "racer" and e["status"] == 200)
    assert set(admitted) == set(GATEWAYS), "both gateways took part"


def test_tls_and_http2_end_at_the_edge(running: Fleet) -> None:
    certificate = running.directory / "edge.pem"
    certificate.write_text(
        "".join(Path(name).read_text() for name in Authority(running.directory).issue("api.example"))
    )
    running.start_edge(
        {
            "EDGE_CERTIFICATE": str(certificate),
            "EDGE_STATS": "127.0.0.1:8405",
            "EDGE_HTTP": ":8081",
            "EDGE_HTTPS": ":8443",
            "EDGE_SOCKET": str(running.directory / "tls.sock"),
        }
    )

    def curl(*words: str) -> str:
        here = ["ip", "netns", "exec", running.hosts["client"].namespace, "curl", "-sSik", "--interface", CLIENTS[8]]
        there = ["--resolve", f"api.example:8443:{EDGE_OUTSIDE}", "--resolve", f"api.example:8081:{EDGE_OUTSIDE}"]
        retry = ["--retry", "20", "--retry-connrefused", "--retry-delay", "1", "-H", f"Authorization: Bearer {token()}"]
        done = subprocess.run(
            [*here, *there, *retry, *words], capture_output=True, text=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    answered = curl("--http2", "https://api.example:8443/api/v1/orders/7")
    assert answered.startswith("HTTP/2 200")
    assert "strict-transport-security: max-age=31536000" in answered
    seen = running.service.last()
    assert (seen.one("x-forwarded-for"), seen.one("x-forwarded-proto")) == (CLIENTS[8], "https")
    assert curl("--http1.1", "https://api.example:8443/api/v1/orders/7").startswith("HTTP/1.1 200")
    assert curl("http://api.example:8081/api/v1/orders/7").startswith("HTTP/1.1 308")


def test_a_killed_gateway_costs_no_request_but_those_that_it_had(running: Fleet) -> None:
    release = threading.Event()
    running.service.reply = lambda seen: Reply(until=release) if seen.method == "POST" else Reply()
    with ThreadPoolExecutor(8) as pool:
        bearer = token("writer")
        posts = [
            pool.submit(running.ask, "POST", "/api/v1/orders/8", source=CLIENTS[9], token=bearer, body=b"{}")
            for _ in range(8)
        ]
        wait_for(lambda: len([s for s in running.service.requests if s.method == "POST"]) == 8, "the requests")
        had = {row["svname"]: int(row["scur"]) for row in running.servers()}
        assert had["gateway-1"] >= 1 and sum(had.values()) == 8
        with Load(running) as load:
            load.more(40)
            running.gateways["gateway-1"].send_signal(signal.SIGKILL)
            load.more(120)
            release.set()
        running.wait_for_rotation("gateway-2")
        answers = [post.result(PATIENCE) for post in posts]
    statuses = Counter(answered.status for answered in answers)
    assert Counter(load.statuses) == {200: len(load.statuses)}
    assert statuses == {200: had["gateway-2"], 502: had["gateway-1"]}
    assert {answered.reason for answered in answers if answered.status == 502} == {"edge-bad-gateway"}
    posted = [seen for seen in running.service.requests if seen.method == "POST"]
    assert len(posted) == 8, "a request that may have been carried out is not sent again"


def test_what_is_no_request_ends_at_the_edge(running: Fleet) -> None:
    link = running.connect(CLIENTS[12])
    link.sock.sendall(b"GET /\x00 HTTP/1.1\r\nHost: api.example\r\n\r\n")
    assert link.sock.recv(65536).startswith(b"HTTP/1.1 400")
    link.close()
    with running.hosts["service"].inside():
        running.service.assert_saw_nothing()
    assert [event for event in running.events() if event["client_ip"] == CLIENTS[12]] == []


def test_a_host_that_vanishes_costs_no_request_that_can_be_repeated(running: Fleet) -> None:
    with Load(running) as load:
        load.more(40)
        running.hosts["gateway-2"].unplug()
        try:
            running.wait_for_rotation("gateway-1")
            load.more(40)
            load.finish()
        finally:
            running.hosts["gateway-2"].plug()
    assert Counter(load.statuses) == {200: len(load.statuses)}


def test_a_gateway_that_drains_leaves_the_rotation_and_loses_no_request(running: Fleet) -> None:
    release = threading.Event()
    running.service.reply = lambda seen: Reply(until=release) if seen.method == "POST" else Reply()
    with ThreadPoolExecutor(8) as pool:
        bearer = token("other-writer")
        posts = [
            pool.submit(running.ask, "POST", "/api/v1/orders/9", source=CLIENTS[10], token=bearer, body=b"{}")
            for _ in range(8)
        ]
        wait_for(lambda: len([s for s in running.service.requests if s.method == "POST"]) == 8, "the requests")
        had = {row["svname"]: int(row["scur"]) for row in running.servers()}
        assert had["gateway-2"] >= 1 and sum(had.values()) == 8
        with Load(running) as load:
            load.more(40)
            running.gateways["gateway-2"].send_signal(signal.SIGTERM)
            load.more(80)
            running.wait_for_rotation("gateway-1")
            wait_for(lambda: running.check("gateway-2") == "L7STS/503", "HAProxy to be told that it is not ready")
            out = datetime.now(UTC) + timedelta(seconds=0.5)
            wait_for(lambda: datetime.now(UTC) > out, "half a second")
            load.more(80)
            assert running.gateways["gateway-2"].poll() is None, "it waits for what it has"
            release.set()
            assert [post.result(PATIENCE).status for post in posts] == [200] * 8
            assert running.gateways["gateway-2"].wait(PATIENCE) == 0
        assert Counter(load.statuses) == {200: len(load.statuses)}
    there = [event for event in running.events() if event["gateway"] == "gateway-2"]
    assert [event for event in there if datetime.fromisoformat(event["time"]) > out] == [], "nothing more came"
    assert len([event for event in there if event.get("user") == "other-writer"]) == had["gateway-2"]
