"""What a real gateway exports: as many requests as its audit file has, no label that a client made, every name told."""

import contextlib
import json
import re
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mitmgate.admin.families import FAMILIES
from mitmgate.admin.metrics import METHODS, status_label
from tests.admin.asking import AdminGateway, admin_gateway
from tests.live.harness import ROOT, mint, policy
from tests.live.harness_http import free_port, raw_request, wait_for
from tests.live.harness_upstream import Raw, Recorded, RecordingUpstream, Reply
from tests.live.test_reasons import DENIED, made
from tests.protocol.harness import crowd


def requests_of_the_audit(path: Path) -> Counter[tuple[str, ...]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    events = [event for event in map(json.loads, lines) if event["event"] == "request"]
    return Counter(
        (
            event.get("route", "-"),
            event["method"] if event["method"] in METHODS else "other",
            status_label(event["status"]),
            event["reason"],
        )
        for event in events
    )


def requests_of(gateway: AdminGateway) -> Counter[tuple[str, ...]]:
    names = ("route", "method", "status", "reason")
    return Counter(
        {
            tuple(dict(labels)[name] for name in names): int(value)
            for (sample, labels), value in gateway.samples().items()
            if sample == "mitmgate_requests_total"
        }
    )


def answer(request: Recorded) -> Reply | Raw:
    """Be an upstream with moods, by path."""
    if "broken" in request.target:
        return Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    if "teapot" in request.target:
        return Reply(status=418)
    if "odd" in request.target:
        return Reply(status=299)
    if "hang" in request.target:
        return Reply(delay=0.3)
    return Reply(chunked="chunked" in request.target)


def test_as_many_requests_as_audit_events_after_a_mixed_load(tmp_path: Path) -> None:
    with RecordingUpstream(answer) as upstream:
        dead = f"http://127.0.0.1:{free_port()}"
        with AdminGateway(tmp_path, made(tmp_path, upstream.url, dead)) as gateway:
            token = mint()

            def proxied(at: int) -> None:
                for path in (f"/api/v1/users/{at}", f"/api/v1/orders/chunked-{at}", "/public", "/health", f"/no/{at}"):
                    gateway.get(path, token=token)
                gateway.request("POST", "/api/v1/users", token=token, body=b"x" * 10)
                gateway.request("BREW", "/public")

            def refused(make: Any) -> None:
                raw_request(gateway.port, make(), until_close=False)

            def left(at: int) -> None:
                with socket.create_connection(("127.0.0.1", gateway.port)) as link:
                    link.sendall(
                        b"GET /api/v1/orders/hang HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\n\r\n"
                        % token.encode()
                    )
                    wait_for(lambda: sum("hang" in r.target for r in upstream.requests) > at, "the request upstream")
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # for good

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(proxied, range(12)))
                list(pool.map(refused, DENIED.values()))
            for path in ("broken", "teapot", "odd"):
                with contextlib.suppress(Exception):  # half an answer is no answer
                    gateway.get(f"/api/v1/orders/{path}", token=token)
            for at in range(3):
                left(at)
            expected = 12 * 7 + len(DENIED) + 3 + 3
            audit = tmp_path / "audit.jsonl"
            wait_for(lambda: requests_of_the_audit(audit).total() >= expected, "the audit events")
            wait_for(lambda: requests_of(gateway).total() >= expected, "the counters")
            written, counted = requests_of_the_audit(audit), requests_of(gateway)
            assert counted == written
            assert counted.total() == expected
            reasons = {labels[3] for labels in counted}
            assert {reason.code for reason in DENIED} <= reasons
            assert {"ok", "health", "client-closed"} <= reasons
            found = gateway.samples()
            assert (
                sum(value for (name, _), value in found.items() if name == "mitmgate_request_duration_seconds_count")
                == expected
            )
            assert gateway.value("mitmgate_requests_in_flight") == 0
            wait_for(  # a record is in the file a moment before its batch is counted
                lambda: gateway.value("mitmgate_audit_written_total", sink="file:audit.jsonl") >= expected,
                "the count of what was written",
            )


