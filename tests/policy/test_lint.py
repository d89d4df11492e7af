"""Warnings of valid policies, and members whose capability is not there."""

from pathlib import Path

import pytest

from mitmgate.policy.lint import lint
from mitmgate.policy.loader import load

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
        ("version: 1", 'version: 1\ncors: {¦spare: {origins: ["*"]}}', "cors.spare: nothing uses this"),
        (
            CORP,
            CORP.replace("corp", "¦corp").replace("      audience: api\n", ""),
            "identity.issuers.corp: tokens for any",
        ),
        ("max_lifetime: 1h", "max_lifetime: 1h\n      leeway: ¦6m", "identity.issuers.corp.leeway: a leeway above 5m"),
        ('"https://c.example/', '¦"http://c.example/', "identity.issuers.corp.keys.jwks_url: keys over plain http"),
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
        # Routes that never decide.
        ("audit:", ROUTE.replace("{%s}", "¦{exact: /health}"), "routes[1].match: never reached: the health check"),
        ("audit:", ROUTE % "prefix: /users/, methods: GET", ""),  # more specific: decides first
        ("audit:", ROUTE % "prefix: /users/, hosts: a.example", ""),
    ],
)
def test_one_warning(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CLEAN
    marked = CLEAN.replace(old, new, 1)
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
