"""Fields by which a client could say who it is, or that something else was asked for: no service sees one."""

from tests.core.test_client_fields import OVERRIDES, PEERS, spellings
from tests.rfc.fronts import Front, bearer

OWN = {"x-user-id": "alice", "x-user-role": "user"}
SPOOF = "spoofed-by-a-client"


def test_no_service_sees_what_a_client_says_of_itself(every_front: Front) -> None:
    names = [spelling for name in PEERS + OVERRIDES for spelling in spellings(name)]
    for start in range(0, len(names), 80):
        lines = [f"{name}: {SPOOF}" for name in names[start : start + 80]]
        for target, extra in (("/public", ()), ("/api/v1/users", (bearer("alice"),))):
            seen = every_front.seen(target, *lines, *extra)
            assert SPOOF not in str(seen.headers)
            identity = {name.lower(): value for name, value in seen.headers if name.lower().startswith("x-user")}
            assert identity == (OWN if extra else {})


def test_a_policy_can_keep_one(front: Front) -> None:
    lines = ("X-User-Agent: grpc-web/1", "x.user.agent: no", "X-User-Agents: no", "X-JWT-Kept: yes")
    seen = front.seen("/public", *lines, "Connection: close")
    assert seen.all("x-user-agent") == ["grpc-web/1"]
    assert seen.all("x-jwt-kept") == ["yes"]
    assert "no" not in [value for _, value in seen.headers]


def test_the_authorization_of_a_client_never_goes_on(every_front: Front) -> None:
    for target in ("/public", "/api/v1/users"):
        token = bearer("alice")
        assert token.rpartition(" ")[2] not in str(every_front.seen(target, token).headers)
