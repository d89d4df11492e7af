"""The issuers of docs/providers.md: tokens of each shape are admitted as the page says, variations are not."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from tests.keys.signing import b64, jwk, jwk_set, private_key, public_pem, sign
from tests.live.harness import ROOT, Gateway, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream

PAGE = (ROOT / "docs/providers.md").read_text()
Token = tuple[dict[str, Any], dict[str, Any]]


class Provider(NamedTuple):
    """What the page says of one."""

    issuer: dict[str, Any]
    header: dict[str, Any]
    claims: dict[str, Any]
    subject: str
    roles: list[str]
    scopes: list[str]


def providers() -> dict[str, Provider]:
    """Read the page: the table, and each issuer with the token that follows it."""
    rows = {}
    for line in PAGE.split("\n"):
        if line.startswith("| `"):
            name, subject, *rest = (re.findall(r"`([^`]*)`", cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            rows[name[0]] = subject[0].replace("\\|", "|"), *rest
    found = {}
    for issuer, token in re.findall(r"```yaml\n(.*?)```\n\n```json\n(.*?)```", PAGE, re.DOTALL):
        ((name, members),) = YAML(typ="safe").load(issuer).items()
        found[name] = Provider(members, *json.loads(token), *rows.pop(name))
    assert not rows, "a row of the table is of no issuer"
    return found


PROVIDERS = providers()
FOREIGN = private_key("RS256", 9)


def key_of(name: str) -> Any:
    """Two keys for all: making one takes a while. Neighbours have different ones."""
    return private_key("RS256", list(PROVIDERS).index(name) % 2)


def test_the_page_has_all_of_them() -> None:
    assert len(PROVIDERS) == PAGE.count("```yaml") == 10
    assert all(provider.issuer["audience"] for provider in PROVIDERS.values())


def now_of(claims: dict[str, Any], shift: int = 0) -> dict[str, Any]:
    """Move the times of a documented token to now."""
    moved = int(time.time()) - claims["iat"] + shift
    times = {name: claims[name] + moved for name in ("iat", "nbf", "exp", "auth_time") if name in claims}
    return claims | times


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, RecordingUpstream]]:
    """One gateway with every issuer of the page, and a route for each that says exactly what its principal is."""
    directory = tmp_path_factory.mktemp("providers")
    with RecordingUpstream() as upstream:
        made = policy(directory, upstream, rate_limits={}, cors={})
        made["identity"] = {"default": list(PROVIDERS), "issuers": {}, "forward": {"issuer": "X-User-Issuer"}}
        made["routes"] = []
        for name, provider in PROVIDERS.items():
            file = directory / f"{name}.json"
            file.write_bytes(jwk_set(jwk("RS256", key_of(name), kid=provider.header["kid"], use="sig")))
            made["identity"]["issuers"][name] = provider.issuer | {"keys": {"jwks_file": str(file)}}
            scopes = json.dumps(sorted(provider.scopes))
            route = {"name": name, "match": {"prefix": f"/{name}"}, "upstream": "users", "auth": {"issuers": name}}
            made["routes"].append(route | {"require": {"when": f"principal.scopes == {scopes}"}})
        with Gateway(write_policy(directory, made)) as running:
            yield running, upstream


@pytest.mark.parametrize("name", PROVIDERS)
def test_its_token_is_admitted(name: str, gateway: tuple[Gateway, RecordingUpstream]) -> None:
    running, upstream = gateway
    _, header, claims, subject, roles, _ = PROVIDERS[name]
    token = sign("RS256", key_of(name), now_of(claims), header).decode()
    answer = running.get(f"/{name}/x", token=token)
    assert answer.status == 200, answer.body
    seen = upstream.last()
    assert seen.one("x-user-id") == subject
    assert (seen.one("x-user-role") or "").split(",") == (roles or [""])
    assert seen.one("x-user-issuer") == name + (f"/{claims['tid']}" if "tid" in claims else "")
    assert seen.one("authorization") is None
    other = next(each for each in PROVIDERS if each != name)
    assert running.get(f"/{other}/x", token=token).status == 401, "it is for its own route alone"


OF_PROVIDER: dict[str, list[dict[str, Any]]] = {
    "keycloak": [
        {"iss": "https://sso.acme.example/realms/other"},
        {"typ": "ID", "aud": "orders", "nonce": "n", "at_hash": "x"},
        {"typ": "ID"},
        {"typ": "Refresh"},
        {"realm_access": {"roles": [{"name": "clerk"}]}},
    ],
    "auth0": [
        {"iss": "https://acme.eu.auth0.com"},
        {"iss": "https://other.eu.auth0.com/"},
        {"nonce": "n"},
        {"azp": ...},
        {"permissions": [7]},
    ],
    "entra": [
        {"iss": "https://login.microsoftonline.com/99999999-0000-cccc-1111-dddd2222eeee/v2.0"},
        {"tid": "99999999-0000-cccc-1111-dddd2222eeee"},
        {"iss": "https://login.microsoftonline.com/{tid}/v2.0"},
        {"iss": "https://login.microsoftonline.com/common/v2.0"},
        {"azp": ..., "azpacr": ..., "scp": ..., "nonce": "12345"},
        {"azp": ..., "scp": ...},
        {"tid": ...},
        {"oid": ...},
    ],
    "entra-v1": [
        {"iss": "https://sts.windows.net/99999999-0000-cccc-1111-dddd2222eeee/"},
        {"tid": "99999999-0000-cccc-1111-dddd2222eeee"},
        {"iss": "https://sts.windows.net/aaaabbbb-0000-cccc-1111-dddd2222eeee"},
        {"appid": ..., "scp": ..., "nonce": "12345"},
        {"aud": "00000003-0000-0000-c000-000000000000"},
    ],
    "okta": [
        {"iss": "https://acme.okta.com"},
        {"iss": "https://acme.okta.com/oauth2/other"},
        {"aud": "https://acme.okta.com"},
        {"cid": ..., "scp": ..., "aud": "https://orders.acme.example", "nonce": "n", "at_hash": "x", "amr": ["pwd"]},
        {"cid": ...},
    ],
    "cognito": [
        {"iss": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_other"},
        {"iss": "https://cognito-idp.us-east-1.amazonaws.com/eu-west-1_example"},
        {"client_id": "another"},
        {"token_use": "id", "aud": "xxxxxxxxxxxxexample", "client_id": ...},
        {"token_use": "id"},
        {"token_use": ...},
        {"client_id": "another", "aud": "xxxxxxxxxxxxexample"},
    ],
    "google": [
        {"hd": "evil.example"},
        {"hd": ...},
        {"email_verified": False},
        {"email_verified": "true"},
        {"iss": "https://securetoken.google.com/project"},
        {"iss": "http://accounts.google.com"},
        {"aud": "32555940559.apps.googleusercontent.com"},
    ],
    "github": [
        {"repository_owner_id": "66"},
        {"repository_owner_id": 65},
        {"repository_owner_id": ...},
        {"iss": "https://token.actions.githubusercontent.com/octo-org"},
        {"aud": "https://github.com/octo-org"},
        {"job_workflow_ref": ...},
    ],
    "kubernetes": [
        {"iss": "kubernetes/serviceaccount"},
        {"iss": "https://kubernetes.default.svc"},
        {"aud": ["https://kubernetes.default.svc.cluster.local"]},
        {"kubernetes.io": {"namespace": "shop"}},
        {"kubernetes.io": {"namespace": ["shop", 7], "serviceaccount": {"uid": "x"}}},
    ],
    "spiffe": [
        {"sub": "spiffe://other.example/ns/shop/sa/checkout"},
        {"sub": "spiffe://prod.example"},
        {"sub": "spiffe://prod.example/../x"},
        {"iss": "https://oidc.prod.example", "sub": "spiffe://other.example/x"},
        {"iss": "https://oidc.prod.example", "sub": "checkout"},
        {"iss": "https://oidc.other.example"},
        {"iss": "https://login.example"},
    ],
}
"""Lies that only a provider's own shape makes possible; `...` leaves a claim out."""


