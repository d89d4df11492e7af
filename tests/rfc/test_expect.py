"""Expect (RFC 9110, section 10.1.1): the gateway answers it itself, and no service is ever asked."""

import pytest

from tests.rfc.fronts import Front


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("name", ["Expect", "eXpEcT"])
def test_a_service_is_never_asked_for_an_expectation(front: Front, version: str, name: str) -> None:
    seen = front.seen("/public", f"{name}: 100-continue", method="POST", version=version, body=b"body")
    assert seen.all("expect") == []
    assert seen.body == b"body"


def test_http_1_0_gets_no_100_and_its_expectation_is_ignored(front: Front) -> None:
    data = b"POST /public HTTP/1.0\r\nHost: localhost\r\nExpect: %s\r\nContent-Length: 4\r\n\r\nbody"
    for expectation in (b"100-continue", b"miracles"):
        front.upstream.forget()
        assert front.raw(data % expectation).startswith(b"HTTP/1.1 200 ")
        assert front.upstream.last().all("expect") == []


def test_http_1_1_waits_for_its_100(front: Front) -> None:
    with front.connect() as link:
        link.sendall(
            b"POST /public HTTP/1.1\r\nHost: localhost\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert link.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        link.sendall(b"body")
        assert link.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert front.upstream.last().all("expect") == []


def test_another_expectation_is_417(front: Front) -> None:
    front.refused(417, "expectation-refused", "/public", "Expect: miracles")
