"""A recording holds no usable credential, and still says what replay needs of each."""

import re
import stat
from itertools import islice
from time import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader
from mitmproxy.test.tflow import tflow

from mitmgate.core.principal import Principal
from mitmgate.core.refusal import Refusal
from mitmgate.core.token import UnverifiedToken, read_token
from mitmgate.keys.ring import KeyRing
from mitmgate.policy.loader import load_snapshot
from mitmgate.replay.privacy import Privacy, Veil
from mitmgate.replay.redaction import Redactor
from mitmgate.replay.resigned import MARK, ReplayKey, read_resigned
from tests.live.harness import SECRET, mint
from tests.replay.corpus import EMAIL, SECRET_COOKIE, Corpus

JWT = re.compile(rb"eyJ[\w-]+\.[\w-]*\.[\w-]*")


@pytest.fixture(scope="module")
def recorded(corpus: Corpus) -> bytes:
    return corpus.path.read_bytes()


def test_no_secret_of_the_traffic_is_in_the_file(corpus: Corpus, recorded: bytes) -> None:
    tokens = {case.token for case in corpus.cases if case.token is not None}
    assert len(tokens) > 20
    for token in tokens:
        assert token.encode() not in recorded
        assert token.rpartition(".")[2].encode() not in recorded, "a signature is half a credential"
    for secret in (SECRET_COOKIE, EMAIL, SECRET, "YTpiCg=="):
        assert secret.encode() not in recorded, secret


def test_every_token_in_it_is_refused_by_production(corpus: Corpus, recorded: bytes) -> None:
    snapshot = load_snapshot(corpus.policy, {"MITMGATE_TEST_SECRET": SECRET})
    ring = KeyRing()
    ring.configure(snapshot.issuers)
    found = set(JWT.findall(recorded))
    assert len(found) > 20
    for token in found:
        result = ring.authenticate(snapshot.issuers, tuple(snapshot.issuers), token, 1.8e9)
        assert isinstance(result, Refusal), token
        # Whatever the policy says: the header asks for an extension that nobody knows (RFC 7515, section 4.1.11).
        assert isinstance(read_token(token), Refusal)
    assert isinstance(ring.authenticate(snapshot.issuers, ("dev",), mint().encode(), time()), Principal), "a real one"


def test_flow_by_flow_nothing_is_left_in_any_field(corpus: Corpus) -> None:
    bodies = 0
    with corpus.path.open("rb") as file:
        for number, flow in enumerate(FlowReader(file).stream()):
            assert isinstance(flow, HTTPFlow)
            assert flow.request.raw_content is None
            bodies += flow.response is not None and bool(flow.response.raw_content)
            assert set(flow.metadata) == {"mitmgate"}
            assert flow.metadata["mitmgate"]["policy"].startswith("sha256:")
            assert flow.metadata["mitmgate"]["ingress"]["method"] == flow.request.method
            if number > 300:
                break
    assert bodies == 0


def test_the_file_is_its_owners_alone(corpus: Corpus) -> None:
    assert stat.S_IMODE(corpus.path.stat().st_mode) == 0o600


def state_of(fields: list[tuple[bytes, bytes]], path: bytes = b"/", **more: Any) -> dict[str, Any]:
    flow = tflow(resp=True)
    state: dict[str, Any] = flow.get_state()
    state["request"]["headers"] = tuple(fields)
    state["request"]["path"] = path
    return state | more


INGRESS = {"headers": [], "target": "/", "authority": "", "version": "HTTP/1.1", "scheme": "http", "peer": "127.0.0.1"}
CREDENTIAL = "s3cr3t-0f-s0meb0dy"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ([(b"Authorization", b"Basic " + CREDENTIAL.encode())], b"/"),
        ([(b"Authorization", CREDENTIAL.encode())], b"/"),
        ([(b"Authorization", b"Bearer " + CREDENTIAL.encode())], b"/"),
        ([(b"authorization", b"BEARER  " + CREDENTIAL.encode() + b" ")], b"/"),
        ([(b"Proxy-Authorization", b"Basic " + CREDENTIAL.encode())], b"/"),
        ([(b"Cookie", b"a=1; session=" + CREDENTIAL.encode())], b"/"),
        ([(b"Cookie", CREDENTIAL.encode())], b"/"),
        ([(b"X-API-Key", CREDENTIAL.encode())], b"/"),
        ([(b"Referer", b"https://a.example/cb?code=" + CREDENTIAL.encode())], b"/"),
        ([(b"X-Any", b"https://me:" + CREDENTIAL.encode() + b"@a.example/")], b"/"),
        ([(b"X-Any", b"is " + mint().encode())], b"/"),
        ([], b"/x?access_token=" + CREDENTIAL.encode()),
        ([], b"/x?a=1&api_key=" + CREDENTIAL.encode() + b"&b=2"),
        ([], b"/x/" + mint().encode() + b"/y"),
        ([], b"/x?any=" + mint().replace(".", "%2E").encode()),
        ([], b"/x?any=" + mint().replace(".", "%252E").encode()),
        ([(b"Host", b"me:" + CREDENTIAL.encode() + b"@a.example")], b"/"),
    ],
)
def test_credentials_in_any_place(fields: list[tuple[bytes, bytes]], path: bytes) -> None:
    state = state_of(fields, path)
    Redactor().redact(state, lambda token: "unchecked")
    text = repr(state)
    assert CREDENTIAL not in text
    for part in re.findall(r"eyJ[\w-]{20,}", text):
        assert part.encode().startswith(MARK[:20]) or part not in repr(fields) + repr(path)


