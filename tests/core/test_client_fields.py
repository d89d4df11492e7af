"""Fields of clients: which go on, by their shape; the documentation's lists; what is remembered."""

import re
import tracemalloc
from pathlib import Path

import pytest

from mitmgate.core import client_fields
from mitmgate.core.client_fields import ClientFields, Disposition

PAGE = Path(__file__).parents[2] / "docs" / "headers.md"
PEERS = [
    *("X-User-Name", "X-User", "X-Remote-User", "X-Remote-Group", "Remote-User", "Remote-Groups", "X-Auth-User"),
    *("X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username"),
    *("X-Auth-Request-User", "X-Auth-Request-Access-Token", "X-WebAuth-User", "X-Authenticated-UserId"),
    *("X-Consumer-Username", "X-Anonymous-Consumer", "X-Credential-Identifier", "Cf-Access-Jwt-Assertion"),
    *("Cf-Access-Authenticated-User-Email", "X-Goog-Authenticated-User-Email", "X-Goog-IAP-JWT-Assertion"),
    *("X-Amzn-Oidc-Data", "X-Amzn-Mtls-Clientcert", "X-MS-Client-Principal", "X-MS-Client-Principal-Name"),
    *("X-MS-TOKEN-AAD-ID-TOKEN", "X-JWT-Assertion", "X-Authentik-Username", "X-Vouch-User", "X-Pomerium-Claim-Email"),
    *("Tailscale-User-Login", "Impersonate-User", "Impersonate-Extra-scopes", "Client-Cert", "Client-Cert-Chain"),
    *("SM-User", "SM-UserDN", "SMUser", "IV-User", "IV-Groups", "IV-Creds", "OAM-Remote-User", "OIDC-Claim-sub"),
    *("X-OIDC-Email", "Shib-Identity-Provider", "CAS-User", "X-SAML-Subject", "X-SSO-User", "X-Email", "X-Groups"),
    *("X-Kratos-Authenticated-Identity-Id", "Teleport-Jwt-Assertion", "Ngrok-Auth-User-Email", "X-Roles"),
    *(
        "MS-ASPNETCORE-CLIENTCERT",
        "X-SSL-Cert",
        "X-TLS-Client-Cert",
        "X-Client-Verify",
        "X-Client-DN",
        "X-Authenticated",
    ),
    *("X-SSL-Client-S-DN", "SSL-Client-Cert", "X-Client-Cert", "X-ARR-ClientCert", "X-Userinfo", "X-Gateway-Assertion"),
    *("X-Proxy-Remote-User", "X-SPIFFE-ID", "X-Impersonate-User", "MSISDN", "X-Up-Calling-Line-ID", "X-Nokia-MSISDN"),
]
OVERRIDES = [
    *("Proxy", "X-Envoy-Original-Path", "X-Envoy-Internal", "X-Envoy-Anything", "X-Original-URL", "X-Original-Path"),
    *("X-Original-Anything", "X-Rewrite-URL", "X-Rewrite-Anything", "X-HTTP-Method", "X-HTTP-Method-Override"),
    *("X-Accel-Mapping", "X-Sendfile-Type", "X-Script-Name", "X-Middleware-Subrequest", "X-Forwarded-Prefix"),
    *("X-Replaced-Path", "X-HTTP-Host-Override", "X-HTTP-DestinationURL", "X-Invoke-Path", "X-Matched-Path"),
    "X-Override-URL",
    *("Forwarded-For", "X-Forward-For", "Fly-Client-IP", "DO-Connecting-IP", "X-Vercel-Forwarded-For"),
    *("Front-End-Https", "X-Url-Scheme", "CloudFront-Forwarded-Proto", "X-ARR-SSL"),
    *("WL-Proxy-Client-IP", "WL-Proxy-Client-Cert", "WL-Proxy-SSL", "Proxy-Client-IP", "Z-Forwarded-For"),
    *("X-Middleton-SSL", "X-Appengine-Cron", "X-Appengine-Remote-Addr", "X-CloudTasks-QueueName", "X-CloudScheduler"),
]


def spellings(name: str) -> list[str]:
    return [name, name.upper(), name.replace("-", "."), name.replace("-", "--"), name.replace("-", "_")]


@pytest.mark.parametrize("name", PEERS + OVERRIDES)
def test_a_client_can_not_say_it_in_any_spelling(name: str) -> None:
    rules = ClientFields({b"x-heard-from"})
    for spelling in spellings(name):
        assert rules.disposition(spelling.lower().encode()) is Disposition.DROP, spelling


@pytest.mark.parametrize("name", PEERS)
def test_a_policy_can_keep_one_by_its_very_name(name: str) -> None:
    lower = name.lower().encode()
    rules = ClientFields({b"x-heard-from"}, [lower])
    assert rules.disposition(lower) is Disposition.KEEP
    others = [spelling for spelling in spellings(name) if spelling.lower() != name.lower()]
    assert {rules.disposition(other.lower().encode()) for other in others} <= {Disposition.DROP}
    assert ClientFields({lower}, [lower]).disposition(lower) is Disposition.DROP, "the gateway's own is never kept"


@pytest.mark.parametrize("name", sorted(client_fields.FRAMING | client_fields.HOP_BY_HOP | client_fields.ANSWERED_HERE))
def test_what_a_connection_is_framed_by_is_nobodys_but_the_gateways(name: bytes) -> None:
    """A length of the client's, beside the one that goes with what is forwarded, would smuggle a request."""
    assert ClientFields((), [name]).disposition(name) is Disposition.DROP


def test_names_that_are_no_tokens_are_refused() -> None:
    for name in (b"", b"a b", b"a:", b"a\0", b"a\r", "é".encode(), b"(a)"):
        assert ClientFields(()).disposition(name) is Disposition.REFUSE


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_is_not_kept(name: str) -> None:
    lower = name.lower().encode()
    assert ClientFields((), [lower]).disposition(lower) is Disposition.DROP


@pytest.mark.parametrize(
    "name",
    [
        "user-agent",
        "x-users",
        "x-remotely",
        "proxy-agent",
        "x-authentication",
        "x-original",
        "sma",
        "x-client-version",
        "x-ssl",
        "x-emails",
    ],
)
def test_what_only_looks_alike_goes_on(name: str) -> None:
    assert ClientFields(()).disposition(name.encode()) is Disposition.KEEP


def test_the_documentation_lists_what_is_removed() -> None:
    _, always, unless = re.split(r"## What is (?:always removed|removed unless the policy keeps it)", PAGE.read_text())

    def named(text: str) -> set[bytes]:
        return {name.lower().encode() for name in re.findall(r"`([A-Za-z0-9-]+\*?)`", text)}

    never = client_fields.NEVER | client_fields.HOP_BY_HOP | client_fields.ANSWERED_HERE | {b"authorization", b"dpop"}
    families = {name + b"*" for name in client_fields.NEVER_FAMILIES}
    assert named(always) - {b"connection"} == never - {b"connection"} | families
    families = {name + b"*" for name in client_fields.IDENTITY_FAMILIES}
    assert named(unless.partition("## ")[0]) == client_fields.IDENTITY | families


def test_names_that_a_client_makes_up_take_no_memory() -> None:
    rules = ClientFields({b"x-user-id"})
    for number in range(10_000):
        rules.disposition(b"x-made-up-%d" % number)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(2_000):
        assert rules.disposition(b"x-made-up-too-%d" % number) is Disposition.KEEP
        assert rules.disposition(b"x-%d-" % number + b"a" * 2000) is Disposition.KEEP
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000
