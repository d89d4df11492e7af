"""Key material: what is usable, and the sentence that says why something is not."""

import datetime
import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.rules import KeySource
from mitmgate.keys.jwks import parse_jwk_set
from mitmgate.keys.keyset import ALGORITHMS, KeySet
from mitmgate.keys.material import key_set, problem
from tests.keys.signing import ASYMMETRIC, SECRET, jwk, jwk_set, private_key, private_pem, public_pem

RSA, EC = private_key("RS256"), private_key("ES256")


def certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(name, name, EC.public_key(), 1, start, start + datetime.timedelta(days=1))
    return made.sign(EC, SHA256()).public_bytes(Encoding.PEM)


def secret(material: bytes) -> KeySource:
    return KeySource("secret", material)


def pem(material: bytes) -> KeySource:
    return KeySource("pem", material)


def jwks(*keys: Any) -> KeySource:
    return KeySource("jwks", jwk_set(*keys))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_has_usable_material(algorithm: str) -> None:
    if algorithm.startswith("HS"):
        key: Any = SECRET
        assert problem(secret(key), [algorithm]) is None
    else:
        key = private_key(algorithm)
        assert problem(pem(public_pem(key)), [algorithm]) is None
    assert problem(jwks(jwk(algorithm, key)), [algorithm]) is None
    assert problem(jwks(jwk(algorithm, key, alg=algorithm, use="sig", key_ops=["verify"])), [algorithm]) is None


def test_a_certificate_stands_for_its_key() -> None:
    assert problem(pem(certificate()), ["ES256"]) is None


@pytest.mark.parametrize(
    ("source", "algorithms", "says"),
    [
        (secret(b""), ["HS256"], "0 bytes; HS256 takes at least 32"),
        (secret(b"x" * 31), ["HS256"], "31 bytes; HS256 takes at least 32"),
        (secret(b"x" * 32), ["HS256", "HS384"], "32 bytes; HS384 takes at least 48"),
        (secret(b"x" * 63), ["HS512"], "63 bytes; HS512 takes at least 64"),
        (secret(SECRET), ["RS256"], "no key is for RS256"),
        (secret(SECRET), ["HS256", "RS256"], "make two issuers"),
        (secret(public_pem(RSA)), ["HS256"], "whoever has it could sign"),
        (secret(certificate()), ["HS256"], "whoever has it could sign"),
        (secret(jwk_set(jwk("RS256", RSA))), ["HS256"], "whoever has it could sign"),
        (pem(b""), ["RS256"], "no PEM public key"),
        (pem(b"ssh-rsa AAAA"), ["RS256"], "no PEM public key"),
        (pem(private_pem(RSA)), ["RS256"], "private key; give the public one"),
        (pem(private_pem(EC)), ["ES256"], "private key; give the public one"),
        (pem(public_pem(RSA) + public_pem(EC)), ["RS256"], "2 PEM blocks"),
        (pem(public_pem(RSA)[:100]), ["RS256"], "no valid PEM public key"),
        (pem(public_pem(dsa.generate_private_key(1024))), ["RS256"], "no public key for signatures"),
        (pem(public_pem(private_key("RS256", bits=1024))), ["RS256"], "1024 bits; at least 2048"),
        (pem(public_pem(private_key("ES256K"))), ["ES256"], "curve secp256k1 is not supported"),
        (pem(public_pem(EC)), ["ES384"], "no key is for ES384; the keys given are for ES256"),
        (pem(public_pem(EC)), ["RS256", "EdDSA"], "no key is for RS256 or EdDSA"),
        (pem(public_pem(RSA)), ["HS256"], "no key is for HS256"),
        (pem(public_pem(RSA)), [], "no algorithm is allowed"),
        (pem(public_pem(RSA)), ["none"], "'none' is not supported"),
        (pem(public_pem(RSA)), ["RS256", "ES256K"], "'ES256K' is not supported"),
        (KeySource("jwks", b"<html>"), ["RS256"], "no plain JSON object"),
        (KeySource("jwks", b'{"keys":[],"keys":[]}'), ["RS256"], "no plain JSON object"),
        (KeySource("jwks", json.dumps(jwk("RS256", RSA)).encode()), ["RS256"], 'no list "keys"'),
        (KeySource("jwks", b'{"keys":{}}'), ["RS256"], 'no list "keys"'),
        (jwks(), ["RS256"], "no usable key"),
        (jwks(jwk("RS256", RSA, use="enc")), ["RS256"], "no usable key; key 1: not for signatures (use)"),
        (jwks(jwk("RS256", RSA)), ["ES256"], "no key is for ES256"),
        (jwks(jwk("HS256", SECRET)), ["RS256"], "a secret among public keys"),
        (jwks(jwk("RS256", RSA)), ["HS256"], "a public key among secrets"),
        (KeySource("jwks_url", url="https://issuer.example/jwks"), ["HS256"], "must not be published"),
        (KeySource("jwks_url", url="ftp://issuer.example/jwks"), ["RS256"], "no http:// or https:// URL"),
        (KeySource("jwks_url", url="https:///jwks"), ["RS256"], "no http:// or https:// URL"),
        (KeySource("jwks_url", url="https://h:99999/"), ["RS256"], "no http:// or https:// URL"),
        (KeySource("jwks_url", url="https://[/"), ["RS256"], "no http:// or https:// URL"),
        (KeySource("jwks_url", url="https://h/", refresh=300.0, max_stale=60.0), ["RS256"], "shorter than refresh"),
    ],
)
def test_problems_are_said_in_one_sentence(source: KeySource, algorithms: list[str], says: str) -> None:
    said = problem(source, algorithms)
    assert said is not None
    assert says in said
    assert "\n" not in said
    assert source.material == b"" or source.material.decode(errors="replace") not in said


