"""Stages of the operator's own in every host: the example does what it says, and 46 broken ones admit nothing."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import ROOT, Front, Gateway, audit_events, mint, policy, route, write_policy
from tests.live.harness_http import Answered, raw_request, wait_for
from tests.live.harness_upstream import Raw, RecordingUpstream, Reply
from tests.live.test_reload import events
from tests.own.stages.fragile import HARMS, RESPONSE_HARMS

HASTY = frozenset({"sleeps", "waits", "waits for nothing", "will not be cancelled"})
SECRETIVE = Reply(body=b"the service's own words", headers=(("X-Secret", "of the service"),))
BROWSER = {"User-Agent": "Firefox/140"}


def with_stages(directory: Path, upstream: RecordingUpstream | str) -> dict[str, Any]:
    """Make a policy with the example, and a stage that can be made to fail, before and after authentication."""
    stages = directory / "stages"
    stages.mkdir(exist_ok=True)
    for file in (ROOT / "docs/examples/bot_guard.py", Path(__file__).parent / "stages/fragile.py"):
        shutil.copy(file, stages)
    made = policy(directory, upstream)
    made["rate_limits"]["per-family"] = {"limit": 3, "window": "10m", "key": "stage:bot-guard:family"}
    made["stages"] = {
        "witness": {"use": "stages/fragile.py:Witness", "after": "hasty"},
        "responder": {"use": "stages/fragile.py:Responder", "after": "witness"},
        "bot-guard": {"use": "stages/bot_guard.py:BotGuard", "after": "network-access", "deny": ["curl/*"]},
        "fragile": {"use": "stages/fragile.py:Fragile", "after": "authorization", "timeout": "1h"},
        "hasty": {"use": "stages/fragile.py:Hasty", "after": "authorization", "timeout": "100ms"},
    }
    return route(made, "public", rate_limits=["per-family"], websocket=True)


class Running:
    """A gateway, what is behind it, and what it has recorded."""

    def __init__(self, gateway: Gateway, upstream: RecordingUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.asked = 0

    def ask(self, target: str, headers: dict[str, str], **options: Any) -> tuple[Answered, dict[str, Any]]:
        """Ask, and return the answer with its event."""
        answered = self.gateway.get(target, headers=headers, **options)
        self.asked += 1
        return answered, audit_events(self.gateway.policy_path.parent / "audit.jsonl", self.asked)[-1]

    @property
    def words(self) -> str:
        """All that the process has said."""
        return self.gateway.log + self.gateway.stdout.read_text(errors="replace")


@pytest.fixture(scope="module", params=["serve", "web", "stock"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    front: Front = request.param
    directory = tmp_path_factory.mktemp(front)
    with RecordingUpstream() as upstream:
        path = write_policy(directory, with_stages(directory, upstream))
        arguments = ("--record", str(directory / "traffic.mitm")) if front == "serve" else ()
        with Gateway(path, host=front, arguments=arguments) as gateway:
            yield Running(gateway, upstream)


def test_the_example_refuses_bots_and_names_the_others_to_service_and_limit(running: Running) -> None:
    running.upstream.forget()
    answered, event = running.ask("/public", {"User-Agent": "curl/8.5"})
    assert (answered.status, answered.reason) == (403, "bot-refused")
    assert answered.json["title"] == "Automated client refused"
    assert answered.json["detail"] == "This service is for people."
    assert (event["stage"], event["reason"], event["decision"]) == ("bot-guard", "bot-refused", "deny")
    answered, event = running.ask("/public", {})
    assert (answered.status, answered.reason) == (403, "agent-missing")
    running.upstream.assert_saw_nothing()
    forged = {"X-Agent-Family": "Googlebot", "X_Agent_Family": "Googlebot", "X.Agent.Family": "Googlebot"}
    statuses = [running.ask("/public", BROWSER | forged)[0].status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert running.ask("/public", {"User-Agent": "Lynx/2.9"})[0].status == 200
    running.upstream.assert_saw_only(4)
    for seen in running.upstream.requests:
        sent = [
            value
            for name, value in seen.headers
            if name.lower().replace("_", "-").replace(".", "-") == "x-agent-family"
        ]
        assert sent in (["Firefox"], ["Lynx"])


@pytest.mark.parametrize("name", ["fragile", "hasty"])
def test_a_stage_of_ones_own_that_does_wrong_denies(running: Running, name: str) -> None:
    token = mint()
    running.upstream.forget()
    harms = [harm for harm in HARMS if (harm in HASTY) is (name == "hasty")]
    for harm in harms:
        answered, event = running.ask("/api/v1/users", BROWSER | {"X-Harm": harm, "X-To": name}, token=token)
        assert (answered.status, answered.reason) == (503, "stage-error"), (harm, answered)
        assert b"harm" not in answered.body
        assert (event["decision"], event["stage"], event["reason"]) == ("deny", name, "stage-error"), harm
        assert "observed" not in event, harm  # the stage behind it was not asked
    wait_for(lambda: f"stage {name} failed" in running.words, "it to be told")
    running.upstream.assert_saw_nothing()
    answered, event = running.ask("/api/v1/users", BROWSER, token=token)
    assert answered.status == 200
    assert event["observed"] == ["witness/witness-refused"]
    running.upstream.assert_saw_only(1)


def test_what_stands_behind_a_denial_is_not_asked(running: Running) -> None:
    """A stage can't undo a denial: that of authentication comes first."""
    running.upstream.forget()
    before = running.words.count("failed")
    answered, event = running.ask("/api/v1/users", BROWSER | {"X-Harm": "raises", "X-To": "fragile"})
    assert (answered.status, event["stage"]) == (401, "authentication")
    assert running.words.count("failed") == before
    running.upstream.assert_saw_nothing()