def test_a_credential_in_the_place_of_the_method_is_hidden_as_in_the_audit() -> None:
    secret = mint().encode()
    state = state_of([])
    state["request"]["method"] = secret
    state["metadata"]["mitmgate"] = {"ingress": {**INGRESS, "method": secret.decode()}}
    Redactor().redact(state, lambda token: "unchecked")
    assert secret.decode() not in repr(state)
    assert len(state["request"]["method"]) == len(secret)
    plain = state_of([])
    Redactor().redact(plain, lambda token: "unchecked")
    assert plain["request"]["method"] == b"GET"


def test_what_is_hidden_keeps_its_length_and_its_equality() -> None:
    veil = Veil(Privacy())
    one = veil.fields(((b"Cookie", b"a=1; b=2222"), (b"X-Api-Key", b"k" * 40), (b"Other", b"plain")))
    assert [len(value) for _, value in one] == [11, 40, 5]
    assert one == veil.fields(((b"Cookie", b"a=1; b=2222"), (b"X-Api-Key", b"k" * 40), (b"Other", b"plain")))
    assert one[2] == (b"Other", b"plain")
    assert veil.text("value") != Veil(Privacy()).text("value"), "another recording hides it as something else"


def test_listed_claims_are_hashed_also_where_a_route_put_them(corpus: Corpus) -> None:
    with corpus.path.open("rb") as file:
        mails = set()
        for flow in islice(FlowReader(file).stream(), 1500):
            assert isinstance(flow, HTTPFlow)
            if "x-mail" in flow.request.headers:
                mails.add(flow.request.headers["x-mail"])
    assert len(mails) == 1
    assert re.fullmatch("[0-9a-f]{32}", mails.pop())


def test_redacting_twice_keeps_what_the_first_time_said() -> None:
    token = mint(email=EMAIL).encode()
    state = state_of([(b"Authorization", b"Bearer " + token)])
    first, second = Redactor(), Redactor()
    first.redact(state, lambda _: "good")
    once = state["request"]["headers"]
    second.redact(state, lambda _: "bad")
    assert state["request"]["headers"] == once
    assert state["metadata"]["mitmgate"]["recording"]["key"] == first.key.public


def test_a_resigned_token_of_another_key_or_changed_is_not_intact() -> None:
    token = read_token(mint().encode())
    assert isinstance(token, UnverifiedToken)
    key = ReplayKey()
    resigned = key.resign(token, 300, "good", dict(token.unverified_claims))
    found = read_resigned(resigned, key.public)
    assert found is not None and found.token is not None
    assert (len(found.text), found.signature, found.token.algorithm) == (300, "good", "HS256")
    assert read_resigned(resigned, ReplayKey().public) is None
    assert read_resigned(resigned[:-4] + b"AAAA", key.public) is None
    head, _, _ = resigned.split(b".")
    assert read_resigned(head + b".e30.", key.public) is None


@given(st.binary(max_size=200))
def test_any_credential_is_replaced_by_what_nobody_accepts(credential: bytes) -> None:
    state = state_of([(b"Authorization", b"Bearer " + credential.replace(b"\n", b"").replace(b"\r", b""))])
    Redactor().redact(state, lambda token: "unchecked")
    ((_, value),) = state["request"]["headers"]
    token = value.partition(b" ")[2].strip(b" ")
    assert not token or isinstance(read_token(token), Refusal)


def test_principals_are_not_the_claims() -> None:
    """The principal in the verdict is hidden with the claim that it comes from."""
    state = state_of([(b"Authorization", b"Bearer " + mint("alice@mail.example").encode())])
    principal = Principal("alice@mail.example", "dev", (), frozenset(), {}, 0.0)
    state["metadata"] = {"mitmgate": {"principal": {"subject": principal.subject, "issuer": "dev"}}}
    Redactor(Privacy(claims=("sub",))).redact(state, lambda _: "good")
    assert "alice@mail.example" not in repr(state)
