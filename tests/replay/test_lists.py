"""What `explain` and `replay` know of real API keys and tokens: the lists that are files, and that they say so."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mitmgate.cli import main
from tests.live.harness import SECRET, mint, policy, write_policy

FIELD = "X-API-Key"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)


def written(directory: Path, keys: dict[str, Any], revocation: dict[str, Any], **members: Any) -> Path:
    made = policy(directory, "http://127.0.0.1:9", api_keys=keys, revocation=revocation, **members)
    made["routes"].append({"name": "key", "match": {"prefix": "/key"}, "upstream": "users", "auth": "api-key"})
    return write_policy(directory, made)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out.strip()


def explained(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> tuple[str, list[str]]:
    told = json.loads(said(capsys, "explain", "--policy", str(path), "--format", "json", *words))
    notes = told.get("notes", [])
    assert all(note in said(capsys, "explain", "--policy", str(path), *words) for note in notes)
    return told["decision"], notes


def test_lists_in_files_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, {"file": "keys.jsonl"}, {"file": "revoked.jsonl"})
    policy_of, (keys, revoked) = ("--policy", str(path)), (tmp_path / "keys.jsonl", tmp_path / "revoked.jsonl")
    token = mint("alice", scope="users.read")
    of_token = ("--token", token, "GET", "/api/v1/users")
    assert explained(capsys, path, *of_token) == ("admit", [])
    assert not revoked.exists(), "to explain makes no list"
    key = said(capsys, "key", "add", *policy_of, "--principal", "job")
    of_key = ("--header", f"{FIELD}: {key}", "GET", "/key")
    assert explained(capsys, path, *of_key) == ("admit", [])
    said(capsys, "key", "revoke", *policy_of, key)
    assert explained(capsys, path, *of_key) == ("deny api-key-revoked", [])
    keys.write_bytes(b"{}\n")
    decision, (note,) = explained(capsys, path, *of_key)
    assert (decision, "keys.jsonl can't be read: line 1" in note) == ("deny api-keys-unavailable", True)
    said(capsys, "revoke", *policy_of, "--subject", "alice")
    assert explained(capsys, path, *of_token) == ("deny token-revoked", [])
    said(capsys, "revoke", *policy_of, "--subject", "alice", "--lift")
    assert explained(capsys, path, *of_token) == ("admit", [])
    revoked.write_bytes(b"?\n")
    decision, (note,) = explained(capsys, path, *of_token)
    assert (decision, "revoked.jsonl can't be read" in note) == ("admit", True)
    assert explained(capsys, path, "GET", "/public") == ("admit", [])


def test_redis_is_not_asked_and_a_replay_reads_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = written(tmp_path, {"file": "keys.jsonl"}, {"file": "revoked.jsonl"})
    key = said(capsys, "key", "add", "--policy", str(listed), "--principal", "job")
    path = written(tmp_path, {}, {}, store={"url": "redis://127.0.0.1:9/0"})
    token = mint("alice", scope="users.read")
    decision, notes = explained(capsys, path, "--header", f"{FIELD}: {key}", "GET", "/key")
    assert (decision, notes) == (
        "deny api-keys-unavailable",
        ["the list of API keys is in Redis, which was not asked"],
    )
    decision, notes = explained(capsys, path, "--token", token, "GET", "/api/v1/users")
    assert (decision, [note for note in notes if "may be revoked" in note]) == ("admit", notes)
    request: dict[str, Any] = {"method": "GET", "httpVersion": "HTTP/1.1", "queryString": [], "cookies": []}
    response = {"status": 200, "headers": [], "content": {"size": 0, "mimeType": ""}}
    entries = [
        {
            "startedDateTime": datetime.now(UTC).isoformat(),
            "time": 1,
            "request": request | {"url": f"http://x{target}", "headers": [{"name": name, "value": value}]},
            "response": response,
        }
        for target, name, value in (("/key", FIELD, key), ("/api/v1/users", "Authorization", f"Bearer {token}"))
    ]
    traffic = tmp_path / "traffic.har"
    traffic.write_text(json.dumps({"log": {"version": "1.2", "entries": entries}}))
    report = json.loads(said(capsys, "replay", str(traffic), "--policy", str(path), "--format", "json"))
    told = " ".join(report["notes"])
    assert "1 API keys of which nothing is recorded were refused" in told
    assert "1 tokens of which nothing is recorded were decided on without the list of revocations" in told