def test_a_stage_marks_responses_and_tells_of_them(running: Running) -> None:
    running.upstream.reply = SECRETIVE
    answered, _ = running.ask("/public", {"User-Agent": "Dillo/3", "X-Respond": "marks"})
    assert (answered.status, answered.body) == (200, b"the service's own words")
    assert (answered.all("x-marked"), answered.all("x-secret")) == (["yes"], [])
    audit = running.gateway.policy_path.parent / "audit.jsonl"
    wait_for(lambda: bool(events(audit, "stage")), "the event of the stage")
    (event,) = events(audit, "stage")
    assert (event["stage"], event["request_id"]) == ("responder", answered.one("x-request-id"))
    assert event["said"] == {"status": 200, "secret": True, "route": "public"}
    answered, _ = running.ask("/public", {"User-Agent": "Dillo/3"})
    assert (answered.all("x-marked"), answered.all("x-secret")) == ([], ["of the service"])


def test_a_stage_that_does_wrong_with_a_response_keeps_it_from_the_client(running: Running) -> None:
    """The service has seen the request, and the event says that the gateway has failed on its answer."""
    running.upstream.reply = SECRETIVE
    token = mint()
    for harm in RESPONSE_HARMS:
        answered, event = running.ask("/api/v1/users", BROWSER | {"X-Respond": harm}, token=token)
        assert (answered.status, answered.reason) == (503, "stage-error"), harm
        assert b"own words" not in answered.body
        assert not answered.all("x-secret") + answered.all("set-cookie") + answered.all("x-marked")
        assert (event["decision"], event["outcome"], event["reason"]) == ("admit", "failed", "stage-error"), harm
    wait_for(lambda: "stage responder failed on a response" in running.words, "it to be told")
    assert running.ask("/api/v1/users", BROWSER, token=token)[0].status == 200


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"X-Respond": "raises"}, "stage responder failed on a response"),
        ({"X-Harm": "raises", "X-To": "fragile"}, "stage fragile failed"),
    ],
)
def test_a_stage_that_fails_on_every_request_does_not_flood_the_log(
    running: Running, fields: dict[str, str], words: str
) -> None:
    token, before, began = mint(), running.words.count(words), time.monotonic()
    for _ in range(40):
        assert running.gateway.get("/api/v1/users", token=token, headers=BROWSER | fields).reason == "stage-error"
        running.asked += 1
    told = running.words.count(words) - before
    assert told <= 1 + time.monotonic() - began


def test_a_websocket_that_a_stage_fails_on_is_not_opened(running: Running) -> None:
    accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, section 1.3
    opened = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accept}\r\n\r\n"
    running.upstream.reply = Raw(opened.encode(), close=False)
    fields = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Version: 13\r\nUser-Agent: Dillo/3\r\n"
    fields += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Respond: raises\r\n"
    answered = raw_request(running.gateway.port, f"GET /public HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode())
    assert answered.startswith(b"HTTP/1.1 503 "), answered
    assert b'"reason":"stage-error"' in answered
    running.asked += 1
    event = audit_events(running.gateway.policy_path.parent / "audit.jsonl", running.asked)[-1]
    assert (event["outcome"], event["reason"]) == ("failed", "stage-error")