def test_a_key_set_at_an_address_can_only_be_fetched() -> None:
    source = KeySource("jwks_url", url="https://issuer.example/jwks.json")
    assert problem(source, ["RS256", "ES256"]) is None
    with pytest.raises(ValueError, match="fetched"):
        key_set(source, ["RS256"])


BAD_MEMBERS: list[tuple[Any, str]] = [
    (None, "not an object"),
    ([], "not an object"),
    ({}, "type (kty)"),
    ({"kty": ["RSA"]}, "type (kty)"),
    ({"kty": "AKP"}, "type (kty)"),
    ({"kty": "RSA"}, "n is not base64url"),
    (jwk("RS256", RSA, n="AQAB"), "no valid key"),
    (jwk("RS256", RSA, n=7), "n is not base64url"),
    (jwk("RS256", RSA, n="é"), "n is not base64url"),
    (jwk("RS256", RSA, e="AQ"), "no valid key"),
    (jwk("RS256", RSA, e="AQ!B"), "e is not base64url"),
    (jwk("RS256", RSA, e=""), "e is not base64url"),
    (jwk("RS256", RSA, kid=7), "key id"),
    (jwk("RS256", RSA, kid="k" * 256), "key id"),
    (jwk("RS256", RSA, use="enc"), "use"),
    (jwk("RS256", RSA, use=["sig"]), "use"),
    (jwk("RS256", RSA, key_ops=["encrypt"]), "key_ops"),
    (jwk("RS256", RSA, key_ops="verify"), "key_ops"),
    (jwk("RS256", RSA, key_ops=[]), "key_ops"),
    (jwk("RS256", RSA, alg="ES256"), "alg"),
    (jwk("RS256", RSA, alg="HS256"), "alg"),
    (jwk("RS256", RSA, alg="RSA-OAEP"), "alg"),
    (jwk("RS256", RSA, alg="none"), "alg"),
    (jwk("RS256", RSA, alg=["RS256"]), "alg"),
    (jwk("RS256", RSA, d="AQAB"), "private key"),
    (jwk("RS256", private_key("RS256", bits=1024)), "1024 bits"),
    (jwk("ES256", EC, alg="ES384"), "alg"),
    (jwk("ES256", EC, crv="P-384"), "no valid key"),
    (jwk("ES256", EC, crv="P-999"), "no valid key"),
    (jwk("ES256", EC, x=jwk("ES256", EC)["y"]), "no valid key"),
    (jwk("ES256K", private_key("ES256K")), "secp256k1"),
    (jwk("EdDSA", private_key("EdDSA"), crv="X25519"), "no valid key"),
    (jwk("EdDSA", private_key("EdDSA"), x="AAAA"), "no valid key"),
    (jwk("EdDSA", private_key("EdDSA"), alg="ES256"), "alg"),
    (jwk("HS256", SECRET), "secret among public keys"),
]


@pytest.mark.parametrize(("member", "why"), BAD_MEMBERS)
def test_a_bad_member_is_left_out_and_the_others_stay(member: Any, why: str) -> None:
    keys = parse_jwk_set(jwk_set(member, jwk("ES256", EC, kid="good")), secrets=False)
    assert [key.key_id for key in keys.keys] == ["good"]
    assert len(keys.ignored) == 1
    assert keys.ignored[0].startswith("key 1: ")
    assert why in keys.ignored[0]


