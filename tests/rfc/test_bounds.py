"""Bounds that a policy can move: what is inside them passes, what is beyond them is refused with its reason."""

from urllib.parse import unquote

import pytest

from tests.live.harness_upstream import Reply
from tests.rfc.fronts import Front, bearer

GROUPS = [f"group-{number:04}-of-a-large-company" for number in range(450)]
SUBJECTS = ["zo\u00eb", "\u674e\u96f7", "a,b", "100%", "a b", "auth0|5f7c8ec7c33c6c004bbafe82", "\U0001f600"]


def test_a_token_with_many_groups(front: Front) -> None:
    """Real ones are larger than 8 KiB."""
    token = bearer(groups=GROUPS)
    assert len(token) > 16 * 1024
    assert front.seen("/api/v1/users", token).one("x-user-id") == "alice"
    front.refused(401, "token-too-large", "/api/v1/users", bearer(groups=GROUPS * 2))


def test_a_long_target(front: Front) -> None:
    target = "/public?" + "q" * 12 * 1024
    assert front.seen(target[: 12 * 1024]).target == target[: 12 * 1024]
    front.refused(414, "target-too-long", target)


def test_many_fields(front: Front) -> None:
    lines = [f"X-Field-{number}: {number}" for number in range(149)]
    seen = front.seen("/public", *lines)
    assert len([name for name, _ in seen.headers if name.startswith("X-Field-")]) == 149
    front.refused(431, "head-too-large", "/public", *lines, "X-Last: 1")


def test_a_response_of_many_fields(front: Front) -> None:
    front.upstream.forget()
    fields = [(f"X-Field-{number}", "v" * 200) for number in range(400)]
    front.upstream.reply = Reply(headers=fields)
    answered = front.ask("/public")
    assert answered.status == 200
    assert len([name for name, _ in answered.headers if name.startswith("X-Field-")]) == 400
    for beyond in ([("A", "b")] * 1001, [("A", "b" * 130 * 1024)]):
        front.upstream.reply = Reply(headers=beyond)
        answered = front.ask("/public")
        assert (answered.status, answered.reason) == (502, "upstream-malformed")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_that_no_field_can_hold_as_it_is(front: Front, subject: str) -> None:
    seen = front.seen("/api/v1/users", bearer(subject))
    written = seen.one("x-user-id") or ""
    assert written.isascii() and " " not in written
    assert unquote(written) == subject


def test_a_role_with_a_comma(front: Front) -> None:
    roles = ["user", "CN=admins,OU=it", "50%", "\u00e9quipe"]
    seen = front.seen("/api/v1/users", bearer(roles=roles))
    assert [unquote(role) for role in (seen.one("x-user-role") or "").split(",")] == roles


def test_what_a_route_fills_from_a_token_is_encoded_as_well(front: Front) -> None:
    seen = front.seen("/mail", bearer(mail="zo\u00eb@example.org"), "X-Asked: 100%, really")
    assert seen.one("x-mail") == "<zo%C3%AB@example.org>"
    assert seen.one("x-echo") == "100%, really"
    seen = front.seen("/mail", bearer(mail="a\r\nX-User-ID: root"))
    assert seen.one("x-mail") == "<a%0D%0AX-User-ID:%20root>"
    assert seen.one("x-user-id") == "alice"


def test_the_origin_of_a_sandboxed_page(front: Front) -> None:
    front.upstream.forget()
    answered = front.ask("/sandbox", "Origin: null")
    assert answered.status == 200
    assert answered.all("access-control-allow-origin") == ["null"]
    assert answered.all("access-control-allow-credentials") == []
    front.refused(403, "origin-not-allowed", "/api/v1/users", "Origin: null", bearer())
