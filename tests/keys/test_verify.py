"""Verification with keys of the policy: every algorithm, every confusion of them, the cache of verified tokens."""

import hashlib
import hmac
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm
from jwt.utils import base64url_decode, raw_to_der_signature

from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer, KeySource
from mitmgate.core.token import SignedClaims, UnverifiedToken, read_token
from mitmgate.keys.keyset import ALGORITHMS, VerificationKey
from mitmgate.keys.ring import KeyRing
from mitmgate.keys.verify import verify_signature
from tests.keys.signing import (
    ASYMMETRIC,
    CLAIMS,
    NOW,
    SECRET,
    b64,
    issuer,
    jwk,
    jwk_set,
    private_key,
    public_pem,
    sign,
)

NAMES = ("corp",)
DEV = issuer(KeySource("secret", SECRET), "HS256")


def ring_of(*issuers: Issuer) -> tuple[KeyRing, dict[str, Issuer]]:
    ring, named = KeyRing(), {one.name: one for one in issuers}
    ring.configure(named)
    return ring, named


def ask(token: bytes, *issuers: Issuer, now: float = NOW, names: tuple[str, ...] = NAMES) -> Reason | None:
    """Authenticate once with a fresh ring; None where there is a principal."""
    ring, named = ring_of(*issuers)
    return outcome(ring, named, token, now, names)


def outcome(
    ring: KeyRing, named: dict[str, Issuer], token: bytes, now: float = NOW, names: tuple[str, ...] = NAMES
) -> Reason | None:
    result = ring.authenticate(named, names, token, now)
    if isinstance(result, Refusal):
        return result.reason
    assert isinstance(result, Principal), "nothing has to be waited for"
    return None


def source_of(algorithm: str, key: Any) -> KeySource:
    return KeySource("secret", key) if algorithm.startswith("HS") else KeySource("pem", public_pem(key))


def key_of(algorithm: str) -> Any:
    return SECRET if algorithm.startswith("HS") else private_key(algorithm)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_verifies(algorithm: str) -> None:
    key = key_of(algorithm)
    for source in (source_of(algorithm, key), KeySource("jwks", jwk_set(jwk(algorithm, key, kid="k1")))):
        trusted = issuer(source, algorithm)
        for header in ({}, {"kid": "k1"}):
            assert ask(sign(algorithm, key, header=header), trusted) is None
        assert ask(sign(algorithm, key, header={"kid": "k1"})[:-4] + b"AAAA", trusted) in {
            Reason.TOKEN_SIGNATURE_INVALID,
            Reason.TOKEN_MALFORMED,
        }


def test_ed448_verifies() -> None:
    key = private_key("EdDSA", 448)
    trusted = issuer(KeySource("jwks", jwk_set(jwk("EdDSA", key), jwk("EdDSA", private_key("EdDSA")))), "EdDSA")
    assert ask(sign("EdDSA", key), trusted) is None
    assert ask(sign("EdDSA", private_key("EdDSA")), trusted) is None
    assert ask(sign("EdDSA", private_key("EdDSA", 1)), trusted) is Reason.TOKEN_SIGNATURE_INVALID


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_another_key_of_the_same_kind_does_not_verify(algorithm: str) -> None:
    trusted = issuer(source_of(algorithm, private_key(algorithm)), algorithm)
    forged = sign(algorithm, private_key(algorithm, 1))
    assert ask(forged, trusted) is Reason.TOKEN_SIGNATURE_INVALID


@pytest.mark.parametrize("mine", sorted(ALGORITHMS))
@pytest.mark.parametrize("theirs", sorted(ALGORITHMS))
def test_an_algorithm_that_the_policy_does_not_name_is_refused(mine: str, theirs: str) -> None:
    reason = ask(sign(theirs, key_of(theirs)), issuer(source_of(mine, key_of(mine)), mine))
    assert reason is (None if mine == theirs else Reason.TOKEN_ALGORITHM_REFUSED)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("kind", ["RS256", "ES256", "EdDSA"])
def test_a_public_key_is_no_secret(algorithm: str, kind: str) -> None:
    """The classic confusion: HS256 with the published key, in every spelling an attacker may guess."""
    key = private_key(kind)
    pem = public_pem(key)
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    guesses = [pem, pem.strip(), pem.replace(b"\n", b"\r\n"), der, jwk_set(jwk(kind, key)), b""]
    # Even a policy that allowed both would not let one key serve both: key and algorithm are bound.
    for algorithms in ((kind,), (kind, algorithm)):
        trusted = [
            issuer(KeySource("pem", pem), *algorithms),
            issuer(KeySource("jwks", jwk_set(jwk(kind, key, kid="k1"))), *algorithms),
        ]
        for guess in guesses:
            for one in trusted:
                forged = sign(algorithm, guess, header={"kid": "k1"})
                assert ask(forged, one) in {Reason.TOKEN_ALGORITHM_REFUSED, Reason.TOKEN_KEY_UNKNOWN}


