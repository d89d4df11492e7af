"""Decision services for tests: real servers that take a protocol's requests as it documents them, and nothing else."""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.live.harness_upstream import Raw, Recorded, Reply

JSON = (("Content-Type", "application/json"),)
TOKEN = "a-token-of-the-gateway-for-its-services"


def answered(members: Any, status: int = 200) -> Reply:
    return Reply(status, JSON, json.dumps(members).encode())


@dataclass
class Pdp:
    """Who may do what: subjects that may. AuthZEN, OPA and ext_authz by the path that is asked."""

    allowed: set[str] = field(default_factory=lambda: {"alice"})
    instead: Reply | Raw | None = None
    """Said in the place of an answer."""

    def __call__(self, asked: Recorded) -> Reply | Raw:
        if self.instead is not None:
            return self.instead
        if asked.target.startswith("/access/"):
            return self.authzen(asked)
        if asked.target.startswith("/v1/data/"):
            return self.opa(asked)
        return self.check(asked)

    def authzen(self, asked: Recorded) -> Reply:
        """Answer an access evaluation (Authorization API 1.0, sections 6.1 and 6.2; errors: 10.1.2)."""
        if asked.one("authorization") != f"Bearer {TOKEN}":
            return Reply(401, body=b"who asks?")
        found = _json(asked)
        if (asked.method, asked.target) != ("POST", "/access/v1/evaluation") or found is None:
            return Reply(400, body=b"no evaluation")
        subject, action, resource = found["subject"], found["action"], found["resource"]
        texts = [subject["type"], subject["id"], action["name"], resource["type"], resource["id"]]
        if not all(isinstance(text, str) for text in texts) or not isinstance(found.get("context", {}), dict):
            return Reply(400, body=b"no entities")
        may = subject["id"] in self.allowed
        return answered({"decision": may} | ({} if may else {"context": {"reason_user": {"en": "not you"}}}))

    def opa(self, asked: Recorded) -> Reply:
        """Answer POST /v1/data/PATH: a document's value as `result`, which is missing where it is undefined."""
        found = _json(asked)
        if asked.method != "POST" or found is None or "input" not in found:
            return answered({"code": "invalid_parameter", "message": "bad"}, 400)
        principal = found["input"]["principal"]
        may = principal is not None and principal["subject"] in self.allowed
        documents: dict[str, Any] = {
            "/v1/data/gateway/allow": may,
            "/v1/data/gateway": {"allow": may, "violations": []},
        }
        named = {"result": documents[asked.target]} if asked.target in documents else {}
        return answered({"decision_id": "1", **named})

    def check(self, asked: Recorded) -> Reply:
        """Answer a check request: the original's method and path, no body; 200 admits."""
        if asked.body or asked.one("content-length") not in {None, "0"}:
            return Reply(400)
        if asked.one("x-user-id") in self.allowed:
            return Reply(200, [("X-User-Tier", "gold"), ("X-Other", "dropped")], b"ok")
        return Reply(403, body=b"no")


def _json(asked: Recorded) -> dict[str, Any] | None:
    if asked.one("content-type") != "application/json":
        return None
    found = json.loads(asked.body)
    return found if isinstance(found, dict) else None
