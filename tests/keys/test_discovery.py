"""Keys by discovery: where metadata is looked for, whose metadata counts, and what the gateway does when it lies."""

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mitmgate.core.rules import KeySource
from mitmgate.keys.discovery import jwks_uri, metadata_urls
from mitmgate.keys.fetch import FetchError, fetch_document
from mitmgate.keys.jwks import parse_jwk_set
from mitmgate.keys.remote import RemoteKeys
from tests.keys.jwks_server import JwksServer
from tests.keys.signing import jwk, jwk_set, private_key, private_pem
from tests.live.harness import Gateway, mint, policy, write_policy
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.certificates import Authority

ISSUER = "https://issuer.example/tenant"


@pytest.mark.parametrize(
    ("issuer", "connect", "oauth"),
    [
        ("https://a.example", "", ""),
        ("https://a.example/", "", ""),
        ("https://a.example/t/v2.0", "/t/v2.0", "/t/v2.0"),
        ("https://a.example/t/", "/t", "/t"),
    ],
)
def test_where_metadata_is(issuer: str, connect: str, oauth: str) -> None:
    assert metadata_urls(issuer) == (
        f"https://a.example{connect}/.well-known/openid-configuration",
        f"https://a.example/.well-known/oauth-authorization-server{oauth}",
    )


GOOD = {"issuer": ISSUER, "jwks_uri": "https://keys.example/jwks?v=1", "scopes_supported": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({"issuer": issuer}, "of another issuer")
            for issuer in (f"{ISSUER}/", ISSUER.upper(), "https://issuer.example", "", None, [ISSUER], 7)
        ),
        *(({"jwks_uri": no_text}, "names no key set") for no_text in (None, ["x"], 7)),
        *(
            ({"jwks_uri": other}, "is no http or https URL")
            for other in (
                *("", "/jwks", "file:///etc/passwd", "ftp://a/", "https://", "https://u:p@a/", "https://a/#x"),
                *("gopher://127.0.0.1:6379/_x", "https://a b/", "//a/jwks", "https://ä.example/"),
            )
        ),
        ({"jwks_uri": "http://keys.example/jwks"}, "is plain http"),
        ({"jwks_uri": "http://169.254.169.254/latest"}, "is plain http"),
        ({"jwks_uri": "http://127.0.0.1:8500/v1/kv"}, "leads from https to plain http"),
        ({"jwks_uri": "http://localhost/"}, "leads from https to plain http"),
    ],
)
def test_metadata_that_says_nothing(changes: dict[str, Any], message: str) -> None:
    document = json.dumps(GOOD | changes).encode()
    with pytest.raises(ValueError, match=message):
        jwks_uri(document, ISSUER, plain_http=False)


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b'{"issuer": 1, "issuer": 2}', b"\xff", b"<html>"])
def test_what_is_no_metadata(document: bytes) -> None:
    with pytest.raises(ValueError, match="no plain JSON object"):
        jwks_uri(document, ISSUER, plain_http=False)


def test_metadata_that_counts() -> None:
    assert jwks_uri(json.dumps(GOOD).encode(), ISSUER, plain_http=False) == "https://keys.example/jwks?v=1"
    plain = {"issuer": ISSUER, "jwks_uri": "http://keys.example/"}
    assert jwks_uri(json.dumps(plain).encode(), ISSUER, plain_http=True) == "http://keys.example/"
    local = {"issuer": "http://localhost:9", "jwks_uri": "http://127.0.0.1:9/"}
    assert jwks_uri(json.dumps(local).encode(), "http://localhost:9", plain_http=False) == "http://127.0.0.1:9/"


def test_sloppy_key_sets_are_read_as_far_as_that_is_safe() -> None:
    rsa, curve = jwk("RS256", private_key("RS256")), jwk("ES256", private_key("ES256"))
    padded = {**rsa, "n": rsa["n"] + "==", "e": rsa["e"] + "=", "kid": "padded"}
    nulls = {**curve, "kid": "nulls", "use": None, "alg": None, "key_ops": None, "x5c": None, "d": None}
    of_spiffe = {**curve, "kid": "spiffe", "use": "jwt-svid"}
    bad: list[Any] = [
        {**curve, "kid": 7},
        {"kty": "AKP", "kid": "post-quantum"},
        {**rsa, "use": "enc"},
        {**curve, "x": None},
        {**curve, "use": "x509-svid"},
        None,
    ]
    found = parse_jwk_set(json.dumps({"keys": [padded, nulls, of_spiffe, *bad], "x": None}).encode(), secrets=False)
    assert [key.key_id for key in found.keys] == ["padded", "nulls", "spiffe"]
    assert len(found.ignored) == len(bad)


