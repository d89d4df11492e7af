"""Bounds that a policy can move: what is inside them passes, what is beyond them is refused with its reason."""

from urllib.parse import unquote

import pytest

from tests.live.harness_upstream import Reply
from tests.rfc.fronts import Front, bearer

GROUPS = [f"group-{number:04}-of-a-large-company" for number in range(450)]
SUBJECTS = ["zo\u00eb", "\u674e\u96f7", "a,b", "100%", "a b", "auth0|5f7c8ec7c33c6c004bbafe82", "\U0001f600"]


def test_a_token_with_many_groups(every_front: Front) -> None:
    """Real ones are larger than 8 KiB."""
    token = bearer(groups=GROUPS)
    assert len(token) > 16 * 1024
    assert every_front.seen("/api/v1/users", token).one("x-user-id") == "alice"
    every_front.refused(401, "token-too-large", "/api/v1/users", bearer(groups=GROUPS * 2))


def test_a_long_target(every_front: Front) -> None:
    target = "/public?" + "q" * 12 * 1024
    assert every_front.seen(target[: 12 * 1024]).target == target[: 12 * 1024]
    every_front.refused(414, "target-too-long", target)


def test_many_fields(every_front: Front) -> None:
    lines = [f"X-Field-{number}: {number}" for number in range(149)]
    seen = every_front.seen("/public", *lines)
    assert len([name for name, _ in seen.headers if name.lower().startswith("x-field-")]) == 149
    every_front.refused(431, "head-too-large", "/public", *lines, "X-Last: 1", "X-One-More: 1")


def test_a_response_of_many_fields(every_front: Front) -> None:
    every_front.upstream.forget()
    fields = [(f"X-Field-{number}", "v" * 200) for number in range(400)]
    every_front.upstream.reply = Reply(headers=fields)
    answered = every_front.ask("/public")
    assert answered.status == 200
    assert len([name for name, _ in answered.headers if name.lower().startswith("x-field-")]) == 400
    for beyond in ([("A", "b")] * 1001, [("A", "b" * 130 * 1024)]):
        every_front.upstream.reply = Reply(headers=beyond)
        answered = every_front.ask("/public")
        assert (answered.status, answered.reason) == (502, "upstream-malformed")


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_that_no_field_can_hold_as_it_is(every_front: Front, subject: str) -> None:
    seen = every_front.seen("/api/v1/users", bearer(subject))
    written = seen.one("x-user-id") or ""
    assert written.isascii() and " " not in written
    assert unquote(written) == subject


def test_a_role_with_a_comma(every_front: Front) -> None:
    roles = ["user", "CN=admins,OU=it", "50%", "\u00e9quipe"]
    seen = every_front.seen("/api/v1/users", bearer(roles=roles))
    assert [unquote(role) for role in (seen.one("x-user-role") or "").split(",")] == roles


def test_what_a_route_fills_from_a_token_is_encoded_as_well(every_front: Front) -> None:
    seen = every_front.seen("/mail", bearer(mail="zo\u00eb@example.org"), "X-Asked: 100%, really")
    assert seen.one("x-mail") == "<zo%C3%AB@example.org>"
    assert seen.one("x-echo") == "100%, really"
    seen = every_front.seen("/mail", bearer(mail="a\r\nX-User-ID: root"))
    assert seen.one("x-mail") == "<a%0D%0AX-User-ID:%20root>"
    assert seen.one("x-user-id") == "alice"


def test_the_origin_of_a_sandboxed_page(every_front: Front) -> None:
    every_front.upstream.forget()
    answered = every_front.ask("/sandbox", "Origin: null")
    assert answered.status == 200
    assert answered.all("access-control-allow-origin") == ["null"]
    assert answered.all("access-control-allow-credentials") == []
    every_front.refused(403, "origin-not-allowed", "/api/v1/users", "Origin: null", bearer())
