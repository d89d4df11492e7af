"""Problem details: the body of every error that the gateway answers with (RFC 9457)."""

import json

from mitmgate.core.reason import Reason

MEDIA_TYPE = b"application/problem+json"


def problem_body(reason: Reason, detail: str, request_id: str) -> bytes:
    """Serialise a problem, as a line of its own. detail is for the client; empty: the title says it all."""
    members: dict[str, object] = {
        "type": f"urn:mitmgate:problem:{reason.code}",
        "title": reason.title,
        "status": reason.status,
    }
    if detail:
        members["detail"] = detail
    members["reason"] = reason.code
    members["request_id"] = request_id
    return json.dumps(members, ensure_ascii=True, separators=(",", ":")).encode("ascii") + b"\n"
