"""Warnings of valid policies, and members whose capability is not there."""

import datetime
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mitmgate.policy.compiler import digest
from mitmgate.policy.loader import load
from mitmgate.policy.problem import Code
from mitmgate.review import lint, review
from tests.live.harness import ROOT
from tests.policy.conftest import make_certificate

CLEAN = """\
version: 1
identity:
  issuers:
    corp:
      issuer: https://c.example
      audience: api
      algorithms: ES256
      keys: {jwks_url: "https://c.example/"}
      max_lifetime: 1h
upstreams: {users: {endpoints: ["http://127.0.0.1:9001"]}}
rate_limits: {per-user: {limit: 5, window: 1s}}
routes:
  - name: users
    match: {prefix: /users}
    upstream: users
    rate_limits: per-user
audit: {sinks: [{file: a.jsonl}], chain: {key_env: KEY}}
"""
ENVIRON = {"KEY": "k" * 32, "S": "s" * 32}


def warnings(tmp_path: Path, text: str) -> list[tuple[int, int, str]]:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    found = lint(load(path, ENVIRON))
    assert {problem.severity for problem in found} <= {"warning"}
    return [(problem.line, problem.column, f"{problem.path}: {problem.message}") for problem in found]


def place(marked: str) -> tuple[int, int]:
    """Return line and column of the mark."""
    before = marked[: marked.index("¦")]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def test_a_clean_policy_has_none(tmp_path: Path) -> None:
    assert warnings(tmp_path, CLEAN) == []


ROUTE = "  - {name: other, match: {%s}, upstream: users, rate_limits: per-user}\naudit:"


