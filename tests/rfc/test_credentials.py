"""One credential, in one place (RFC 6750, section 2); what the gateway reads never goes on."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from wsproto.utilities import generate_accept_token

from tests.live.harness import mint
from tests.live.harness_http import Answered
from tests.live.harness_upstream import Raw, Recorded
from tests.rfc.fronts import KINDS, Front, Http2Front, Kind, bearer


@pytest.mark.parametrize(
    "name", ["access_token", "access%5Ftoken", "%61ccess_token", "Access_Token", "access.token", "+access_token[]"]
)
def test_a_second_token_in_the_query_is_400(every_front: Front, name: str) -> None:
    for query in (f"{name}={mint()}", f"a=b&{name}=", f"a;{name}=x;b"):
        answered = every_front.refused(400, "credential-ambiguous", f"/api/v1/users?{query}", bearer())
        challenge = answered.one("www-authenticate") or ""
        assert challenge.startswith('Bearer error="invalid_request"')


def test_a_token_in_the_query_alone_is_not_read(every_front: Front) -> None:
    every_front.refused(401, "credential-missing", f"/api/v1/users?access_token={mint()}")
    every_front.refused(401, "token-malformed", f"/api/v1/users?access_token={mint()}", "Authorization: Bearer a.b.c")


def test_a_second_authorization_is_400(every_front: Front) -> None:
    every_front.refused(400, "header-repeated", "/api/v1/users", bearer(), bearer())


def test_no_credential_that_is_read_goes_on(every_front: Front) -> None:
    token = mint()
    for target in ("/api/v1/users?page=access_token", "/public", "/odd?access_token_hint=x"):
        seen = every_front.seen(target, f"Authorization: Bearer {token}", f"Proxy-Authorization: Bearer {token}")
        assert token.encode() not in seen.raw


@pytest.mark.parametrize(
    ("cnf", "alone", "proved"),
    [
        ({"x5t#S256": "A" * 43}, "token-proof-missing", "token-proof-missing"),
        ({"jkt": "A" * 43}, "token-proof-missing", "token-proof-invalid"),
        ({"jkt": "A" * 43, "kid": "x"}, "token-proof-unsupported", "token-proof-unsupported"),
        ({}, "token-proof-unsupported", "token-proof-unsupported"),
        ([], "token-proof-unsupported", "token-proof-unsupported"),
    ],
)
def test_a_token_that_is_bound_to_a_key_is_refused(every_front: Front, cnf: object, alone: str, proved: str) -> None:
    """RFC 7800, section 3.1; nor does what a client shows beside it make it a bearer token (RFC 8705, RFC 9449)."""
    proof = ("DPoP: a.b.c", "X-Client-Cert: x", "Client-Cert: :eA==:")
    for lines in ((), proof):
        answered = every_front.refused(401, alone, "/api/v1/users", bearer(cnf=cnf), *lines)
        assert 'error="invalid_token"' in (answered.one("www-authenticate") or "")
    as_dpop = bearer(cnf=cnf).replace("Bearer", "DPoP")
    if cnf == {"x5t#S256": "A" * 43}:
        proved = "token-proof-invalid"  # the scheme is another key's
    answered = every_front.refused(401, proved, "/api/v1/users", as_dpop, *proof)
    assert (answered.one("www-authenticate") or "").startswith("DPoP error=")


LEEWAY = 30.0
"""Seconds: the default of a policy, which the policy of all fronts leaves as it is."""


def _unending(request: Recorded) -> Raw:
    key = request.one("sec-websocket-key")
    if key is None:
        return Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", close=False)
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    accept = b"Sec-WebSocket-Accept: " + generate_accept_token(key.encode())
    return Raw(switching + accept + b"\r\n\r\n", close=False)


def _outlived(front: Front, *lines: str) -> tuple[Answered, float]:
    """Ask for what does not end by itself with a token within its leeway; the answer, and when it ended after that."""
    for margin in (1, 3, 10):  # seconds until the leeway is over; more for a machine that is slow
        expires = time.time() + margin - LEEWAY
        line = bearer(iat=expires - 60, exp=expires)
        answered = front.ask("/lasting/x", line, *lines)
        if answered.status != 401:
            break
    return answered, time.time() - expires - LEEWAY


def test_what_lasts_is_cut_when_the_leeway_is_over_and_not_before(fronts: dict[Kind, Front]) -> None:
    """A token is good until its leeway is over (RFC 7519, section 4.1.4), and so is what it has opened."""
    asked: list[tuple[Front, tuple[str, ...]]] = []
    handshake = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    for kind in KINDS:
        front = fronts[kind]
        front.upstream.reply = _unending
        asked += [(front, ()), (front, (*handshake, "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="))]
        if kind == "tls":
            asked.append((Http2Front(kind, front.gateway, front.upstream, front.authority), ()))
    with ThreadPoolExecutor(len(asked)) as pool:
        ended = list(pool.map(lambda one: _outlived(one[0], *one[1]), asked))
    for (front, lines), (answered, late) in zip(asked, ended, strict=True):
        assert answered.status == (101 if lines else 200), (front, answered)
        if lines:
            assert answered.body == b"\x88\x02\x03\xf0"  # 1008
        else:
            assert b"hello" in answered.body and b"0\r\n\r\n" not in answered.body
        assert -0.1 < late < 10, (front.kind, lines, late)
        assert front.event(answered)["reason"] == "token-expired"