class Provider:
    """An issuer over TLS by an authority of its own, with its metadata and its keys."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory, "provider")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.authority.issue("127.0.0.1"))
        self.server = JwksServer(tls=context)
        self.issuer = self.server.url.removesuffix("/jwks.json") + "/realms/main"
        self.key = private_key("ES256", 7)
        self.publish()

    def publish(self, *, oauth: bool = False, **members: Any) -> None:
        metadata = {"issuer": self.issuer, "jwks_uri": self.server.url} | members
        place = metadata_urls(self.issuer)[oauth].partition("127.0.0.1")[2].partition("/")[2]
        keys = jwk_set(jwk("ES256", self.key, kid="k1", use=None), {"kty": "AKP", "kid": "odd"})
        self.server.documents = {f"/{place}": json.dumps(metadata).encode(), "/jwks.json": keys}

    def token(self, **claims: Any) -> str:
        return mint(key=private_pem(self.key).decode(), algorithm="ES256", headers={"kid": "k1"}, **claims)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    made = Provider(tmp_path_factory.mktemp("provider"))
    with made.server:
        yield made


def test_a_gateway_finds_the_keys_and_keeps_them_whatever_becomes_of_the_metadata(
    tmp_path: Path, provider: Provider
) -> None:
    with RecordingUpstream() as upstream, JwksServer(b"{}") as elsewhere:
        document = policy(tmp_path, upstream)
        keys = {"discovery": True, "ca": provider.authority.ca, "refresh": "1s", "min_refresh": "50ms"}
        corp = {"issuer": provider.issuer, "audience": "api://test", "algorithms": ["ES256"], "keys": keys}
        document["identity"]["issuers"] = {"dev": corp}
        with Gateway(write_policy(tmp_path, document)) as gateway:
            good = provider.token(iss=provider.issuer)
            assert gateway.get("/api/v1/users/7", token=good).status == 200
            assert upstream.last().one("x-user-id") == "alice"
            assert "key 2: its type (kty) is not supported" in gateway.log
            lies: dict[str, dict[str, Any]] = {
                "of another issuer": {"issuer": provider.issuer + "/"},
                "leads from https to plain http": {"jwks_uri": elsewhere.url},
                "is plain http": {"jwks_uri": "http://169.254.169.254/jwks"},
                "names no key set": {"jwks_uri": None},
            }
            for said, members in lies.items():
                provider.publish(**members)
                wait_for(lambda said=said: said in gateway.log, said)  # type: ignore[misc]  # mypy knows no defaults
                assert gateway.get("/api/v1/users/7", token=good).status == 200, "the keys that are kept serve"
            assert elsewhere.fetches == 0, "nothing was asked for where the metadata must not lead"
            provider.key = private_key("ES256", 8)
            provider.publish(oauth=True)  # RFC 8414 alone, and a new key
            fresh = provider.token(iss=provider.issuer)
            wait_for(lambda: gateway.get("/api/v1/users/7", token=fresh).status == 200, "the new key")
            assert gateway.get("/api/v1/users/7", token=good).status == 401, "the old one is withdrawn"


def test_the_ca_is_the_only_authority(tmp_path: Path, provider: Provider) -> None:
    other = Path(Authority(tmp_path, "other").ca).read_bytes()
    own = Path(provider.authority.ca).read_bytes()
    source = KeySource("jwks_url", ca=own)
    assert asyncio.run(fetch_document(provider.server.url, source)).startswith(b'{"keys"')
    for wrong in (KeySource("jwks_url", ca=other, authorities=own), KeySource("jwks_url", authorities=other)):
        with pytest.raises(FetchError, match="certificate"):
            asyncio.run(fetch_document(provider.server.url, wrong))
    assert source != KeySource("jwks_url", ca=other), "keys that came by one are not those of the other"


def test_where_the_first_address_does_not_answer_the_second_is_not_asked() -> None:
    asked: list[str] = []

    async def dead(url: str, source: KeySource) -> bytes:
        asked.append(url)
        raise FetchError("no answer")

    async def run() -> None:
        keys = RemoteKeys(KeySource("jwks_url", url=metadata_urls(ISSUER)[0], issuer=ISSUER), fetch=dead)
        fetch = keys.start()
        assert fetch is not None
        await fetch
        await keys.close()
        assert keys.current() is None

    asyncio.run(run())
    assert asked == [metadata_urls(ISSUER)[0]]