def test_a_key_verifies_with_its_own_algorithms_alone_whoever_chose_it() -> None:
    token = read_token(sign("HS256", SECRET))
    assert isinstance(token, UnverifiedToken)
    bound, other = (VerificationKey(None, frozenset({name}), SECRET) for name in ("HS256", "HS512"))
    assert verify_signature(token, [bound]) == (SignedClaims(token.unverified_claims), bound)
    assert verify_signature(token, [other, bound]) == (SignedClaims(token.unverified_claims), bound)
    assert verify_signature(token, [other]) is None
    assert verify_signature(token, []) is None


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE"])
@pytest.mark.parametrize("signature", [b"", b".", b"AAAA"])
def test_unsigned_tokens_are_refused(name: str, signature: bytes) -> None:
    head, body, _ = sign("HS256", SECRET, header={"alg": name}).split(b".")
    reason = ask(head + b"." + body + b"." + signature, DEV)
    assert reason in {Reason.TOKEN_ALGORITHM_REFUSED, Reason.TOKEN_MALFORMED}


def test_a_policy_that_names_none_all_the_same_gets_nothing() -> None:
    trusted = issuer(KeySource("secret", SECRET), "none", "HS256")
    assert ask(sign("HS256", SECRET, header={"alg": "none"}), trusted) is Reason.TOKEN_ALGORITHM_REFUSED


def test_an_ecdsa_signature_in_der_is_refused() -> None:
    key = private_key("ES256")
    token = sign("ES256", key)
    raw = token.rpartition(b".")[2]
    der = b64(raw_to_der_signature(base64url_decode(raw), key.curve))
    trusted = issuer(source_of("ES256", key), "ES256")
    assert ask(token, trusted) is None
    assert ask(token.rpartition(b".")[0] + b"." + der, trusted) is Reason.TOKEN_SIGNATURE_INVALID


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("size", [1, 31, 32, 63, 64, 65, 96, 132, 256, 512, 2048])
@pytest.mark.parametrize("byte", [b"\0", b"\xff"])
def test_odd_signatures_are_refused(algorithm: str, size: int, byte: bytes) -> None:
    key = key_of(algorithm)
    unsigned = sign(algorithm, key).rpartition(b".")[0]
    token = unsigned + b"." + b64(byte * size)
    assert ask(token, issuer(source_of(algorithm, key), algorithm)) is Reason.TOKEN_SIGNATURE_INVALID


def test_nothing_in_a_token_makes_a_key_be_fetched() -> None:
    """`jku`, `x5u`, `x5c` and `jwk` offer a key of the attacker's; the signature is good for that one."""
    mine, evil = private_key("ES256"), private_key("ES256", 1)
    header = {
        "jku": "http://127.0.0.1:9/jwks.json",
        "x5u": "http://127.0.0.1:9/cert.pem",
        "x5c": ["MIIB"],
        "jwk": jwk("ES256", evil),
    }
    trusted = issuer(source_of("ES256", mine), "ES256")
    with patch("socket.socket.connect", side_effect=AssertionError("connected")):
        assert ask(sign("ES256", evil, header=header), trusted) is Reason.TOKEN_SIGNATURE_INVALID
        assert ask(sign("ES256", mine, header=header), trusted) is None


@pytest.mark.parametrize(
    "kid", ["../../../etc/passwd", "' OR '1'='1", "k1\0", "K1", "k1 ", "x" * 255, "é", "/dev/null"]
)
def test_a_key_id_is_a_name_and_nothing_else(kid: str) -> None:
    key = private_key("ES256")
    trusted = issuer(KeySource("jwks", jwk_set(jwk("ES256", key, kid="k1"))), "ES256")
    assert ask(sign("ES256", key, header={"kid": kid}), trusted) is Reason.TOKEN_KEY_UNKNOWN


def test_without_key_id_the_keys_that_fit_are_tried() -> None:
    keys = [private_key("ES256", number) for number in range(10)]
    members = [jwk("RS256", private_key("RS256"), kid="r")] + [
        jwk("ES256", key, kid=str(at)) for at, key in enumerate(keys)
    ]
    trusted = issuer(KeySource("jwks", jwk_set(*members)), "ES256", "RS256")
    assert ask(sign("ES256", keys[7]), trusted) is None
    assert ask(sign("ES256", keys[8]), trusted) is Reason.TOKEN_SIGNATURE_INVALID  # bounded
    assert ask(sign("ES256", keys[8], header={"kid": "8"}), trusted) is None


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("corp",), None),
        (("corp", "other"), None),
        (("other",), Reason.TOKEN_ISSUER_UNKNOWN),
        ((), Reason.TOKEN_ISSUER_UNKNOWN),
    ],
)
def test_only_issuers_that_the_route_accepts_count(names: tuple[str, ...], reason: Reason | None) -> None:
    other = replace(DEV, name="other", issuer="https://other.example")
    assert ask(sign("HS256", SECRET), DEV, other, names=names) is reason


