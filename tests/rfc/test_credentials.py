"""One credential, in one place (RFC 6750, section 2); what the gateway reads never goes on."""

import pytest

from tests.live.harness import mint
from tests.rfc.fronts import Front, bearer


@pytest.mark.parametrize("name", ["access_token", "access%5Ftoken", "%61ccess_token"])
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
