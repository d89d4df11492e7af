"""Tokens as anyone may send them: what read_token and check_header refuse, and that nothing makes them raise."""

import json
from base64 import urlsafe_b64encode
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Issuer, KeySource
from mitmgate.core.token import MAX_TOKEN, UnverifiedToken, check_header, read_token

ISSUER = Issuer("corp", "https://issuer.example", (), ("RS256", "ES256"), KeySource("secret"))
HEADER = {"alg": "RS256", "typ": "JWT", "kid": "k1"}
CLAIMS = {"iss": "https://issuer.example", "sub": "alice", "exp": 2_000_000_000}


def b64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def compact(header: Any = HEADER, claims: Any = CLAIMS, signature: bytes = b"signature") -> bytes:
    """Join the parts; a header or claims given as bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    return b".".join([b64(parts[0]), b64(parts[1]), b64(signature)])


def reason_of(token: bytes) -> Reason | None:
    read = read_token(token)
    return read.reason if isinstance(read, Refusal) else None


def test_a_well_formed_token_is_taken_apart() -> None:
    token = compact()
    read = read_token(token)
    assert isinstance(read, UnverifiedToken)
    assert (read.algorithm, read.key_id, read.type, read.issuer) == ("RS256", "k1", "JWT", CLAIMS["iss"])
    assert read.signing_input + b"." + b64(read.signature) == token
    assert read.unverified_claims == CLAIMS
    assert "signature" not in repr(read)
    assert "alice" not in repr(read)


@pytest.mark.parametrize("name", ["jku", "x5u", "x5c", "x5t", "jwk", "anything"])
def test_members_that_offer_keys_are_left_unread(name: str) -> None:
    token = compact({**HEADER, name: "http://127.0.0.1:1/evil.json"})
    plain, read = read_token(compact()), read_token(token)
    assert isinstance(read, UnverifiedToken)
    assert isinstance(plain, UnverifiedToken)
    assert replace(read, signing_input=plain.signing_input) == plain


GOOD = compact()
HEAD_PART, CLAIMS_PART, SIGNATURE_PART = GOOD.split(b".")
MALFORMED = {
    "empty": b"",
    "one part": b"abc",
    "two parts": HEAD_PART + b"." + CLAIMS_PART,
    "trailing dot": GOOD + b".",
    "leading dot": b"." + GOOD,
    "only dots": b"..",
    "four parts": GOOD + b".AAAA",
    "JWE": b".".join([b64(b'{"alg":"dir","enc":"A256GCM"}'), b"", b"AAAA", b"AAAA", b"AAAA"]),
    "no signature": compact(signature=b""),
    "padding": GOOD + b"=",
    "padding in the claims": HEAD_PART + b"." + CLAIMS_PART + b"=." + SIGNATURE_PART,
    "padding inside": HEAD_PART + b"=." + CLAIMS_PART + b"." + SIGNATURE_PART,
    "standard alphabet": HEAD_PART + b"." + CLAIMS_PART + b".ab+/",
    "space": GOOD.replace(b".", b" .", 1),
    "newline": GOOD + b"\n",
    "NUL": GOOD + b"\0",
    "non-ASCII": GOOD + "é".encode(),
    "length 1 mod 4": HEAD_PART + b"." + CLAIMS_PART + b".AAAAA",
    "trailing bits of two characters": HEAD_PART + b"." + CLAIMS_PART + b".AB",
    "trailing bits of three characters": HEAD_PART + b"." + CLAIMS_PART + b".AAB",
    "two tokens": GOOD + b", " + GOOD,
    "header is a list": compact(b"[]"),
    "header is a string": compact(b'"alg"'),
    "header is null": compact(b"null"),
    "header is empty": compact(b""),
    "header is UTF-16": compact('{"alg":"RS256"}'.encode("utf-16")),
    "header has a BOM": compact(b'\xef\xbb\xbf{"alg":"RS256"}'),
    "header is not UTF-8": compact(b'{"alg":"RS256","x":"\xff"}'),
    "header has two algs": compact(b'{"alg":"RS256","alg":"none"}'),
    "header has two algs, one escaped": compact(b'{"alg":"RS256","\\u0061lg":"none"}'),
    "header has more after it": compact(b'{"alg":"RS256"}{}'),
    "claims are a list": compact(claims=[]),
    "claims have two subs": compact(claims=b'{"iss":"i","sub":"alice","sub":"root"}'),
    "claims have two members deep inside": compact(claims=b'{"iss":"i","a":[{"b":1,"b":2}]}'),
    "NaN": compact(claims=b'{"iss":"i","exp":NaN}'),
    "Infinity": compact(claims=b'{"iss":"i","exp":Infinity}'),
    "-Infinity": compact(claims=b'{"iss":"i","nbf":-Infinity}'),
    "a float beyond doubles": compact(claims=b'{"iss":"i","exp":1e999}'),
    "an integer beyond 64 bits": compact(claims=b'{"iss":"i","exp":18446744073709551616}'),
    "an integer of a thousand digits": compact(claims=b'{"iss":"i","exp":' + b"9" * 1000 + b"}"),
    "lone surrogate": compact(claims=b'{"iss":"i","sub":"\\ud800"}'),
    "lone surrogate in a name": compact(claims=b'{"iss":"i","\\udfff":1}'),
    "control character in a string": compact(claims=b'{"iss":"i","sub":"a\nb"}'),
    "trailing comma": compact(claims=b'{"iss":"i",}'),
    "single quotes": compact(claims=b"{'iss':'i'}"),
    "a comment": compact(claims=b'{"iss":"i"}//'),
    "nesting": compact(claims=b'{"iss":"i","a":' + b"[" * 40 + b"]" * 40 + b"}"),
    "deep nesting": compact(claims=b'{"iss":"i","a":' + b"[" * 2800 + b"]" * 2800 + b"}"),
    "deep nesting, never closed": compact(claims=b"[" * 5000),
    "deep nesting of objects in the header": compact(b'{"a":' * 1000 + b"1" + b"}" * 1000),
}


@pytest.mark.parametrize("token", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_tokens_are_refused(token: bytes) -> None:
    assert reason_of(token) is Reason.TOKEN_MALFORMED


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crit": []}, Reason.TOKEN_HEADER_INVALID),
        ({"crit": ["exp"]}, Reason.TOKEN_HEADER_INVALID),
        ({"crit": None}, Reason.TOKEN_HEADER_INVALID),
        ({"b64": False, "crit": ["b64"]}, Reason.TOKEN_HEADER_INVALID),
        ({"b64": False}, Reason.TOKEN_HEADER_INVALID),
        ({"b64": 0}, Reason.TOKEN_HEADER_INVALID),
        ({"b64": 1}, Reason.TOKEN_HEADER_INVALID),
        ({"zip": "DEF"}, Reason.TOKEN_HEADER_INVALID),
        ({"enc": "A256GCM"}, Reason.TOKEN_HEADER_INVALID),
        ({"cty": "JWT"}, Reason.TOKEN_HEADER_INVALID),
        ({"cty": "application/jwt"}, Reason.TOKEN_HEADER_INVALID),
        ({"cty": 1}, Reason.TOKEN_HEADER_INVALID),
        ({"alg": None}, Reason.TOKEN_HEADER_INVALID),
        ({"alg": ["RS256"]}, Reason.TOKEN_HEADER_INVALID),
        ({"alg": {"RS256": 1}}, Reason.TOKEN_HEADER_INVALID),
        ({"alg": ""}, Reason.TOKEN_HEADER_INVALID),
        ({"alg": "A" * 256}, Reason.TOKEN_HEADER_INVALID),
        ({"kid": 7}, Reason.TOKEN_HEADER_INVALID),
        ({"kid": None}, Reason.TOKEN_HEADER_INVALID),
        ({"kid": ["k1"]}, Reason.TOKEN_HEADER_INVALID),
        ({"kid": ""}, Reason.TOKEN_HEADER_INVALID),
        ({"kid": "k" * 256}, Reason.TOKEN_HEADER_INVALID),
        ({"typ": 1}, Reason.TOKEN_HEADER_INVALID),
        ({"alg": "none"}, Reason.TOKEN_ALGORITHM_REFUSED),
        ({"alg": "None"}, Reason.TOKEN_ALGORITHM_REFUSED),
        ({"alg": "NONE"}, Reason.TOKEN_ALGORITHM_REFUSED),
        ({"alg": "nOnE"}, Reason.TOKEN_ALGORITHM_REFUSED),
    ],
)
def test_headers_that_no_policy_may_allow_are_refused(change: dict[str, Any], reason: Reason) -> None:
    assert reason_of(compact({**HEADER, **change})) is reason


@pytest.mark.parametrize(
    "change",
    [
        {"cty": "json"},
        {"cty": "application/example"},
        {"kid": "k" * 255},
        {"typ": "t" * 255},
        {"alg": "A" * 255},
        {"b64": True},
    ],
)
def test_headers_that_a_policy_may_allow(change: dict[str, Any]) -> None:
    assert reason_of(compact({**HEADER, **change})) is None


def test_an_issuer_may_be_as_long_as_it_may() -> None:
    assert reason_of(compact(claims={"iss": "i" * 2048})) is None


def test_what_is_wrong_with_the_form_is_said() -> None:
    for token, detail in ((MALFORMED["JWE"], "Encrypted"), (MALFORMED["four parts"], "compact form")):
        read = read_token(token)
        assert isinstance(read, Refusal)
        assert detail in read.detail


def test_none_without_signature_is_refused_for_its_algorithm() -> None:
    assert reason_of(compact({"alg": "none"}, signature=b"")) is Reason.TOKEN_ALGORITHM_REFUSED


def test_a_header_without_alg_is_refused() -> None:
    assert reason_of(compact({"typ": "JWT"})) is Reason.TOKEN_HEADER_INVALID


@pytest.mark.parametrize("issuer", [None, 1, True, "", [], ["https://issuer.example"], {}, "i" * 2049])
def test_a_token_must_name_its_issuer(issuer: Any) -> None:
    assert reason_of(compact(claims={"iss": issuer})) is Reason.TOKEN_CLAIM_INVALID


def test_a_token_without_issuer_is_refused() -> None:
    assert reason_of(compact(claims={"sub": "alice"})) is Reason.TOKEN_CLAIM_INVALID


def test_the_size_is_bounded_before_anything_is_decoded() -> None:
    assert reason_of(b"\xff" * (MAX_TOKEN + 1)) is Reason.TOKEN_TOO_LARGE
    assert reason_of(b"a" * MAX_TOKEN) is Reason.TOKEN_MALFORMED


@pytest.mark.parametrize("algorithm", ["HS256", "RS384", "rs256", "RS256 ", "ES256K", "../../etc/passwd", "' OR 1=1"])
def test_algorithms_are_those_of_the_issuer_exactly(algorithm: str) -> None:
    read = read_token(compact({"alg": algorithm}))
    assert isinstance(read, UnverifiedToken)
    refusal = check_header(read, ISSUER)
    assert refusal is not None
    assert refusal.reason is Reason.TOKEN_ALGORITHM_REFUSED


@pytest.mark.parametrize(
    ("typ", "any_accepts", "access_accepts"),
    [
        (None, True, False),
        ("JWT", True, False),
        ("jwt", True, False),
        ("application/jwt", True, False),
        ("at+jwt", True, True),
        ("AT+JWT", True, True),
        ("application/at+jwt", True, True),
        ("Application/AT+JWT", True, True),
        ("application/application/at+jwt", False, False),
        ("dpop+jwt", False, False),
        ("logout+jwt", False, False),
        ("id_token", False, False),
        ("at+jwt ", False, False),
    ],
)
def test_types(typ: str | None, any_accepts: bool, access_accepts: bool) -> None:
    header = {"alg": "RS256"} if typ is None else {"alg": "RS256", "typ": typ}
    read = read_token(compact(header))
    assert isinstance(read, UnverifiedToken)
    strict = Issuer("corp", "i", (), ("RS256",), KeySource("secret"), token_type="at+jwt")
    for issuer, accepts in ((ISSUER, any_accepts), (strict, access_accepts)):
        refusal = check_header(read, issuer)
        assert (refusal is None) is accepts
        if refusal is not None:
            assert refusal.reason is Reason.TOKEN_TYPE_REFUSED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "zip", "enc", "iss", "jku", "x"])


@given(st.binary(max_size=300) | st.lists(st.binary(max_size=60).map(b64), max_size=6).map(b".".join))
def test_no_bytes_make_it_raise(token: bytes) -> None:
    assert isinstance(read_token(token), Refusal)


@given(st.dictionaries(MEMBERS, JSON, max_size=5), st.dictionaries(MEMBERS, JSON, max_size=5), st.binary(max_size=9))
def test_no_json_makes_it_raise(header: Any, claims: Any, signature: bytes) -> None:
    read = read_token(compact({**HEADER, **header}, {**CLAIMS, **claims}, signature))
    assert isinstance(read, Refusal | UnverifiedToken)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_bytes_instead_of_json_make_it_raise(header: bytes, claims: bytes) -> None:
    assert isinstance(read_token(compact(header, claims)), Refusal)


def test_details_fit_a_quoted_string_and_a_problem_body() -> None:
    from mitmgate.core import claims, token
    from mitmgate.keys import verify

    refusals = [value for module in (token, claims, verify) for value in vars(module).values()]
    details = [value.detail for value in refusals if isinstance(value, Refusal)]
    assert len(details) > 20
    for detail in details:
        assert detail.isascii()
        assert detail.isprintable()
        assert not set('"\\') & set(detail)
