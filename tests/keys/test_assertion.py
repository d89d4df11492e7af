"""Assertions are what any JWT library verifies with the published key, say what they should, and are signed once."""

import json
import time
import timeit
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mitmgate.core.assertion import TYPE
from mitmgate.core.principal import Principal
from mitmgate.core.rules import Assertion
from mitmgate.keys.assertion import REMEMBERED, Signer, signer_of, thumbprint
from mitmgate.keys.jwks import parse_jwk_set

NOW = 1_900_000_000.75  # far enough ahead that PyJWT, which reads the clock, finds it not expired
ALICE = Principal("alice", "corp", ("user", "admin"), frozenset(), {}, NOW + 60)

KEYS: dict[str, Callable[[], Any]] = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
}


def rule(algorithm: str = "ES256", lifetime: float = 30.0) -> Assertion:
    pem = KEYS[algorithm]().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Assertion(b"x-gateway-assertion", pem, lifetime, "mitmgate")


def verified(token: bytes, jwk: Any, audience: str = "users") -> dict[str, Any]:
    """Verify as an upstream does, with the published key and nothing else."""
    claims: dict[str, Any] = jwt.decode(
        token,
        jwt.PyJWK(dict(jwk)),
        algorithms=[jwk["alg"]],
        audience=audience,
        issuer="mitmgate",
        options={"require": ["iss", "aud", "sub", "iat", "exp", "jti"], "verify_iat": False},
    )
    return claims


@pytest.mark.parametrize("algorithm", KEYS)
def test_the_published_key_verifies_it(algorithm: str) -> None:
    signer = Signer(rule(algorithm))
    assert signer.algorithm == algorithm
    token = signer.assertion(ALICE, "users", "GET", "/v1/7", NOW)
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "kid": signer.key_id, "typ": TYPE}
    claims = verified(token, signer.jwk)
    assert len(claims.pop("jti")) == 16
    assert claims == {
        "iss": "mitmgate",
        "aud": "users",
        "sub": "alice",
        "sub_iss": "corp",
        "iat": 1_900_000_000,
        "exp": 1_900_000_030,
        "htm": "GET",
        "path": "/v1/7",
        "roles": ["user", "admin"],
    }


@pytest.mark.parametrize("algorithm", KEYS)
def test_what_is_published_is_public_and_complete(algorithm: str) -> None:
    jwk = Signer(rule(algorithm)).jwk
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(jwk)
    assert (jwk["use"], jwk["alg"]) == ("sig", algorithm)
    keys = parse_jwk_set(json.dumps({"keys": [dict(jwk)]}).encode(), secrets=False)
    assert (len(keys.keys), list(keys.ignored)) == (1, [])
    for name in ("x", "y", "n"):
        if name in jwk:
            assert urlsafe_b64decode(jwk[name] + "==")


def test_the_key_id_is_the_thumbprint_of_rfc_7638() -> None:
    # RFC 7638, section 3.1.
    example = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjB"
        "ZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8"
        "KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_"
        "xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
        "alg": "RS256",
        "kid": "2011-04-29",
    }
    assert thumbprint(example) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_the_same_is_signed_once_while_half_of_its_lifetime_is_left() -> None:
    signer = Signer(rule())
    first = signer.assertion(ALICE, "users", "GET", "/v1/7", NOW)
    assert signer.assertion(replace(ALICE, expires=NOW + 99), "users", "GET", "/v1/7", NOW + 14.9) == first
    later = signer.assertion(ALICE, "users", "GET", "/v1/7", NOW + 15)
    assert later != first
    assert verified(later, signer.jwk)["exp"] == 1_900_000_045
    assert signer.assertion(ALICE, "users", "GET", "/v1/7", NOW - 1) != later, "a clock that was set back"


@pytest.mark.parametrize(
    "other",
    [
        (replace(ALICE, subject="bob"), "users", "GET", "/v1/7"),
        (replace(ALICE, issuer="dev"), "users", "GET", "/v1/7"),
        (replace(ALICE, scopes=frozenset({"a"})), "users", "GET", "/v1/7"),
        (replace(ALICE, roles=("user",)), "users", "GET", "/v1/7"),
        (ALICE, "orders", "GET", "/v1/7"),
        (ALICE, "users", "DELETE", "/v1/7"),
        (ALICE, "users", "GET", "/v1/8"),
    ],
)
def test_whatever_differs_is_signed_anew(other: tuple[Principal, str, str, str]) -> None:
    signer = Signer(rule())
    first = signer.assertion(ALICE, "users", "GET", "/v1/7", NOW)
    second = signer.assertion(*other, NOW)
    one, two = verified(first, signer.jwk), verified(second, signer.jwk, other[1])
    assert one.pop("jti") != two.pop("jti")
    assert one != two


def test_what_is_kept_is_bounded() -> None:
    signer = Signer(rule("EdDSA"))
    for at in range(4100):
        signer.assertion(ALICE, "users", "GET", f"/{at}", NOW)
    assert 3000 < len(signer._made) < 4096
    many = replace(ALICE, roles=tuple(f"role-{number}" for number in range(400)))
    for at in range(1000):
        signer.assertion(many, "users", "GET", f"/{at}", NOW)
    assert 200 < len(signer._made) < 600
    assert sum(len(made) for _, made in signer._made.values()) < REMEMBERED


def test_a_rule_keeps_its_signer() -> None:
    made = rule()
    assert signer_of(made) is signer_of(replace(made))
    assert signer_of(made) is not signer_of(replace(made, lifetime=31.0))


def test_a_subject_of_any_characters_is_safe_in_a_header() -> None:
    token = Signer(rule()).assertion(replace(ALICE, subject="ø\r\nX: 1"), "users", "GET", "/", NOW)
    assert token.isascii()
    assert b"\n" not in token


def test_signing_again_costs_next_to_nothing() -> None:
    signer = Signer(rule())
    signer.assertion(ALICE, "users", "GET", "/v1/7", NOW)
    paths = iter(range(10**6))

    def fresh() -> bytes:
        return signer.assertion(ALICE, "users", "GET", f"/{next(paths)}", NOW)

    def again() -> bytes:
        return signer.assertion(ALICE, "users", "GET", "/v1/7", NOW)

    def seconds(sign: Callable[[], bytes]) -> float:
        return min(timeit.repeat(sign, timer=time.process_time, number=50, repeat=5))

    assert seconds(again) < seconds(fresh) / 5
