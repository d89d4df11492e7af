"""Proofs of possession: the examples of RFC 9449, and everything in which a proof may lie (section 4.3)."""

import json
from base64 import b64encode
from typing import Any
from urllib.parse import quote

import pytest

from mitmgate.core.principal import Confirmation
from mitmgate.core.proof import (
    AHEAD,
    MAX_PROOF,
    Asked,
    UnverifiedProof,
    check_proof,
    confirmation_of,
    digest_of,
    passed_thumbprint,
    read_proof,
    thumbprint_of,
)
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.keys.proof import ProofKeys, is_nonce, nonce_at
from tests.keys.proving import Holder
from tests.keys.signing import ASYMMETRIC, b64

NOW = 1_800_000_000.0
URL = "https://api.example/orders/7"
ASKED = Asked("GET", "https", "api.example", None, "/orders/7", "/orders/7")
TOKEN = "a.b.c"

# RFC 9449, section 7.1: Figure 12 (the request) and Figure 13 (the proof decoded); the key of section 6.1.
RFC_TOKEN = b"Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
RFC_PROOF = (
    b"eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscE"
    b"JoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
    b".eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0"
    b"ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9"
    b".2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RFC_THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
RFC_ASKED = Asked("GET", "https", "resource.example.org", None, "/protectedresource", "/protectedresource")
RFC_ISSUED = 1562262618.0


def test_the_example_of_the_rfc() -> None:
    proof = read_proof(RFC_PROOF)
    assert isinstance(proof, UnverifiedProof)
    assert (proof.thumbprint, proof.id, proof.algorithm) == (RFC_THUMBPRINT, "e1j3V_bKic8-LAEB", "ES256")
    assert ProofKeys().verify(proof, RFC_THUMBPRINT) is None
    assert check_proof(proof, RFC_ASKED, RFC_TOKEN, RFC_ISSUED + 1, 60.0) is None
    assert check_proof(proof, RFC_ASKED, RFC_TOKEN, RFC_ISSUED + 61, 60.0) is not None
    assert check_proof(proof, RFC_ASKED, RFC_TOKEN + b"x", RFC_ISSUED, 60.0) is not None


def test_the_thumbprint_of_rfc_7638() -> None:
    key = {
        "kty": "RSA",
        "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1"
        "L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2Q"
        "vzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lF"
        "d2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
        "e": "AQAB",
        "alg": "RS256",
        "kid": "2011-04-29",
    }
    assert thumbprint_of(key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def verdict(
    proof: str, holder: Holder | None = None, asked: Asked = ASKED, token: str = TOKEN, now: float = NOW
) -> Refusal | None:
    read = read_proof(proof.encode())
    if isinstance(read, Refusal):
        return read
    bound = (holder or Holder()).thumbprint
    return ProofKeys().verify(read, bound) or check_proof(read, asked, token.encode(), now, 60.0)


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_every_algorithm(algorithm: str) -> None:
    holder = Holder(algorithm)
    assert verdict(holder.prove(TOKEN, URL, iat=NOW), holder) is None
    assert verdict(Holder(algorithm, 1).prove(TOKEN, URL, iat=NOW), holder) is not None


NO_URL = ("\t", "\n", "\r", " ", "\x00", "\x1f", "\x7f", "\x85", "\xa0", "\u200b", "\u2028", "\uff0e")
"""What no URL holds, and urlsplit drops a part of (RFC 3986, section 2)."""

LIES: list[tuple[str, dict[str, Any]]] = [
    ("typ", {"header": {"typ": "JWT"}}),
    ("no typ", {"header": {"typ": ...}}),
    ("alg none", {"header": {"alg": "none"}}),
    ("alg of a secret", {"header": {"alg": "HS256"}}),
    ("another alg", {"header": {"alg": "ES384"}}),
    ("alg of a number", {"header": {"alg": 7}}),
    ("crit", {"header": {"crit": ["x"], "x": 1}}),
    ("no jwk", {"header": {"jwk": ...}}),
    ("jwk of text", {"header": {"jwk": "x"}}),
    ("a secret", {"header": {"jwk": {"kty": "oct", "k": "AAAA"}}}),
    ("a private key", {"header": {"jwk": {**Holder().jwk, "d": "AAAA"}}}),
    ("another key", {"header": {"jwk": Holder(number=1).jwk}}),
    ("htm", {"htm": "POST"}),
    ("htm in small letters", {"htm": "get"}),
    ("no htm", {"htm": ...}),
    ("another host", {"htu": "https://evil.example/orders/7"}),
    ("a longer host", {"htu": "https://api.example.evil.example/orders/7"}),
    ("userinfo", {"htu": "https://api.example@evil.example/orders/7"}),
    ("userinfo before it", {"htu": "https://x@api.example/orders/7"}),
    ("another scheme", {"htu": "http://api.example/orders/7"}),
    ("another port", {"htu": "https://api.example:8443/orders/7"}),
    ("no port", {"htu": "https://api.example:x/orders/7"}),
    ("another path", {"htu": "https://api.example/orders/8"}),
    ("a shorter path", {"htu": "https://api.example/orders"}),
    ("a longer path", {"htu": "https://api.example/orders/7/"}),
    ("another case", {"htu": "https://api.example/Orders/7"}),
    ("no URL", {"htu": "orders"}),
    ("an odd URL", {"htu": "https://[::1/orders/7"}),
    *((f"htu with {octet!r} {at}", {"htu": URL[:at] + octet + URL[at:]}) for octet in NO_URL for at in (0, 9, 25, 28)),
    *((f"htu that ends with {octet!r}", {"htu": URL + octet}) for octet in NO_URL),
    ("htu with octets that are not ASCII behind its path", {"htu": URL + "?é"}),
    ("dot segments", {"htu": "https://api.example/a/../orders/7"}),
    ("a dot segment", {"htu": "https://api.example/./orders/7"}),
    ("encoded dot segments", {"htu": "https://api.example/a/%2e%2E/orders/7"}),
    ("no htu", {"htu": ...}),
    ("another token", {"ath": b64(b"x" * 32).decode()}),
    ("no ath", {"ath": ...}),
    ("ath of a number", {"ath": 1}),
    ("old", {"iat": NOW - 61}),
    ("of the future", {"iat": NOW + AHEAD + 1}),
    ("iat of text", {"iat": str(int(NOW))}),
    ("iat true", {"iat": True}),
    ("no iat", {"iat": ...}),
    ("no jti", {"jti": ...}),
    ("jti of a number", {"jti": 7}),
    ("an empty jti", {"jti": ""}),
    ("a long jti", {"jti": "x" * 256}),
    ("a nonce of a number", {"nonce": 7}),
    ("too large", {"pad": "x" * MAX_PROOF}),
]


@pytest.mark.parametrize(("what", "how"), LIES, ids=[what for what, _ in LIES])
def test_a_proof_that_lies(what: str, how: dict[str, Any]) -> None:
    claims: dict[str, Any] = {"iat": NOW, "htu": URL} | how
    refusal = verdict(Holder().prove(TOKEN, URL, **claims))
    assert refusal is not None, what
    assert refusal.reason is Reason.TOKEN_PROOF_INVALID


def test_a_proof_is_signed() -> None:
    good = Holder().prove(TOKEN, URL, iat=NOW)
    assert verdict(good) is None
    head, body, signature = good.split(".")
    for bad in (
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body}.{signature}.x",
        f"{head}.{body}.AAAA",
        "a.b.c",
        "",
    ):
        assert verdict(bad) is not None
    other = Holder().prove(TOKEN, URL, iat=NOW).split(".")[2]
    assert verdict(f"{head}.{body}.{other}") is not None


@pytest.mark.parametrize(
    ("htu", "asked"),
    [
        ("https://api.example/orders/7?page=1#top", ASKED),
        ("HTTPS://API.example:443/orders/7", ASKED),
        ("https://api.example/orders/%37", ASKED),
        ("https://api.example", Asked("GET", "https", "api.example", None, "/", "/")),
        ("http://api.example:8080/a", Asked("GET", "http", "api.example", 8080, "/a", "/a")),
        ("http://[::1]:8080/a", Asked("GET", "http", "::1", 8080, "/a", "/a")),
        ("https://api.example/a%c3%a9", Asked("GET", "https", "api.example", 443, "/a%C3%A9", "/a%C3%A9")),
    ],
)
def test_how_a_url_is_spelled_does_not_matter(htu: str, asked: Asked) -> None:
    assert verdict(Holder().prove(TOKEN, htu, iat=NOW), asked=asked) is None


ODD: list[Any] = [
    *({}, [], None, "x", {"kid": "x"}, {"jwk": {}}, {"jkt": "A" * 43, "kid": "x"}, {"jkt": 1}, {"jkt": ""}),
    *({"jkt": "A" * 42}, {"jkt": "A" * 42 + "="}, {"jkt": "A" * 42 + "B"}, {"x5t": "A" * 27}),
]


@pytest.mark.parametrize(
    ("cnf", "found"),
    [
        ({"jkt": "A" * 43}, Confirmation("A" * 43)),
        ({"x5t#S256": "A" * 43}, Confirmation(None, "A" * 43)),
        ({"jkt": "A" * 43, "x5t#S256": "A" * 43}, Confirmation("A" * 43, "A" * 43)),
        *[(odd, None) for odd in ODD],
    ],
)
def test_what_a_token_is_bound_to(cnf: Any, found: Confirmation | None) -> None:
    got = confirmation_of({"cnf": cnf})
    assert got == found if found is not None else isinstance(got, Refusal)
    assert confirmation_of({}) is None


def test_certificates_that_a_proxy_passes_on() -> None:
    der = bytes(range(256))
    pem = "-----BEGIN CERTIFICATE-----\n" + b64encode(der).decode() + "\n-----END CERTIFICATE-----\n"
    wrapped = pem[:60] + "\n" + pem[60:]
    for value in (f":{b64encode(der).decode()}:", quote(pem), quote(wrapped), quote(pem.replace("\n", "\r\n"))):
        assert passed_thumbprint(value.encode()) == digest_of(der)
    for value in ("", ":", "::", ":x:", "x", ":AAA:", quote(pem[:-5]), quote(pem + pem), json.dumps(pem)):
        assert passed_thumbprint(value.encode()) is None, value


def test_nonces() -> None:
    secret = b"x" * 32
    nonce = nonce_at(secret, NOW, 60.0)
    assert len(nonce) == 32
    assert is_nonce(nonce, secret, NOW, 60.0)
    assert is_nonce(nonce, secret, NOW + 60.0, 60.0)
    for bad, at in ((nonce, NOW + 180.0), (nonce, NOW - 60.0), (nonce[:-1], NOW), ("", NOW), ("é", NOW), (None, NOW)):
        assert not is_nonce(bad, secret, at, 60.0)
    assert not is_nonce(nonce, b"y" * 32, NOW, 60.0)


def test_keys_of_others_are_not_parsed() -> None:
    keys, proof = ProofKeys(), read_proof(Holder().prove(TOKEN, URL, iat=NOW).encode())
    assert isinstance(proof, UnverifiedProof)
    assert keys.verify(proof, "A" * 43) is not None
    assert len(keys._parsed) == 0
    assert keys.verify(proof, proof.thumbprint) is None
    assert len(keys._parsed) == 1
