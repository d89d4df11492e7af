"""Date (RFC 9110, section 6.6.1): in every response, the service's where it has one."""

from email.utils import parsedate_to_datetime
from time import time

import pytest

from tests.live.harness_upstream import Reply
from tests.rfc.fronts import Front, parse

GIVEN = "Tue, 15 Nov 1994 08:12:31 GMT"
OWN = {
    "health": ("/health", 200),
    "no credential": ("/api/v1/users", 401),
    "ambiguous path": ("/public/../x", 400),
    "too long": ("/" + "a" * 13000, 414),
    "expectation": ("/public", 417),
}


def assert_now(date: str | None) -> None:
    assert date is not None
    assert date.endswith(" GMT")
    assert abs(parsedate_to_datetime(date).timestamp() - time()) < 60


@pytest.mark.parametrize("name", OWN)
def test_our_own_responses_are_dated(front: Front, name: str) -> None:
    target, status = OWN[name]
    answered = front.ask(target, *(("Expect: miracles",) if status == 417 else ()))
    assert answered.status == status
    assert_now(answered.one("date"))


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n", b"GET /public HTTP/1.1\r\n\r\n"])
def test_so_is_what_answers_no_request(front: Front, data: bytes) -> None:
    assert_now(parse(front.raw(data, answers=1)).one("date"))


def test_a_services_own_date_is_kept(front: Front) -> None:
    for name in ("Date", "date", "dAtE"):
        front.upstream.forget()
        front.upstream.reply = Reply(headers=[(name, GIVEN)])
        assert front.ask("/public").all("date") == [GIVEN]


def test_a_service_without_one_gets_the_time_of_its_response(front: Front) -> None:
    front.upstream.forget()
    for reply in (Reply(), Reply(404), Reply(204), Reply(500), Reply(chunked=True)):
        front.upstream.reply = reply
        answered = parse(front.raw(b"GET /public HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
        assert answered.status == reply.status
        assert_now(answered.one("date"))


def test_a_failed_service_is_answered_with_a_date(front: Front) -> None:
    front.upstream.forget()
    front.upstream.reply = Reply(status=200, headers=[("Content-Length", "x")])
    answered = front.ask("/public")
    assert answered.status == 502
    assert_now(answered.one("date"))
