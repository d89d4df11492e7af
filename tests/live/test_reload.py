"""A changed policy takes effect while the gateway runs; a bad one does not, and both are on record."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.live.harness import Gateway, Host, mint, policy, route, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_changed_file_takes_effect(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream)), host=host) as gateway:
        assert gateway.get("/public").status == 200
        write_policy(tmp_path, route(policy(tmp_path, upstream), "public", networks={"deny": ["127.0.0.0/8"]}))
        wait_for(lambda: gateway.get("/public").status == 403, "the new policy to decide")
        wait_for(lambda: bool(events(tmp_path / "audit.jsonl", "policy-reloaded")), "the event of the reload")


def test_a_bad_file_keeps_the_old_policy(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream)), host=host) as gateway:
        write_policy(tmp_path, route(policy(tmp_path, upstream), "public", upstream="nowhere"))
        wait_for(lambda: bool(events(tmp_path / "audit.jsonl", "policy-rejected")), "the event of the rejection")
        (rejected,) = events(tmp_path / "audit.jsonl", "policy-rejected")
        assert "nowhere" in str(rejected["problems"])
        assert "nowhere" in gateway.log
        assert gateway.get("/public").status == 200
        assert gateway.get("/api/v1/users", token=mint()).status == 200


def test_sighup_reloads(tmp_path: Path, upstream: RecordingUpstream) -> None:
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream))) as gateway:
        write_policy(tmp_path, route(policy(tmp_path, upstream), "public", networks={"deny": ["127.0.0.0/8"]}))
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda: gateway.get("/public").status == 403, "the new policy to decide")
        upstream.forget()
        assert gateway.get("/public").status == 403
        upstream.assert_saw_nothing()


def large(directory: Path, upstream: RecordingUpstream, version: str) -> dict[str, Any]:
    """A policy whose loading takes some time, and whose version shows at both ends of a request."""
    made = policy(directory, upstream, response_headers={"set": {"X-Answered-By": version}})
    route(made, "public", rewrite={"set": {"X-Sent-By": version}})
    for number in range(400):
        match = {"prefix": f"/services/{number}", "methods": ["GET"]}
        require = {"scopes_all": [f"scope.{number}"], "when": 'request.method != "DELETE"'}
        made["routes"].append({"name": f"r{number}", "match": match, "upstream": "users", "require": require})
    return made


def test_requests_are_answered_while_a_policy_loads(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    """Each by the old policy or by the new one as a whole, and by the old one never after the new."""
    with Gateway(write_policy(tmp_path, large(tmp_path, upstream, "one")), host=host) as gateway:
        assert gateway.get("/public").one("x-answered-by") == "one"
        upstream.forget()
        write_policy(tmp_path, large(tmp_path, upstream, "two"))
        gateway.process.send_signal(signal.SIGHUP)
        versions: list[str | None] = []

        def ask() -> bool:
            versions.append(gateway.get("/public").one("x-answered-by"))
            return versions[-1] == "two"

        wait_for(ask, "the new policy to decide", 60)
        # A loop that loads by itself would answer one request, or two, before it loads.
        assert len(versions) > 10
        assert set(versions[:-1]) == {"one"}
        assert [seen.one("x-sent-by") for seen in upstream.requests] == versions


def test_a_later_file_is_not_overtaken(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> None:
    """Written while an earlier one is being read, and much smaller; nobody but the signal says so."""
    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream)), host=host) as gateway:
        write_policy(tmp_path, large(tmp_path, upstream, "large"))
        gateway.process.send_signal(signal.SIGHUP)
        last = policy(tmp_path, upstream, response_headers={"set": {"X-Answered-By": "last"}})
        write_policy(tmp_path, last, "last.yaml").rename(tmp_path / "policy.yaml")
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda: gateway.get("/public").one("x-answered-by") == "last", "the last file to decide", 60)
        wait_for(lambda: len(events(tmp_path / "audit.jsonl", "policy-reloaded")) >= 1, "the event")
        for _ in range(20):
            assert gateway.get("/public").one("x-answered-by") == "last"


def test_a_pipe_in_the_policys_place_stops_nothing(tmp_path: Path, upstream: RecordingUpstream) -> None:
    """It is waited for beside the requests, and refused; the next good file counts."""
    path = write_policy(tmp_path, policy(tmp_path, upstream))
    with Gateway(path) as gateway:
        path.unlink()
        os.mkfifo(path)
        gateway.process.send_signal(signal.SIGHUP)
        answered = 0
        while "is a pipe that was not written" not in gateway.log:
            assert gateway.get("/public").status == 200
            answered += 1
        assert answered > 10
        wait_for(lambda: len(events(tmp_path / "audit.jsonl", "policy-rejected")) == 1, "the event of the rejection")
        good = policy(tmp_path, upstream, response_headers={"set": {"X-Answered-By": "good"}})
        write_policy(tmp_path, good, "good.yaml").rename(path)
        wait_for(lambda: gateway.get("/public").one("x-answered-by") == "good", "the good file to decide")
