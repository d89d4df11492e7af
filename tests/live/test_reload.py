"""A changed policy takes effect while the gateway runs; a bad one does not, and both are on record."""

import json
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