def test_an_issuer_can_not_speak_for_another() -> None:
    other = issuer(KeySource("secret", SECRET[::-1]), "HS256", name="other", issuer="https://other.example")
    forged = sign("HS256", SECRET[::-1])  # the other's key, our issuer's name
    assert ask(forged, DEV, other, names=("corp", "other")) is Reason.TOKEN_SIGNATURE_INVALID


class Counted:
    """Counts how often a signature is verified, and does verify it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        verify = HMACAlgorithm.verify

        def counted(algorithm: HMACAlgorithm, *arguments: Any) -> bool:
            self.calls += 1
            return verify(algorithm, *arguments)

        monkeypatch.setattr(HMACAlgorithm, "verify", counted)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def test_a_verified_token_is_not_verified_again(counted: Counted) -> None:
    ring, named = ring_of(DEV)
    token = sign("HS256", SECRET)
    first, second = (ring.authenticate(named, NAMES, token, NOW + at) for at in (0, 1))
    assert first is second
    assert counted.calls == 1


def test_times_are_checked_on_every_use_of_a_cached_token() -> None:
    ring, named = ring_of(replace(DEV, leeway=5.0))
    token = sign("HS256", SECRET, CLAIMS | {"exp": NOW + 60, "nbf": NOW - 60})
    assert outcome(ring, named, token) is None
    assert outcome(ring, named, token, NOW + 64.9) is None
    assert outcome(ring, named, token, NOW + 65) is Reason.TOKEN_EXPIRED
    assert outcome(ring, named, token, NOW - 66) is Reason.TOKEN_NOT_YET_VALID
    assert outcome(ring, named, token, NOW - 60) is Reason.TOKEN_NOT_YET_VALID  # iat
    assert outcome(ring, named, token) is None


def test_refusals_are_not_cached(counted: Counted) -> None:
    ring, named = ring_of(DEV)
    forged = sign("HS256", SECRET[::-1])
    for _ in range(3):
        assert outcome(ring, named, forged) is Reason.TOKEN_SIGNATURE_INVALID
    assert counted.calls == 3
    assert len(ring._cache) == 0


def test_the_cache_is_bounded_and_keeps_no_token() -> None:
    ring, named = KeyRing(cached_tokens=10), {"corp": DEV}
    ring.configure(named)
    tokens = [sign("HS256", SECRET, CLAIMS | {"jti": str(at)}) for at in range(100)]
    assert all(outcome(ring, named, token) is None for token in tokens)
    assert len(ring._cache) == 10
    assert not any(token.rpartition(b".")[2] in repr(dict(ring._cache)).encode() for token in tokens)


def test_a_cached_token_counts_only_where_its_issuer_is_accepted() -> None:
    other = replace(DEV, name="other", issuer="https://other.example")
    ring, named = ring_of(DEV, other)
    token = sign("HS256", SECRET)
    assert outcome(ring, named, token) is None
    assert outcome(ring, named, token, names=("other",)) is Reason.TOKEN_ISSUER_UNKNOWN


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"audience": ("api://users",)}, Reason.TOKEN_AUDIENCE_REFUSED),
        ({"algorithms": ("HS384",)}, Reason.TOKEN_ALGORITHM_REFUSED),
        ({"max_lifetime": 60.0}, Reason.TOKEN_LIFETIME_EXCEEDED),
        ({"token_type": "at+jwt"}, Reason.TOKEN_TYPE_REFUSED),
        ({"issuer": "https://other.example"}, Reason.TOKEN_ISSUER_UNKNOWN),
        ({"subject": ("user",)}, Reason.TOKEN_CLAIM_INVALID),
        ({"keys": KeySource("secret", SECRET[::-1])}, Reason.TOKEN_SIGNATURE_INVALID),
        ({}, None),
    ],
)
def test_a_changed_policy_makes_cached_tokens_void(
    change: dict[str, Any], reason: Reason | None, counted: Counted
) -> None:
    ring, named = ring_of(DEV)
    token = sign("HS256", SECRET)
    assert outcome(ring, named, token) is None
    changed = {"corp": replace(DEV, **change)}
    ring.configure(changed)
    assert outcome(ring, changed, token) is reason
    assert outcome(ring, named, token) is None  # a request that still holds the policy before
    assert change or counted.calls == 1


def test_issuers_of_a_policy_that_was_never_configured_have_no_keys() -> None:
    ring, named = ring_of(DEV)
    token = sign("HS256", SECRET)
    assert outcome(ring, dict(named), token) is Reason.KEYS_UNAVAILABLE
    for _ in range(2):
        ring.configure({"corp": DEV})
    assert outcome(ring, named, token) is Reason.KEYS_UNAVAILABLE


def test_unusable_material_changes_nothing() -> None:
    ring, named = ring_of(DEV)
    bad = {"corp": DEV, "bad": issuer(KeySource("secret", b"short"), "HS256", name="bad")}
    with pytest.raises(ValueError, match="5 bytes"):
        ring.configure(bad)
    assert outcome(ring, named, sign("HS256", SECRET)) is None
    assert outcome(ring, bad, sign("HS256", SECRET)) is Reason.KEYS_UNAVAILABLE


OTHER = "https://other.example"
RING, NAMED = ring_of(DEV, issuer(KeySource("pem", public_pem(private_key("ES256"))), "ES256", name="es", issuer=OTHER))
BOTH = ("corp", "es")
TOKENS = [sign("HS256", SECRET), sign("ES256", private_key("ES256"), CLAIMS | {"iss": OTHER})]
FOREIGN = [bytes([byte]) for byte in range(256)]


@given(st.binary(max_size=8202) | st.text(max_size=100).map(str.encode))
@example(b"")
@example(b"..")
@example(b"\xff" * 8193)
def test_no_bytes_make_it_raise(token: bytes) -> None:
    assert isinstance(RING.authenticate(NAMED, BOTH, token, NOW), Refusal)


def test_tokens_as_they_are_are_accepted() -> None:
    assert not any(isinstance(RING.authenticate(NAMED, BOTH, token, NOW), Refusal) for token in TOKENS)


@given(st.sampled_from(TOKENS), st.data())
def test_a_token_with_any_byte_changed_is_refused(token: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.sampled_from(FOREIGN))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    changed = token[:at] + (b"" if kind == "delete" else byte) + token[at + (kind != "insert") :]
    result = RING.authenticate(NAMED, BOTH, changed, NOW)
    assert isinstance(result, Refusal) is (changed != token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "cty"]), JSON, max_size=3),
    st.dictionaries(
        st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "role", "scope", "jti"]), JSON, max_size=4
    ),
)
def test_no_signed_json_makes_it_raise(header: Any, claims: Any) -> None:
    token = sign("HS256", SECRET, CLAIMS | claims, header)
    assert isinstance(RING.authenticate(NAMED, BOTH, token, NOW), Refusal | Principal)


def test_signatures_are_what_the_rfc_says() -> None:
    """The signer of these tests and the verifier share PyJWT; this one is the standard library's own HMAC."""
    unsigned = sign("HS256", SECRET).rpartition(b".")[0]
    token = unsigned + b"." + b64(hmac.digest(SECRET, unsigned, hashlib.sha256))
    assert ask(token, DEV) is None