SERVICE = 'decision_services: {s: {protocol: opa, url: "http://127.0.0.1:8181/v1/data/x"'
PUBLIC = "  - {name: other, match: {prefix: /o}, upstream: users, auth: ¦none, rate_limits: per-ip}\naudit:"
CORP = "    corp:\n      issuer: https://c.example\n      audience: api\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 1", "version: 1\nmode: ¦report", "mode: report admits what it only records"),
        ("upstream: users", "upstream: users\n    mode: ¦report", "routes[0].mode: report admits"),
        ("window: 1s", "window: 1s, mode: ¦report", "rate_limits.per-user.mode: report counts"),
        ("    rate_limits: per-user\n", "    rate_limits: [per-user]\n    auth: {issuers: corp}\n", ""),
        ("{users: {", '{¦spare: {endpoints: ["http://a"]}, users: {', "upstreams.spare: nothing uses this"),
        ("{per-user: {", "{¦spare: {limit: 1, window: 1s}, per-user: {", "rate_limits.spare: nothing uses this"),
        (
            "version: 1",
            f"version: 1\ndecision: s\n{SERVICE}, on_failure: ¦admit}}}}",
            "decision_services.s.on_failure: requests are admitted while",
        ),
        (
            "version: 1",
            f"version: 1\ndecision: s\n{SERVICE.replace('127.0.0.1', 'opa.example')}, plain_http: ¦true}}}}",
            "decision_services.s.plain_http: decisions over plain http",
        ),
        (
            "version: 1",
            f"version: 1\ndecision: s\n{SERVICE}, headers: ¦[X-Tenant, Cookie]}}}}",
            "decision_services.s.headers: it is told Cookie",
        ),
        ("version: 1", f"version: 1\ndecision: s\n{SERVICE}, headers: [X-Tenant], plain_http: true}}}}", ""),
        (
            "version: 1",
            f"version: 1\n{SERVICE.replace('{s: {', '{¦s: {', 1)}}}}}",
            "decision_services.s: nothing uses this",
        ),
        ("version: 1", 'version: 1\ncors: {¦spare: {origins: ["*"]}}', "cors.spare: nothing uses this"),
        (
            CORP,
            CORP.replace("corp", "¦corp").replace("      audience: api\n", ""),
            "identity.issuers.corp: tokens for any",
        ),
        ("max_lifetime: 1h", "max_lifetime: 1h\n      leeway: ¦6m", "identity.issuers.corp.leeway: a leeway above 5m"),
        (
            '"https://c.example/"',
            '"http://c.example/", plain_http: ¦true',
            "identity.issuers.corp.keys.plain_http: keys over plain http",
        ),
        ("https://c.example/", "http://127.0.0.1/", ""),
        ("https://c.example/", "http://[::1]/", ""),
        ("version: 1", "version: 1\nnetworks: ¦{deny: [10.0.0.0/8]}", "networks: an empty allow list"),
        ("upstream: users", "upstream: users\n    networks: ¦{deny: [10.0.0.0/8]}", "routes[0].networks: an empty"),
        ("version: 1", 'version: 1\ntrusted_proxies: [¦"0.0.0.0/0"]', "trusted_proxies[0]: everyone"),
        ("window: 1s", 'window: 1s, key: ¦"header:X"', "rate_limits.per-user.key: a client chooses"),
        ("window: 1s", 'window: 1s, key: ["header:X", client_ip]', ""),
        ("window: 1s", "window: 1s, on_store_failure: ¦allow", "rate_limits.per-user.on_store_failure: without"),
        ("endpoints", "¦tls: {}, endpoints", "upstreams.users.tls: no endpoint is https"),
        (
            "version: 1",
            "version: 1\nresponse_headers: {set: {¦strict-transport-security: a}}",
            "response_headers.set.strict-transport-security: browsers ignore HSTS",
        ),
        (
            "{sinks: [{file: a.jsonl}], chain: {key_env: KEY}}",
            "¦{sinks: [{file: a.jsonl}]}",
            "audit: the audit chain is",
        ),
        ("key_env: KEY", "key_env: ¦NO_KEY", "audit.chain.key_env: the environment variable NO_KEY is not set"),
        ("{sinks: [{file: a.jsonl}], ", "¦{", "audit: no audit sink"),
        ("{sinks", "{on_full: ¦drop, sinks", "audit.on_full: drop loses events"),
        # Claims are read by name.
        (
            "max_lifetime: 1h",
            "max_lifetime: 1h\n      claims: {roles: ¦realm_access.roles}",
            "identity.issuers.corp.claims.roles: only a claim that is called 'realm_access.roles' itself",
        ),
        (
            "max_lifetime: 1h",
            'max_lifetime: 1h\n      claims: {scopes: [scope, ¦"$.scp"]}',
            "identity.issuers.corp.claims.scopes[1]: only a claim that is called",
        ),
        ("max_lifetime: 1h", 'max_lifetime: 1h\n      claims: {roles: "https://c.example/roles"}', ""),
        ("max_lifetime: 1h", 'max_lifetime: 1h\n      claims: {roles: "cognito:groups"}', ""),
        ("window: 1s", "window: 1s, key: ¦claim:org.id", "rate_limits.per-user.key: only a claim that is called"),
        (
            "upstream: users",
            "upstream: users\n    require: {claims: {/tenant/id: a}}",
            "",
        ),
        (
            "upstream: users",
            'upstream: users\n    rewrite: {set: {X-Org: ¦"{claim:org.id}"}}',
            "routes[0].rewrite.set.X-Org: only a claim that is called",
        ),
        # Paths are no patterns.
        ("{prefix: /users}", "{prefix: ¦/users/*}", "routes[0].match.prefix: a path is no pattern: only one with '*'"),
        ("{prefix: /users}", "{exact: ¦/users/**}", "routes[0].match.exact: a path is no pattern"),
        (
            "{prefix: /users}",
            "{prefix: ¦/users/:id}",
            "routes[0].match.prefix: a path is no pattern: only one with ':id'",
        ),
        ("{prefix: /users}", "{prefix: ¦/users/.+}", "routes[0].match.prefix: a path is no pattern"),
        ("{prefix: /users}", "{exact: ¦/users$}", "routes[0].match.exact: a path is no pattern"),
        ("{prefix: /users}", "{prefix: /$metadata}", ""),
        ("{prefix: /users}", "{prefix: /users:batchGet}", ""),
        ("{prefix: /users}", "{exact: '/Users(7)'}", ""),
        ("version: 1", "version: 1\nendpoints: {health: ¦/health*}", "endpoints.health: a path is no pattern"),
        (
            "upstream: users",
            "upstream: users\n    rewrite: {replace_prefix: ¦/v2/*}",
            "routes[0].rewrite.replace_prefix: a",
        ),
        # What no request is.
        ("{prefix: /users}", "{prefix: /u, methods: [GET, ¦ANY]}", "routes[0].match.methods[1]: ANY is no registered"),
        ("{prefix: /users}", "{prefix: /u, methods: ¦PSOT}", "routes[0].match.methods: PSOT is no registered method"),
        ("{prefix: /users}", "{prefix: /u, methods: [PROPFIND]}", ""),
        (
            "{prefix: /users}",
            "{prefix: /u, methods: [POST]}\n    websocket: ¦true",
            "routes[0].websocket: a WebSocket is opened by GET",
        ),
        (
            "version: 1",
            "version: 1\nnetworks: {allow: [¦10.1.0.0/16, 192.0.2.0/24], deny: [10.0.0.0/8]}",
            "networks.allow[0]: all of 10.1.0.0/16 is denied",
        ),
        (
            "version: 1",
            'version: 1\nnetworks: {allow: [¦"::ffff:10.1.0.0/112"], deny: [10.0.0.0/8]}',
            "networks.allow[0]: all of",
        ),
        ('"http://127.0.0.1:9001"', '¦"http://localhost:8080"', "upstreams.users.endpoints[0]: the gateway itself"),
        (
            "version: 1",
            "version: 1\nresponse_headers: {set: {¦X-A: b}, remove: [x-a]}",
            "response_headers.set.X-A: X-A is in `remove` as well",
        ),
        ("{sinks", '{redact: {query: [token, ¦"token="]}, sinks', "audit.redact.query[1]: a parameter's name alone"),
        (
            "window: 1s",
            'window: 1s, key: [client_ip, ¦"header:X-Forwarded-For"]',
            "rate_limits.per-user.key[1]: a client's",
        ),
        (
            "window: 1s",
            'window: 1s, key: [client_ip, ¦"header:X-User-ID"]',
            "rate_limits.per-user.key[1]: a client's x-user",
        ),
        (
            "upstream: users",
            'upstream: users\n    rewrite: {set: {X-Real: ¦"{header:X-Real-IP}"}}',
            "routes[0].rewrite.set.X-Real: a client's x-real-ip is removed",
        ),
        # Conditions.
        *(
            (
                "upstream: users",
                f"upstream: users\n    require: {{when: ¦'{when}'}}",
                f"routes[0].require.when: {message}",
            )
            for when, message in (
                ('request.method == "get"', "request.method is in capitals"),
                ('"Delete" != request.method', "request.method is in capitals"),
                ('request.method in ["GET", "post"]', "request.method is in capitals"),
                ('request.host == "API.example"', "request.host is in lower case"),
                ('request.headers["X-Tenant"] == "a"', "names in request.headers are in lower case"),
                ('!("X-Blocked" in request.headers)', "names in request.headers are in lower case"),
                ("has(request.headers.Tenant)", "names in request.headers are in lower case"),
                ('request.headers["x-forwarded-for"] == "a"', "a client's x-forwarded-for is removed"),
                ('principal.issuer == "https://c.example"', "principal.issuer is the name that the policy gives"),
                ('route.name == "orders"', "route.name is users here"),
            )
        ),
        *(
            ("upstream: users", f"upstream: users\n    require: {{when: '{when}'}}", "")
            for when in (
                'request.method != "GET" && "x-tenant" in request.headers',
                'principal.issuer in ["corp"] && request.headers["x-a"] == "B"',
                'principal.claims["Mixed.Case"] == "get"',
            )
        ),
        # Credentials of machines and browsers.
        ("version: 1", "version: 1\n¦api_keys: {file: k.jsonl}", "api_keys: no route takes API keys"),
        (
            "identity:",
            "identity:\n  ¦certificates: {dns: a.example}",
            "identity.certificates: no route takes certificates",
        ),
        (
            "identity:",
            "identity:\n  browsers: {¦tickets: {secret_env: S}}",
            "identity.browsers.tickets: no route takes",
        ),
        (
            "identity:",
            "identity:\n  certificates: {dns: a.example, forwarded: ¦true}",
            "identity.certificates.forwarded: no proxy is trusted",
        ),
        (
            "identity:",
            "identity:\n  certificates: {dns: a.example, header: ¦X-Client-Cert}",
            "identity.certificates.header: no proxy is trusted",
        ),
        (
            "identity:",
            "identity:\n  certificates: {spiffe: a.example, roles: {¦spiffe://b.example/x: [r]}, forwarded: true}",
            "identity.certificates.roles.spiffe://b.example/x: b.example is no trust domain of spiffe",
        ),
        # Resources that are published.
        *(
            ("identity:", f"identity:\n  resources: [{{resource: {url}}}]", told)
            for url, told in (
                ("https://api.example", ""),
                ("https://api.example/users", ""),
                ("https://api.example/users/eu", ""),
                ("¦https://api.example/usersX", "identity.resources[0].resource: no route that needs a token is at"),
                ("¦https://api.example/orders", "identity.resources[0].resource: no route that needs a token is at"),
            )
        ),
        # Routes that never decide.
        ("audit:", ROUTE.replace("{%s}", "¦{exact: /health}"), "routes[1].match: never reached: the health check"),
        ("audit:", ROUTE % "prefix: /users/, methods: GET", ""),  # more specific: decides first
        ("audit:", ROUTE % "prefix: /users/, hosts: a.example", ""),
    ],
)
def test_one_warning(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CLEAN
    marked = CLEAN.replace(old, new, 1)
    if "forwarded: " in new or "header: " in new:
        marked = marked.replace("    upstream: users", "    upstream: users\n    auth: {all: [jwt, certificate]}")
    if "roles: {" in new:
        marked = marked.replace("version: 1", "version: 1\ntrusted_proxies: [10.0.0.1]")
    found = warnings(tmp_path, marked.replace("¦", ""))
    if not message:
        assert found == []
        return
    ((line, column, text),) = found
    assert (line, column) == place(marked)
    assert text.startswith(message)


def test_a_public_route(tmp_path: Path) -> None:
    marked = CLEAN.replace("audit:", PUBLIC).replace(
        "{per-user", "{per-ip: {limit: 1, window: 1s, key: client_ip}, per-user"
    )
    ((line, column, text),) = warnings(tmp_path, marked.replace("¦", ""))
    assert (line, column, text) == (*place(marked), "routes[1].auth: other is public: it needs no token")


def test_a_route_without_any_limit(tmp_path: Path) -> None:
    unlimited = CLEAN.replace("    rate_limits: per-user\n", "")
    assert [text for _, _, text in warnings(tmp_path, unlimited)] == [
        "rate_limits.per-user: nothing uses this",
        "routes[0]: users has no rate limit",
    ]
    limited = unlimited.replace("window: 1s", "window: 1s, key: client_ip") + "client_limits: [per-user]\n"
    assert warnings(tmp_path, limited) == []


def test_an_issuer_without_a_longest_lifetime(tmp_path: Path) -> None:
    ((line, column, text),) = warnings(tmp_path, CLEAN.replace("      max_lifetime: 1h\n", ""))
    assert (line, column) == (4, 5)
    assert text.startswith("identity.issuers.corp: tokens of any lifetime")


@pytest.mark.parametrize(
    ("first", "second", "unreachable"),
    [
        ("prefix: /a, methods: [GET, PUT]", "prefix: /a/, methods: [GET]", True),
        ("prefix: /a, methods: [GET]", "prefix: /a, methods: [GET, PUT]", False),
        ("prefix: /a, hosts: ['*.x']", "prefix: /a, hosts: ['*.b.x', '*.c.x']", True),
        ("prefix: /a, hosts: ['*.b.x']", "prefix: /a, hosts: ['*.x', '*.b.x']", False),
        ("exact: /a, methods: [GET]", "prefix: /a, methods: [GET]", False),
        ("exact: /a, methods: [GET, PUT]", "exact: /a/, methods: [GET]", False),
    ],
)
def test_shadowed_routes(tmp_path: Path, first: str, second: str, unreachable: bool) -> None:
    text = CLEAN.replace("prefix: /users", first).replace("audit:", ROUTE % second)
    found = warnings(tmp_path, text)
    assert [line for line, _, text in found if "never reached: users takes all" in text] == (
        [17] if unreachable else []
    )
    assert len(found) == unreachable


TOLD = "forward: {issuer: X-User-Issuer}"
OTHER = 'dev: {issuer: d, audience: a, algorithms: ES256, keys: {jwks_url: "https://d.example/"}, max_lifetime: 1h}'


@pytest.mark.parametrize("where", ["default", "route"])
@pytest.mark.parametrize("named", [False, True])
def test_two_issuers_whose_subjects_are_told_apart_by_the_issuer_alone(tmp_path: Path, where: str, named: bool) -> None:
    default = "default: ¦[corp, dev]" if where == "default" else "default: corp"
    text = CLEAN.replace("  issuers:\n", f"  {default}\n  issuers:\n    {OTHER}\n")
    if where == "route":
        text = text.replace("upstream: users\n", "upstream: users\n    auth: {issuers: ¦[corp, dev]}\n")
    if named:
        text = text.replace("identity:\n", f"identity:\n  {TOLD}\n")
    found = warnings(tmp_path, text.replace("¦", ""))
    if named:
        assert found == []
    else:
        ((line, column, message),) = found
        assert (line, column) == place(text)
        assert "corp and dev may each have a subject of the same name: one X-User-ID" in message


@pytest.mark.parametrize("kinds", ["any: ¦[jwt, api-key]", "any: ¦[api-key, certificate]", "all: [jwt, api-key]"])
@pytest.mark.parametrize("named", [False, True])
def test_a_key_and_a_certificate_are_of_issuers_of_their_own(tmp_path: Path, kinds: str, named: bool) -> None:
    text = CLEAN.replace("version: 1", "version: 1\ntrusted_proxies: [10.0.0.1]\napi_keys: {file: k.jsonl}")
    told = f"  {TOLD}\n" if named else ""
    text = text.replace("identity:\n", f"identity:\n  certificates: {{dns: a.example, forwarded: true}}\n{told}")
    text = text.replace("upstream: users\n", f"upstream: users\n    auth: {{{kinds}}}\n")
    found = [one for one in warnings(tmp_path, text.replace("¦", "")) if "of the same name" in one[2]]
    if named or kinds.startswith("all"):
        assert found == []
        return
    ((line, column, message),) = found
    assert (line, column) == place(text)
    first = "corp and api-key" if "jwt" in kinds else "api-key and certificate"
    assert f"{first} may each have a subject of the same name: one X-User-ID" in message


def test_shared_secrets_beside_public_keys(tmp_path: Path) -> None:
    dev = "dev: {issuer: d, audience: a, algorithms: ¦HS256, keys: {secret_env: S}, max_lifetime: 1h}"
    marked = CLEAN.replace("  issuers:\n", f"  {TOLD}\n  default: [corp, dev]\n  issuers:\n    {dev}\n")
    ((line, column, text),) = warnings(tmp_path, marked.replace("¦", ""))
    assert (line, column) == place(marked)
    assert text.startswith("identity.issuers.dev.algorithms: a shared secret")


def test_an_issuer_that_no_route_accepts(tmp_path: Path) -> None:
    other = '    spare: {issuer: s, audience: a, algorithms: ES256, keys: {jwks_url: "https://s/"}, max_lifetime: 1h}\n'
    found = warnings(tmp_path, CLEAN.replace("  issuers:\n", f"  default: corp\n  issuers:\n{other}"))
    assert [text for _, _, text in found] == ["identity.issuers.spare: nothing uses this"]


def test_bad_members_of_a_key_set_are_left_out_with_a_warning(tmp_path: Path) -> None:
    good = '{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}'
    (tmp_path / "keys.json").write_text('{"keys": [' + good + ', {"kty": "RSA", "n": "AQ", "e": "AQAB"}]}')
    text = CLEAN.replace('jwks_url: "https://c.example/"', "jwks_file: keys.json").replace("ES256", "EdDSA")
    ((line, _, message),) = warnings(tmp_path, text)
    assert line == 8
    assert "key 2" in message


def test_a_network_that_the_whole_policy_does_not_let_in(tmp_path: Path) -> None:
    marked = CLEAN.replace("upstream: users", "upstream: users\n    networks: {allow: [10.2.0.0/16, ¦192.0.2.0/24]}")
    found = warnings(tmp_path, marked.replace("¦", "") + "networks: {allow: [10.0.0.0/8]}\n")
    assert found == [
        (*place(marked), "routes[0].networks.allow[1]: nobody of 192.0.2.0/24 passes the policy's own networks.allow")
    ]


@pytest.mark.parametrize("admin", ["0.0.0.0", "::", "127.0.0.1", "localhost"])
def test_an_endpoint_that_is_the_admin_listener(tmp_path: Path, admin: str) -> None:
    text = CLEAN.replace(":9001", ":8090") + f'admin: {{host: "{admin}"}}\n'
    assert [message for _, _, message in warnings(tmp_path, text)] == [
        "upstreams.users.endpoints[0]: the gateway itself listens there"
    ]


def test_certificates_that_are_not_valid_now(tmp_path: Path) -> None:
    past, future = (
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC),
    )
    for name, begin in (("old", past), ("new", future)):
        make_certificate(tmp_path / f"{name}.pem", tmp_path / f"{name}.key", begin, 30)
    text = CLEAN.replace("endpoints:", "tls: {ca: old.pem, certificate: new.pem, key: new.key}, endpoints:")
    found = warnings(tmp_path, text.replace("http://", "https://"))
    assert [(line, message.partition(",")[0]) for line, _, message in found] == [
        (10, "upstreams.users.tls.ca: it is valid from 2020-01-01 to 2020-01-31"),
        (10, "upstreams.users.tls.certificate: it is valid from 2100-01-01 to 2100-01-31"),
    ]


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("file", "make", "reason"),
    [
        ("/proc/nobody/audit.jsonl", None, "No such file or directory"),
        ("file/audit.jsonl", Path.touch, "Not a directory"),
        ("taken", Path.mkdir, "it is a directory"),
        ("pipe", fifo, "it is no regular file"),
        ("new/and/deep/audit.jsonl", None, ""),
        ("old.jsonl", Path.touch, ""),
    ],
)
@pytest.mark.parametrize("member", ["file", "spill"])
def test_an_audit_file_that_can_not_be_written(
    tmp_path: Path, member: str, file: str, make: Callable[[Path], None] | None, reason: str
) -> None:
    """And nothing is made by looking."""
    if make is not None:
        make(tmp_path / file.partition("/")[0])
    before = sorted(tmp_path.rglob("*"))
    sink = f"file: ¦{file}" if member == "file" else f"redis_stream: s, spill: ¦{file}"
    marked = CLEAN.replace("file: a.jsonl", sink) + 'store: {url: "redis://127.0.0.1/"}\n'
    found = warnings(tmp_path, marked.replace("¦", ""))
    assert found == (
        [(*place(marked), f"audit.sinks[0].{member}: the file can't be written: {reason}")] if reason else []
    )
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "p.yaml"])


