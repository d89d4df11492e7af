"""What the status page asks: the stream, denials in full, edited copies; for whom, in which bounds, without secrets."""

import asyncio
import base64
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mitmgate.admin.feed import Feed, quantile
from mitmgate.admin.listener import CONNECTIONS, Listener, bind
from mitmgate.admin.pages import STREAMS, _is_this_machine
from mitmgate.admin.report import Report
from tests.admin.asking import AdminGateway
from tests.live.harness import mint, policy, route
from tests.live.harness_http import Answered, request, wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer

HOSTILE = '</script><img src=x onerror="alert(1)">'
SECRET_TEXTS = ("hunter2", "s3cr3t", "eyJhbGciOi")


@contextmanager
def streaming(port: int, **fields: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Watch the stream: yields its events as they come."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as link:
        link.sendall(f"GET /status/stream HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode())
        reader = link.makefile("rb")

        def events() -> Iterator[dict[str, Any]]:
            for line in reader:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

        yield events()
        reader.close()


def until(events: Iterator[dict[str, Any]], holds: Any) -> dict[str, Any]:
    """Return the first event of which something holds."""
    for _, event in zip(range(120), events, strict=False):
        if holds(event):
            return event
    raise AssertionError("no such event")


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream) -> Iterator[AdminGateway]:
    directory = tmp_path_factory.mktemp("console")
    made = policy(directory, upstream)
    made["rate_limits"]["per-user"]["limit"] = 3
    route(made, "orders", require={"when": 'request.headers["x-team"] == "blue"'})
    made["api_keys"] = {"file": "keys.jsonl", "header": "X-Machine"}
    made["routes"].append({"name": "jobs", "match": {"prefix": "/jobs"}, "upstream": "users", "auth": "api-key"})
    with AdminGateway(directory, made) as running:
        yield running


def explained(gateway: AdminGateway, denial: str, **edit: Any) -> Answered:
    body = json.dumps(edit).encode()
    fields = {"Content-Type": "application/json"}
    return request(
        gateway.admin_port, "POST", f"/status/denials/{denial}/explain", host="localhost", headers=fields, body=body
    )


def denied(gateway: AdminGateway, request_id: str) -> dict[str, Any]:
    """Return the row of a request that was denied."""
    with streaming(gateway.admin_port) as events:
        found = until(events, lambda event: [row for row in event["denials"] if row["request_id"] == request_id])
    row: dict[str, Any] = next(row for row in found["denials"] if row["request_id"] == request_id)
    return row


def test_a_denial_is_told_with_its_stages_and_lines_and_without_credentials(gateway: AdminGateway) -> None:
    secret = {
        "Cookie": "id=s3cr3t",
        "X-Api-Key": "s3cr3t-key",
        "X-Machine": "hunter2-machine",
        "X-Other": HOSTILE,
        "Proxy-Authorization": "Basic s3cr3t",
    }
    target = f"/api/v1/users/7?password=hunter2&q={'x' * 3000}"
    answer = gateway.get(target, token=mint(HOSTILE, scope="orders.read"), headers=secret)
    assert answer.status == 403
    row = denied(gateway, answer.json["request_id"])
    assert (row["reason"], row["stage"], row["user"], row["route"]) == (
        "scope-missing",
        "authorization",
        HOSTILE,
        "users",
    )
    assert max(len(text) for text in row.values() if isinstance(text, str)) <= 256
    answer = gateway.ask(f"/status/denials/{row['id']}")
    told = answer.json
    assert [stage["stage"] for stage in told["stages"]][-1] == "authorization"
    (rule,) = told["stages"][-1]["rules"]
    assert rule["member"] == "routes[0].require.scopes_all"
    assert rule["value"] == ["users.read"]
    assert "policy.yaml:" in rule["place"]
    assert "the token needs the scope users.read" in told["stages"][-1]["what_would_have_to_change"]
    assert ["Authorization", "Bearer [redacted]"] in told["fields"]
    for secret_text in SECRET_TEXTS:
        assert secret_text not in answer.body.decode()


def test_an_edited_copy_is_decided_and_nothing_learns_of_it(gateway: AdminGateway, upstream: RecordingUpstream) -> None:
    token = mint("carol")
    answer = gateway.get("/api/v1/orders/7", token=token, headers={"X-Team": "red"})
    assert answer.status == 403
    row = denied(gateway, answer.json["request_id"])
    told = gateway.ask(f"/status/denials/{row['id']}").json
    before, counted = len(upstream.requests), gateway.samples()
    for _ in range(5):  # more than the limit of users
        edit = {"method": "GET", "target": "/api/v1/users/7", "fields": told["fields"]}
        copy = explained(gateway, row["id"], **edit).json
        assert (copy["decision"], copy["route"]) == ("admit", "users")
    fields = [[name, "blue" if name.lower() == "x-team" else value] for name, value in told["fields"]]
    copy = explained(gateway, row["id"], method="GET", target="/api/v1/orders/7", fields=fields).json
    assert (copy["decision"], copy["status"]) == ("admit", 200)
    copy = explained(gateway, row["id"], method="GET", target="/api/v1/orders/7", fields=told["fields"]).json
    assert (copy["decision"], copy["status"]) == ("deny condition-false", 403)
    assert len(upstream.requests) == before
    for name in ("mitmgate_requests_total", "mitmgate_rate_limit_decisions_total"):
        now = {key: value for key, value in gateway.samples().items() if key[0] == name}
        assert now == {key: value for key, value in counted.items() if key[0] == name}, name
    assert gateway.get("/api/v1/users/7", token=token).status == 200, "none of her limit is spent"
    audit = gateway.policy_path.parent / "audit.jsonl"
    wait_for(lambda: audit.read_text().count('"user":"carol"') >= 2, "the record of her last request")
    assert audit.read_text().count('"user":"carol"') == 2


def test_what_can_t_be_said_is_said(gateway: AdminGateway) -> None:
    answer = gateway.get("/nowhere", token=mint("dave"))  # 404 comes before authentication, or 401 after it
    assert answer.status in {401, 404}
    row = denied(gateway, answer.json["request_id"])
    expired = gateway.get("/api/v1/users/1", token=mint("dave", lifetime=-900))
    other = denied(gateway, expired.json["request_id"])
    told = gateway.ask(f"/status/denials/{other['id']}").json
    copy = explained(gateway, other["id"], method="GET", target="/api/v1/orders/1", fields=told["fields"]).json
    assert copy["decision"] == "deny token-expired", "what was found out of its token then"
    without = [pair for pair in told["fields"] if pair[0] != "Authorization"]
    copy = explained(gateway, other["id"], method="GET", target="/api/v1/orders/1", fields=without).json
    assert copy["decision"] == "deny credential-missing"
    missing = gateway.get("/api/v1/users/1")
    third = denied(gateway, missing.json["request_id"])
    fields = [["Host", "gateway.test"], ["Authorization", "Bearer [redacted]"]]
    copy = explained(gateway, third["id"], method="GET", target="/api/v1/users/1", fields=fields).json
    assert (copy["decision"], copy["status"]) == ("not known", None)
    assert "credentials are not kept" in copy["notes"][0]
    claims = '{"sub": "x", "scope": "users.read"}'
    edit = {"method": "GET", "target": "/api/v1/users/1", "fields": fields, "claims": claims}
    assert explained(gateway, third["id"], **edit).json["decision"] == "admit"
    assert row["outcome"] == "denied"


def test_an_api_key_counts_for_what_was_found_out_of_it_then(gateway: AdminGateway) -> None:
    answer = gateway.get("/jobs/1", headers={"X-Machine": "hunter2-machine"})
    assert answer.reason == "api-keys-unavailable", "there is no list yet"
    row = denied(gateway, answer.json["request_id"])
    detail = gateway.ask(f"/status/denials/{row['id']}")
    assert "hunter2" not in detail.body.decode()
    assert ["X-Machine", "[redacted]"] in detail.json["fields"]
    edit = {"method": "GET", "target": "/jobs/2", "fields": detail.json["fields"]}
    copy = explained(gateway, row["id"], **edit).json
    assert copy["decision"] == "deny api-keys-unavailable"
    without = [pair for pair in detail.json["fields"] if pair[0] != "X-Machine"]
    copy = explained(gateway, row["id"], **(edit | {"fields": without})).json
    assert copy["decision"] == "deny credential-missing"


BAD_COPIES: tuple[Mapping[str, Any], ...] = (
    {},
    {"method": "GET", "target": "/", "fields": "Host: x"},
    {"method": "GET", "target": "/", "fields": [["Host"]]},
    {"method": "GET", "target": "/", "fields": [["X", "a\r\nb"]]},
    {"method": "", "target": "/", "fields": []},
    {"method": "GET", "target": "/\u20ac", "fields": []},
    {"method": "GET", "target": "/\ud800", "fields": []},
    {"method": "GET", "target": "/", "fields": [], "claims": "no json"},
)


def test_what_is_no_copy_is_refused_with_a_sentence(gateway: AdminGateway) -> None:
    answer = gateway.get("/api/v1/users/1")
    row = denied(gateway, answer.json["request_id"])
    for bad in BAD_COPIES:
        answer = explained(gateway, row["id"], **bad)
        assert answer.status in {400, 409}, bad
        assert answer.one("content-type") == "application/problem+json"
        assert answer.json.get("detail") or answer.status == 400
    path = f"/status/denials/{row['id']}/explain"
    for kind, body, status in (
        ("text/plain", b"{}", 415),
        ("application/json", b"[]", 400),
        ("application/json", b"{", 400),
    ):
        fields = {"Content-Type": kind}
        assert request(gateway.admin_port, "POST", path, host="localhost", headers=fields, body=body).status == status
    weird = explained(gateway, row["id"], method="G\u00e4T", target="/a/../b?x=%zz", fields=[["Host", HOSTILE]])
    assert weird.status == 200
    assert weird.json["decision"].startswith("deny ")
    assert gateway.ask("/status/denials/1-1").status == 404
    assert gateway.ask(f"/status/denials/{gateway.process.pid}-999999").status == 409
    assert gateway.ask("/status/denials/x").status == 404
    assert "Traceback" not in gateway.log


def test_another_site_can_t_ask(gateway: AdminGateway) -> None:
    for path in ("/status", "/status/stream", "/status/denials/1-1"):
        assert gateway.ask(path, Sec_Fetch_Site="cross-site").status == 403
        assert gateway.ask(path, host="evil.example").status == 421
    opened = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    answer = gateway.ask("/status", **opened)
    assert answer.status == 200, "a link in a runbook"
    allowed = answer.one("content-security-policy") or ""
    assert "default-src 'none'" in allowed
    assert "unsafe" not in allowed
    assert "frame-ancestors 'none'" in allowed


def test_the_stream_tells_rates_latencies_and_limits(gateway: AdminGateway) -> None:
    with streaming(gateway.admin_port) as events:
        first = next(events)
        assert first["since"] == 0
        assert first["status"]["ready"] is True
        for _ in range(5):
            gateway.get("/api/v1/users/7", token=mint("erin"))
        told = until(events, lambda event: event["points"][-1]["rates"].get("quota-exceeded"))
        assert told["since"] > 0, "only what is new"
        kind, rate = told["points"][-1]["rates"]["quota-exceeded"]
        assert kind == "denied"
        assert rate > 0
        limit = next(one for one in told["limits"] if one["who"] == "erin")
        assert (limit["limit"], limit["denied"], limit["of"]) == ("per-user", 2, 3)
        assert told["points"][-1]["latency"]["gateway"][0] > 0
        assert told["policies"][0]["outcome"] == "in force"
        assert told["processes"][0]["accepting"] is True


def test_so_many_may_watch_and_no_more(gateway: AdminGateway) -> None:
    links: list[socket.socket] = []

    def taken() -> bool:  # those of other tests are let go of with the next event
        link = socket.create_connection(("127.0.0.1", gateway.admin_port), timeout=60)
        link.sendall(b"GET /status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if link.recv(15) == b"HTTP/1.1 200 OK":
            links.append(link)
        else:
            link.close()
        return len(links) == STREAMS

    try:
        wait_for(taken, f"{STREAMS} who watch")
        assert gateway.ask("/status/stream").status == 503
        assert gateway.ask("/livez").status == 200
    finally:
        for link in links:
            link.close()

    def room() -> bool:
        with streaming(gateway.admin_port) as events:
            return next(events, None) is not None

    wait_for(room, "room for one who watches")


def test_with_workers_all_are_told_of(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with RedisServer(tmp_path) as redis:
        made = policy(tmp_path, upstream, store={"url": redis.url})
        with AdminGateway(tmp_path, made, arguments=("--workers", "2")) as gateway:
            seen: set[str] = set()
            rows: dict[str, dict[str, Any]] = {}
            with streaming(gateway.admin_port) as events:
                for _, event in zip(range(60), events, strict=False):
                    rows |= {row["id"]: row for row in event["denials"]}
                    seen = {identity.partition("-")[0] for identity in rows}
                    if len(seen) == 2:
                        break
                    for _ in range(8):
                        gateway.get("/api/v1/users/7")
            assert len(seen) == 2
            assert [one["accepting"] for one in event["processes"]] == [True, True]
            for process in seen:
                row = next(row for row in rows.values() if row["id"].startswith(f"{process}-"))
                told = gateway.ask(f"/status/denials/{row['id']}").json
                assert told["stages"][-1]["reason"] == "credential-missing"
                edit = {"method": "GET", "target": "/public", "fields": told["fields"]}
                assert explained(gateway, row["id"], **edit).json["decision"] == "admit"


def test_beyond_this_machine_a_secret_is_asked_for(tmp_path: Path, upstream: RecordingUpstream) -> None:
    secret = "a-secret-of-operators-that-is-long-enough"
    gateway = AdminGateway(tmp_path, policy(tmp_path, upstream), environment={"CONSOLE": secret})
    made = gateway.with_admin(policy(tmp_path, upstream))
    made["admin"]["token_env"] = "CONSOLE"
    gateway.policy_path.write_text(json.dumps(made))
    basic = base64.b64encode(f"anybody:{secret}".encode()).decode()
    wrong = base64.b64encode(b"anybody:wrong").decode()
    with gateway:
        for path in ("/status", "/status/stream", "/status/denials/1-1"):
            for field in (
                None,
                "Bearer wrong",
                f"Basic {wrong}",
                "Basic !",
                f"Digest {secret}",
                "Bearer",
                f"Basic {secret}",
            ):
                answer = gateway.ask(path, **({} if field is None else {"Authorization": field}))
                assert answer.status == 401, (path, field)
                assert answer.all("www-authenticate") == ['Basic realm="mitmgate", charset="UTF-8"', "Bearer"]
                assert secret not in answer.body.decode()
        assert gateway.ask("/status", Authorization=f"Bearer {secret}").status == 200
        assert gateway.ask("/status", Authorization=f"Basic {basic}").status == 200
        with streaming(gateway.admin_port, Authorization=f"Basic {basic}") as events:
            assert next(events)["status"]["ready"]
        assert gateway.ask("/readyz").status == 200
        assert gateway.ask("/metrics").status == 200


@pytest.mark.parametrize(
    ("address", "is_it"),
    [
        *((address, True) for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1")),
        *((address, False) for address in ("10.0.0.1", "::ffff:10.0.0.1", "0.0.0.0", "", None, "localhost")),
    ],
)
def test_who_is_this_machine(address: str | None, is_it: bool) -> None:
    assert _is_this_machine(address) is is_it


def test_one_who_does_not_read_is_dropped_and_nobody_else_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmgate.admin.pages.PATIENCE", 0.5)
    monkeypatch.setattr("mitmgate.admin.feed.EVERY", 0.01)
    filler = {"turns": [{"time": "", "why": "x" * 500_000}]}

    async def ask() -> Report:
        return Report({})

    async def inquire(question: Mapping[str, object], process: int | None = None) -> Mapping[int, Mapping[str, object]]:
        return {1: filler}

    async def run() -> None:
        listener = Listener("127.0.0.1", bind("127.0.0.1", 0), ask, None, inquire)
        listener.start()
        port = int(listener.address.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        writer.write(b"GET /status/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        feed = listener._feed
        async with asyncio.timeout(60):
            while feed.looking == 0:  # noqa: ASYNC110 - the listener tells nobody
                await asyncio.sleep(0.01)
            # It reads nothing: what it is told fills its socket, and then it is dropped.
            while feed.looking:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        writer.close()
        await listener.close()

    asyncio.run(run())


def test_those_who_have_left_take_no_turn() -> None:
    """They count as no connection any more, so that any number of them may wait."""
    asked, held = 0, asyncio.Event()

    async def ask() -> Report:
        nonlocal asked
        asked += 1
        await held.wait()
        return Report({})

    async def run() -> None:
        listener = Listener("127.0.0.1", bind("127.0.0.1", 0), ask)
        listener.start()
        connections = listener._server._connections
        port = int(listener.address.rpartition(":")[2])
        async with asyncio.timeout(60):
            for path in ("/metrics", "/status", "/metrics", "/metrics"):
                before = set(connections)
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                while not (connections - before and asked):  # noqa: ASYNC110 - a listener of tornado tells nobody
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0)
                writer.close()
            while connections:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            held.set()
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        assert asked == 2, "the first, which had its turn, and the one that stayed"
        await listener.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "said", ["", "GET /livez HTTP/1.1\r\n", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1"]
)
def test_those_who_say_nothing_keep_nobodys_probe_away(said: str) -> None:
    """Once there are as many connections as may be, the one that is silent for longest goes."""

    async def ask() -> Report:
        return Report({})

    async def probe(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        line = await reader.readline()
        writer.close()
        return line

    async def run() -> None:
        listener = Listener("127.0.0.1", bind("127.0.0.1", 0), ask)
        listener.start()
        port = int(listener.address.rpartition(":")[2])
        async with asyncio.timeout(60):
            silent = []
            for _ in range(CONNECTIONS + 20):
                silent.append(await asyncio.open_connection("127.0.0.1", port))
                silent[-1][1].write(said.encode())
            assert [await probe(port) for _ in range(3)] == [b"HTTP/1.1 200 OK\r\n"] * 3
            assert await silent[0][0].read() == b""
        assert len(listener._server._connections) <= CONNECTIONS
        for _, writer in silent:
            writer.close()
        await listener.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/status/denials/1-1/explain"),
        *(("GET", path) for path in ("/status/denials/1-1", "/status", "/metrics")),
    ],
)
def test_those_who_ask_without_end_leave_the_loop_to_others(method: str, path: str) -> None:
    """A page at a time, and between two of them everything else has at least one turn; probes do not wait for it."""
    many, turns, asked_at = 16, 0, []
    held = asyncio.Event()

    async def work() -> None:
        asked_at.append(turns)
        if len(asked_at) == 1:
            await held.wait()

    async def ask() -> Report:
        await work()
        return Report({})

    async def inquire(question: Mapping[str, object], process: int | None = None) -> Mapping[int, Mapping[str, object]]:
        await work()
        return {1: {}}

    async def turning() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def request_of(port: int, line: str, body: str = "") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        fields = (
            f"Host: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(f"{line} HTTP/1.1\r\n{fields}\r\n\r\n{body}".encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def run() -> None:
        listener = Listener("127.0.0.1", bind("127.0.0.1", 0), ask, None, inquire)
        listener.start()
        port = int(listener.address.rpartition(":")[2])
        other = asyncio.create_task(turning())
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            body = "{}" if method == "POST" else ""
            asking = [group.create_task(request_of(port, f"{method} {path}", body)) for _ in range(many)]
            while not asked_at or len(asked_at) + len(listener._server._connections) < many:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            assert (await request_of(port, "GET /livez")).startswith(b"HTTP/1.1 200")
            assert len(asked_at) == 1, "the others wait for it"
            held.set()
        assert all(task.result().startswith(b"HTTP/1.1 200") for task in asking)
        other.cancel()
        await listener.close()

    asyncio.run(run())
    assert len(asked_at) == many
    assert all(later > earlier for earlier, later in pairwise(asked_at)), "nothing else ran between two"


def test_nothing_is_asked_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmgate.admin.feed.EVERY", 0.01)
    monkeypatch.setattr("mitmgate.admin.feed.LINGER", 0.05)
    asked = 0

    async def ask() -> Report:
        nonlocal asked
        asked += 1
        return Report({})

    async def inquire(question: Mapping[str, object], process: int | None = None) -> Mapping[int, Mapping[str, object]]:
        return {}

    async def run() -> None:
        feed = Feed(ask, inquire)
        await asyncio.sleep(0.05)
        assert asked == 0
        with feed.look():
            told = await feed.after(0)
            assert told is not None
        assert feed._running is not None
        await asyncio.wait_for(feed._running, 60)
        stopped = asked
        await asyncio.sleep(0.05)
        assert asked == stopped
        with feed.look():
            assert await feed.after(told[0]) is not None, "it begins again"
        await feed.close()
        assert await feed.after(10**9) is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("buckets", "part", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 0.5),
        ([0, 10, 0], 0.5, 1.5),
        ([0, 0, 5], 0.5, 2.0),
        ([5, 5, 0], 0.95, 1.9),
    ],
)
def test_quantiles(buckets: list[float], part: float, expected: float | None) -> None:
    assert quantile(buckets, (1.0, 2.0), part) == expected
