"""The judge and the generator themselves: what is wrong is found, and a seed says the same again."""

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.attack.fuzz import shown, smaller
from tests.attack.generator import Conversation, generate
from tests.attack.judge import violations
from tests.attack.origins import Logged, NodeOrigin
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import PATIENCE

Trail = list[dict[str, Any]]
Log = list[Logged]
TOKENS = {"alice": "eyJ" + "a" * 300, "bob": "eyJ" + "b" * 300}


def logged(user: str, request_id: str, **members: Any) -> Logged:
    headers = (("X-Request-ID", request_id), ("X-User-ID", user))
    one = Logged("node", "POST", f"/node/auto/{user}/1", headers, complete=True, answered=True, length=3, sha256="")
    return replace(one, **members)


def recorded(user: str, request_id: str, **members: Any) -> dict[str, Any]:
    event = {"request_id": request_id, "method": "POST", "path": f"/node/auto/{user}/1", "user": user}
    return event | {"decision": "admit", "outcome": "proxied", "upstream_ms": 1.0, "bytes_in": 3} | members


def test_agreement_is_no_violation() -> None:
    refused = recorded("alice", "3", decision="deny", outcome="denied")
    del refused["upstream_ms"]
    trail = [recorded("alice", "1"), recorded("bob", "2"), refused]
    assert violations(trail, [logged("bob", "2"), logged("alice", "1")]) == []


WRONG: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], Callable[[Logged], Log], str]] = {
    "smuggled": (dict, lambda one: [one, replace(one, headers=())], "no audit event has"),
    "forged id": (dict, lambda one: [one, replace(one, headers=(("X-Request-ID", "9"),))], "no audit event has"),
    "repeated": (dict, lambda one: [one, one], "with one id"),
    "lost": (dict, lambda one: [], "no origin logged"),
    "not admitted": (lambda event: event | {"decision": "deny"}, lambda one: [one], "not admitted"),
    "method": (dict, lambda one: [replace(one, method="OST")], "method differs"),
    "target": (dict, lambda one: [replace(one, url="/node/auto/alice/2")], "target differs"),
    "query": (lambda event: event | {"query": "x=1"}, lambda one: [one], "target differs"),
    "user": (lambda event: event | {"user": "bob"}, lambda one: [one], "principal differs"),
    "anonymous": (dict, lambda one: [replace(one, headers=one.headers[:1])], "principal differs"),
    "credential": (dict, lambda one: [replace(one, headers=(*one.headers, ("Authorization", "x")))], "credential"),
    "length": (dict, lambda one: [replace(one, length=4)], "length differs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_disagreement_is_a_violation(name: str) -> None:
    event, log, words = WRONG[name]
    found = violations([event(recorded("alice", "1"))], log(logged("alice", "1")))
    assert any(words in one for one in found), found


def test_request_sent_again_is_one_that_was_not_answered_and_can_be_repeated() -> None:
    again = [logged("alice", "1", method="PUT", answered=False), logged("alice", "1", method="PUT")]
    assert violations([recorded("alice", "1", method="PUT")], again) == []
    posted = [replace(one, method="POST") for one in again]
    assert violations([recorded("alice", "1")], posted) != []


def test_two_events_of_one_id_are_a_violation() -> None:
    assert violations([recorded("alice", "1")] * 2, [logged("alice", "1")]) != []


def test_seed_makes_the_same_conversation_again() -> None:
    made = [generate(f"1:{number}.0", tls=True, tokens=TOKENS) for number in range(50)]
    assert made == [generate(f"1:{number}.0", tls=True, tokens=TOKENS) for number in range(50)]
    assert len({shown([one]) for one in made}) == 50
    count = Counter(plan.valid for one in made for plan in one.plans)
    assert count[True] > 20
    assert count[False] > 20


def test_failing_round_is_made_smaller() -> None:
    conversations = [generate(f"1:1.{place}", tls=True, tokens=TOKENS) for place in range(8)]
    plan = conversations[5].plans[0]
    needed = plan.pieces[len(plan.pieces) // 2]

    def fails(tried: list[Conversation]) -> bool:
        return any(piece is needed for one in tried for plan in one.plans for piece in plan.pieces)

    (kept,) = smaller(conversations, fails)
    assert [plan.pieces for plan in kept.plans] == [[needed]]


@pytest.mark.parametrize(
    ("before", "read", "method"),
    [
        (b"OPTIONS / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", b"9088DELETE /b", "ELETE"),
        (b"", b"FOO /b", "FOO"),
        (b"", b"PATCHY /b", "PATCHY"),
        (b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", b"..PROPFINDER /b", "PROPFINDER"),
    ],
)
def test_node_tells_a_method_that_it_does_not_know_from_the_body_before_it(
    tmp_path: Path, before: bytes, read: bytes, method: str
) -> None:
    """Before: what was read together with a head, the rest of a body, was taken for a part of its method."""
    with NodeOrigin(tmp_path) as origin, socket.create_connection(("127.0.0.1", origin.port)) as link:
        link.settimeout(PATIENCE)
        if before:
            link.sendall(before)
            wait_for(lambda: '"request"' in origin.log.read_text(), "the head to be read")
        link.sendall(read + b" HTTP/1.1\r\nHost: x\r\nX-Request-ID: one\r\n\r\n")
        while link.recv(65536):
            pass
        found = [logged for logged in origin.requests() if logged.url == "/b"]
        assert [logged.method for logged in found] == [method]
        assert dict(found[0].headers)["X-Request-ID"] == "one"