ACKNOWLEDGED = [
    ("version: 1", "version: 1\nmode: report\nacknowledge: {report-mode: for a week}"),
    ("upstream: users", "upstream: users\n    mode: report\n    acknowledge: {report-mode: for a week}"),
    ("version: 1", "version: 1\nacknowledge: {no-rate-limit: inside}"),
    ("max_lifetime: 1h", "acknowledge: {any-lifetime: theirs}"),
    ("{sinks: [{file: a.jsonl}], ", "{acknowledge: {no-audit: a demo}, "),
    ("window: 1s", "window: 1s, mode: report, acknowledge: {report-mode: we look}"),
]


@pytest.mark.parametrize(("old", "new"), ACKNOWLEDGED)
def test_a_warning_that_is_meant(tmp_path: Path, old: str, new: str) -> None:
    """Beside the rule or around it; the digest is the same, and without the acknowledgement it is a warning."""
    path = tmp_path / "p.yaml"
    text = CLEAN.replace(old, new)
    if "no-rate-limit" in new:
        text = text.replace("    rate_limits: per-user\n", "").replace(
            "rate_limits: {per-user: {limit: 5, window: 1s}}\n", ""
        )
    path.write_text(text)
    meant = load(path, ENVIRON)
    found = review(meant)
    assert found.warnings == ()
    ((problem, reason),) = found.acknowledged
    assert f"{{{problem.code}: {reason}}}" in new
    path.write_text(re.sub(r"(, |\n +|\n|(?<={))acknowledge: {[^}]*}(, )?", "", text))
    plain = load(path, ENVIRON)
    assert [warning.code for warning in lint(plain)] == [problem.code]
    assert digest(plain) == digest(meant)


