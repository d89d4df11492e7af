"""Security event tokens: what they revoke, and what is not taken (RFC 8417, RFC 8935, CAEP)."""

from typing import Any

import pytest

from mitmgate.core.events import REVOKING, EventError, revocations_of
from mitmgate.core.revocation import Revocation
from mitmgate.core.rules import Issuer, KeySource

NOW = 1_800_000_000.0
AUDIENCE = ("https://gateway.example",)
URL = "https://issuer.example"
ISSUER = Issuer("corp", URL, ("api",), ("ES256",), KeySource("jwks_url"), max_lifetime=3600.0)
SESSION, CREDENTIAL = sorted(REVOKING, reverse=True)
ALICE: dict[str, Any] = {"format": "iss_sub", "iss": URL, "sub": "alice"}


def claims(**members: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"iss": URL, "aud": AUDIENCE[0], "iat": NOW - 5, "jti": "e1", "sub_id": ALICE}
    return made | {"events": {SESSION: {"event_timestamp": NOW - 10}}} | members


def made(**members: Any) -> list[Revocation]:
    return revocations_of(claims(**members), ISSUER, AUDIENCE, NOW)


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({}, [("sub", "alice", NOW - 10)]),
        ({"events": {CREDENTIAL: {"change_type": "revoke"}}}, [("sub", "alice", NOW - 5)]),
        ({"events": {SESSION: {}, CREDENTIAL: {}}}, [("sub", "alice", NOW - 5)] * 2),
        ({"events": {SESSION: {"event_timestamp": NOW + 1e6}}}, [("sub", "alice", NOW)]),
        ({"sub_id": ..., "events": {SESSION: {"subject": ALICE}}}, [("sub", "alice", NOW - 5)]),
        ({"sub_id": {"format": "opaque", "id": "a1"}}, [("sub", "a1", NOW - 10)]),
        (
            {"sub_id": {"format": "complex", "session": {"format": "opaque", "id": "s1"}, "user": ALICE}},
            [("sid", "s1", None)],
        ),
        ({"sub_id": {"format": "complex", "user": ALICE}}, [("sub", "alice", NOW - 10)]),
        ({"aud": ["x", AUDIENCE[0]]}, [("sub", "alice", NOW - 10)]),
        ({"events": {"https://schemas.openid.net/secevent/ssf/event-type/verification": {}}}, []),
    ],
)
def test_what_is_revoked(members: dict[str, Any], found: list[tuple[str, str, float | None]]) -> None:
    members = {name: value for name, value in claims(**members).items() if value is not ...}
    got = revocations_of(members, ISSUER, AUDIENCE, NOW)
    assert [(one.kind, one.value, one.before) for one in got] == found
    assert all(one.issuer == "corp" and one.by == "event e1" and one.until > NOW + 3600 for one in got)


@pytest.mark.parametrize(
    ("code", "members"),
    [
        ("invalid_audience", {"aud": "https://other.example"}),
        ("invalid_audience", {"aud": 1}),
        ("invalid_request", {"iat": "now"}),
        ("invalid_request", {"iat": True}),
        ("invalid_request", {"jti": 1}),
        ("invalid_request", {"events": {}}),
        ("invalid_request", {"events": [SESSION]}),
        ("invalid_request", {"events": {SESSION: None}}),
        ("invalid_request", {"exp": NOW - 31}),
        ("invalid_request", {"exp": "x"}),
        ("invalid_request", {"sub_id": None}),
        ("invalid_request", {"sub_id": {"format": ["iss_sub"], "iss": URL, "sub": "alice"}}),
        ("invalid_request", {"sub_id": {"format": "iss_sub", "iss": "https://other.example", "sub": "alice"}}),
        ("invalid_request", {"sub_id": {"format": "iss_sub", "iss": URL, "sub": 1}}),
        ("invalid_request", {"sub_id": {"format": "iss_sub", "iss": URL, "sub": ""}}),
        ("invalid_request", {"sub_id": {"format": "opaque", "id": "x" * 256}}),
        ("invalid_request", {"sub_id": {"format": "email", "email": "a@b.example"}}),
        ("invalid_request", {"sub_id": {"format": "complex", "session": {"format": "opaque"}, "user": ALICE}}),
    ],
)
def test_what_is_not_taken(code: str, members: dict[str, Any]) -> None:
    with pytest.raises(EventError) as caught:
        made(**members)
    assert caught.value.code == code