def lies(name: str) -> Iterator[tuple[str, bytes]]:
    """Yield tokens that must not pass."""
    provider, key = PROVIDERS[name], key_of(name)
    header, claims = provider.header, now_of(provider.claims)
    audience = (provider.issuer.get("claims") or {}).get("audience", "aud")
    issuer = claims.get("iss", "spiffe://prod.example")
    changes: list[dict[str, Any]] = [
        {audience: "another"},
        {audience: ["another", "orders.acme.example"]},
        {audience: ...},
        {audience: {"0": claims[audience]}},
        {"iss": issuer.upper()},
        {"iss": issuer.replace("https", "HTTPS") if "https" in issuer else issuer.title()},
        {"iss": f"{issuer}/"},
        {"iss": f"{issuer}\u200b"},
        {"iss": [issuer]},
        {"iss": None},
        {"exp": ...},
        {"exp": str(claims["exp"])},
        {"exp": int(time.time()) - 3600, "iat": int(time.time()) - 7200},
        {"exp": claims["exp"] + 10 * 86400},
        {"nbf": int(time.time()) + 3600},
        {"iat": int(time.time()) + 3600, "exp": int(time.time()) + 7200},
        {(provider.issuer.get("claims") or {}).get("subject", "sub"): ...},
        {(provider.issuer.get("claims") or {}).get("subject", "sub"): " "},
        {"cnf": {"jkt": "x"}},
        *OF_PROVIDER[name],
    ]
    for change in changes:
        lying = {member: value for member, value in (claims | change).items() if value is not ...}
        yield f"claims {change}", sign("RS256", key, lying, header)
    good = sign("RS256", key, claims, header)
    head, body, signature = good.split(b".")
    yield "a foreign key", sign("RS256", FOREIGN, claims, header)
    yield "a foreign key of its own", sign("RS256", FOREIGN, claims, header | {"jwk": jwk("RS256", FOREIGN)})
    yield (
        "the neighbour's key",
        sign("RS256", private_key("RS256", 1 - list(PROVIDERS).index(name) % 2), claims, header),
    )
    yield "an unknown key id", sign("RS256", key, claims, header | {"kid": "another"})
    yield "another algorithm", sign("PS256", key, claims, header | {"alg": "PS256"})
    yield "another type", sign("RS256", key, claims, header | {"typ": "logout+jwt"})
    yield "an extension", sign("RS256", key, claims, header | {"crit": ["x"], "x": 1})
    yield "no signature", head + b"." + body + b"."
    yield "unsigned", b64(json.dumps(header | {"alg": "none"}).encode()) + b"." + body + b"."
    yield "the public key as a secret", sign("HS256", public_pem(key), claims, header | {"alg": "HS256"})
    yield "another body", head + b"." + b64(json.dumps(claims | {"sub": "root"}).encode()) + b"." + signature


@pytest.mark.parametrize("name", PROVIDERS)
def test_lies_are_refused_and_the_service_sees_nothing(name: str, gateway: tuple[Gateway, RecordingUpstream]) -> None:
    running, upstream = gateway
    before, told = len(upstream.requests), 0
    for what, token in lies(name):
        answer = running.get(f"/{name}/x", token=token.decode())
        assert answer.status == 401, (what, answer.body)
        assert json.loads(answer.body)["reason"].startswith("token-"), (what, answer.body)
        assert "invalid_token" in (answer.one("www-authenticate") or ""), what
        told += 1
    assert told > 30
    assert len(upstream.requests) == before