def test_an_acknowledgement_of_nothing_and_of_another_place(tmp_path: Path) -> None:
    marked = CLEAN.replace("upstream: users", "upstream: users\n    acknowledge: {¦public: no longer}")
    assert warnings(tmp_path, marked.replace("¦", "")) == [
        (*place(marked), "routes[0].acknowledge.public: there is no warning public here that could be meant")
    ]
    other = CLEAN.replace("audit:", PUBLIC.replace("¦", "").replace("rate_limits: per-ip", "rate_limits: per-ip"))
    other = other.replace("{per-user", "{per-ip: {limit: 1, window: 1s, key: client_ip}, per-user")
    other = other.replace("upstream: users\n", "upstream: users\n    acknowledge: {public: of another route}\n", 1)
    assert [text.partition(":")[0] for _, _, text in warnings(tmp_path, other)] == [
        "routes[0].acknowledge.public",
        "routes[1].auth",
    ]


def test_what_depends_on_the_machine_may_be_acknowledged_in_vain(tmp_path: Path) -> None:
    meant = "{acknowledge: {unwritable: by CI, unkeyed-chain: by CI}, sinks"
    assert warnings(tmp_path, CLEAN.replace("{sinks", meant)) == []


def test_the_page_has_every_code() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "warnings.md").read_text(), re.MULTILINE)
    assert rows == list(Code)


def test_a_condition_may_ask_whether_a_key_or_a_certificate_is_who_asks(tmp_path: Path) -> None:
    both = "    auth: {all: [jwt, api-key, certificate]}\n    require: {when: 'principal.issuer in [%s]'}\n"
    text = CLEAN.replace("version: 1", "version: 1\ntrusted_proxies: [10.0.0.1]\napi_keys: {file: k.jsonl}")
    text = text.replace("identity:", "identity:\n  certificates: {dns: a.example, forwarded: true}")
    text = text.replace("    rate_limits: per-user\n", f"    rate_limits: per-user\n{both}")
    assert warnings(tmp_path, text % '"api-key", "certificate"') == []
    (found,) = warnings(tmp_path, text % '"api-keys"')
    assert "principal.issuer is the name" in found[2]