def test_large_tokens_count_for_several_in_the_memory_of_verified_ones() -> None:
    ring = KeyRing(cached_tokens=8)
    named = {DEV.name: DEV}
    ring.configure(named)
    for number in range(20):
        token = sign("HS256", SECRET, CLAIMS | {"sub": f"user-{number}", "pad": "x" * 2500})
        assert outcome(ring, named, token) is None
    assert 1 <= len(ring._cache) <= 2
    for number in range(20):
        assert outcome(ring, named, sign("HS256", SECRET, CLAIMS | {"sub": f"user-{number}"})) is None
    assert len(ring._cache) == 8


def test_a_token_is_known_by_the_key_that_made_it() -> None:
    """Who has a revoked key leaves its id out, or writes another one."""
    key = private_key("ES256")
    published = jwk_set(jwk("ES256", key, kid="k1"), jwk("ES256", private_key("ES256", 1), kid="k2"))
    ring, named = ring_of(issuer(KeySource("jwks", published), "ES256"))
    for header in ({}, {"kid": "k1"}):
        result = ring.authenticate(named, NAMES, sign("ES256", key, header=header), NOW)
        assert isinstance(result, Principal)
        assert "kid corp k1" in result.marks
        assert {"iss corp ", f"sub corp {result.subject}"} <= set(result.marks)
        assert result.issued == CLAIMS["iat"]
    assert outcome(ring, named, sign("ES256", key, header={"kid": "k2"})) is Reason.TOKEN_SIGNATURE_INVALID