def test_no_client_makes_a_label(tmp_path: Path, upstream: RecordingUpstream) -> None:
    members = policy(tmp_path, upstream)
    members["rate_limits"]["per-user"]["limit"] = 100000
    with AdminGateway(tmp_path, members) as gateway:

        def burst(first: int) -> None:
            for at in range(first, first + 125):
                token = mint(f"user-{at}", tenant=f"tenant-{at}")
                method = "M" + "".join(chr(ord("A") + int(digit)) for digit in f"{at:03d}")
                gateway.request(method, f"/api/v1/users/{at}?q={at}", token=token, host=f"h{at}.example")
                gateway.request("GET", f"/path-{at}/x", headers={"User-Agent": f"agent-{at}"})

        burst_of_one = set(gateway.samples())
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(burst, range(0, 500, 125)))
        wait_for(lambda: requests_of(gateway).total() == 1000, "all requests to be counted")
        assert requests_of(gateway) == {
            ("users", "other", "200", "ok"): 500,
            ("-", "GET", "401", "credential-missing"): 500,
        }
        made_by_load = set(gateway.samples()) - burst_of_one
        buckets = sum(len(family.bounds) + 3 for family in FAMILIES if family.kind == "histogram")
        assert len(made_by_load) < 3 * buckets
        text = gateway.ask("/metrics").body.decode()
        assert not re.search(r"user-\d|tenant-\d|path-\d|agent-\d|M[A-J]{3}|h\d+\.example", text)


def test_connections_and_requests_are_counted_while_they_last(tmp_path: Path) -> None:
    held = threading.Event()
    with (
        RecordingUpstream(Reply(until=held)) as upstream,
        admin_gateway(tmp_path, upstream) as gateway,
        crowd(gateway.port, 5) as links,
    ):
        links[0].sendall(b"GET /public HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for(lambda: gateway.value("mitmgate_connections") == 5, "five connections")
        wait_for(lambda: gateway.value("mitmgate_requests_in_flight") == 1, "one request")
        held.set()
        assert links[0].recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: gateway.value("mitmgate_requests_in_flight") == 0, "its end")
        for link in links:
            link.close()
        wait_for(lambda: gateway.value("mitmgate_connections") == 0, "their end")


def test_a_circuit_that_opens_shows(tmp_path: Path, upstream: RecordingUpstream) -> None:
    members = policy(tmp_path, upstream)
    members["upstreams"]["users"]["circuit"] = {"failures": 2, "open_for": "1h"}
    upstream.reply = Reply(status=503)
    with AdminGateway(tmp_path, members) as gateway:
        labels = {"upstream": "users", "endpoint": upstream.url}
        assert gateway.value("mitmgate_circuit_state", **labels, state="closed") == 1
        for _ in range(3):
            gateway.get("/public")
        wait_for(lambda: gateway.value("mitmgate_circuit_state", **labels, state="open") == 1, "the circuit to open")
        assert gateway.value("mitmgate_circuit_state", **labels, state="closed") == 0
        (row,) = [row for row in gateway.status()["circuits"] if row["upstream"] == "users"]
        assert row["state"] == "open"


def test_a_shadow_s_differences_are_exported(tmp_path: Path, upstream: RecordingUpstream) -> None:
    candidate = policy(tmp_path, upstream)
    candidate["routes"][2] |= {"networks": {"deny": ["127.0.0.0/8"]}}
    path = tmp_path / "candidate.json"
    path.write_text(json.dumps(candidate))
    with AdminGateway(tmp_path, policy(tmp_path, upstream), arguments=("--shadow", str(path))) as gateway:
        assert gateway.get("/public").status == 200
        labels = {"change": "tightened", "reason": "address-denied"}
        wait_for(lambda: gateway.value("mitmgate_shadow_differences_total", **labels) == 1, "the difference")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, set[str]]]:
    """Return the families of a live gateway: kind and labels by the name under which they are queried."""
    with RecordingUpstream() as upstream, admin_gateway(tmp_path_factory.mktemp("exported"), upstream) as gateway:
        gateway.get("/api/v1/users/1", token=mint())
        text = gateway.ask("/metrics").body.decode()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    suffix = {"counter": "_total", "info": "_info"}
    labels = {family.name: set(family.labels) for family in FAMILIES}
    return {name + suffix.get(kind, ""): (kind, labels[name]) for name, kind in kinds.items()}


def test_the_page_names_every_metric_that_is_exported_and_no_other(
    exported: dict[str, tuple[str, set[str]]],
) -> None:
    page = (ROOT / "docs" / "admin.md").read_text()
    rows = re.findall(r"^\| `((?:mitmgate|process)_\w+)` \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(told) == len(rows)
    assert told == exported


def test_labels_of_live_samples_are_those_of_the_table(tmp_path: Path, upstream: RecordingUpstream) -> None:
    by_name = {family.full_name: family for family in FAMILIES}
    with admin_gateway(tmp_path, upstream) as gateway:
        gateway.get("/api/v1/users/1", token=mint())
        for name, labels in gateway.samples():
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            family = by_name[base]
            assert {label for label, _ in labels} - {"le"} == set(family.labels)