def test_a_set_is_read_up_to_a_bound() -> None:
    keys = parse_jwk_set(
        jwk_set(*[jwk("EdDSA", private_key("EdDSA"), kid=f"k{at}") for at in range(200)]), secrets=False
    )
    assert len(keys.keys) == 128
    assert keys.ignored == ("keys from 129 on: more than are read",)


def test_a_key_without_algorithm_works_with_every_one_of_its_type() -> None:
    keys = parse_jwk_set(jwk_set(jwk("RS256", RSA, kid="a"), jwk("PS256", RSA, kid="b", alg="PS256")), secrets=False)
    assert keys.keys[0].algorithms == {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    assert keys.keys[1].algorithms == {"PS256"}


def test_the_newer_names_of_eddsa_are_known() -> None:
    assert problem(jwks(jwk("EdDSA", private_key("EdDSA"), alg="Ed25519")), ["EdDSA"]) is None
    assert problem(jwks(jwk("EdDSA", private_key("EdDSA", 448), alg="Ed448")), ["EdDSA"]) is None


def ids(keys: KeySet, key_id: str | None, algorithm: str) -> list[str | None]:
    return [key.key_id for key in keys.select(key_id, algorithm)]


def test_keys_are_selected_by_id_and_algorithm() -> None:
    members = [jwk("RS256", RSA, kid="r"), jwk("ES256", EC, kid="e"), jwk("ES256", EC), jwk("RS256", RSA, kid="e")]
    keys = parse_jwk_set(jwk_set(*members), secrets=False)
    assert ids(keys, "r", "RS256") == ["r"]
    assert ids(keys, "r", "ES256") == []
    assert ids(keys, "e", "ES256") == ["e"]
    assert ids(keys, "e", "PS512") == ["e"]
    assert ids(keys, "x", "ES256") == []
    assert ids(keys, None, "ES256") == ["e", None]
    assert ids(keys, None, "RS256") == ["r", "e"]
    assert ids(keys, None, "EdDSA") == []
    assert ids(keys, "../../etc/passwd", "ES256") == ids(keys, "' OR '1'='1", "ES256") == []


def test_the_keys_tried_for_one_token_are_bounded() -> None:
    keys = parse_jwk_set(jwk_set(*[jwk("ES256", EC, kid=f"k{at}") for at in range(50)]), secrets=False)
    assert ids(keys, None, "ES256") == [f"k{at}" for at in range(8)]
    assert ids(keys, "k49", "ES256") == ["k49"]


@pytest.mark.parametrize("source", [secret(SECRET), pem(public_pem(EC))])
def test_a_source_without_key_ids_takes_every_key_id(source: KeySource) -> None:
    keys = key_set(source, ["HS256"] if source.kind == "secret" else ["ES256"])
    algorithm = min(keys.algorithms())
    assert ids(keys, "anything", algorithm) == ids(keys, None, algorithm) == [None]


def test_keys_do_not_show_themselves() -> None:
    keys = key_set(secret(SECRET), ["HS256"])
    assert SECRET.decode() not in repr((keys, keys.keys))


JSON = st.recursive(
    st.none()
    | st.integers(-9, 9)
    | st.text("aAé=_ ", max_size=6)
    | st.sampled_from(["sig", "verify", "P-256", *ASYMMETRIC]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
NAMES = st.sampled_from(["kty", "kid", "use", "key_ops", "alg", "n", "e", "crv", "x", "y", "d", "k"])
GOOD = st.sampled_from([jwk("RS256", RSA), jwk("ES256", EC), jwk("EdDSA", private_key("EdDSA")), {}])


@given(st.lists(st.tuples(GOOD, st.dictionaries(NAMES, JSON, max_size=3)), max_size=3), st.booleans())
def test_no_members_make_it_raise(members: list[tuple[Any, Any]], secrets: bool) -> None:
    keys = parse_jwk_set(jwk_set(*[good | changes for good, changes in members]), secrets=secrets)
    assert len(keys.keys) + len(keys.ignored) == len(members)


@given(st.binary(max_size=200))
def test_no_document_raises_anything_but_a_sentence(document: bytes) -> None:
    for kind in ("pem", "jwks"):
        assert problem(KeySource(kind, document), ["RS256"]) is not None
    assert len(document) >= 32 or problem(secret(document), ["HS256"]) is not None
