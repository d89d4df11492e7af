"""Bad policies: every error with the exact line and column, and with a hint."""

from pathlib import Path

import pytest

from mitmgate.policy.loader import PolicyError, Problem, load

BASE = """\
version: 1
identity:
  issuers:
    dev: {issuer: https://dev.example, audience: api, algorithms: [HS256], keys: {secret_env: S}}
upstreams:
  users: {endpoints: ["http://127.0.0.1:9001"]}
  orders: {endpoints: ["http://127.0.0.1:9002"]}
rate_limits:
  per-user: {limit: 5, window: 1s}
  per-client: {limit: 5, window: 1s, key: client_ip}
cors:
  web: {origins: ["https://app.example"]}
routes:
  - name: users
    match: {prefix: /users}
    upstream: users
  - name: orders
    match: {prefix: /orders}
    upstream: orders
"""
ENVIRON = {"S": "s" * 32, "SHORT": "s" * 31, "LONG": "s" * 48, "WORKERS": "3", "NUMBER": "12", "EMPTY": ""}


def problems(tmp_path: Path, text: str) -> list[Problem]:
    """Load a text that must not load."""
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load(path, ENVIRON)
    return [problem for problem in caught.value.problems if problem.severity == "error"]


def place(text: str, mark: str) -> tuple[int, int]:
    """Return line and column of a mark."""
    before = text[: text.index(mark)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


# What stands in BASE, what stands there instead (¦ marks the place of the error), path, message, hint.
Case = tuple[str, str, str, str, str]
CASES: list[Case] = [
    # Bounds, and what goes with them.
    ("version: 1\n", "limits: {token: ¦64KiB}\nversion: 1\n", "limits.token", "does not fit into a head", "raise head"),
    ("version: 1\n", "limits: {target: ¦32KiB}\nversion: 1\n", "limits.target", "does not fit", "raise head"),
    ("version: 1\n", "limits: {fields: ¦0}\nversion: 1\n", "limits.fields", "", ""),
    ("version: 1\n", "limits: {response_head: ¦2MiB}\nversion: 1\n", "limits.response_head", "must be from", ""),
    (
        '{origins: ["https://app.example"]}',
        '{origins: ["null"], credentials: ¦true}',
        "cors.web.credentials",
        "null in origins can't go with credentials",
        "",
    ),
    # Decision services.
    ("version: 1\n", "decision: ¦other\nversion: 1\n", "decision", "no decision service has this name", "at all"),
    ("version: 1\n", "decision: ¦none\nversion: 1\n", "decision", "no decision service has this name", "at all"),
    (
        "upstream: users",
        "upstream: users\n    decision: ¦other",
        "routes[0].decision",
        "no decision service has this name",
        "at all",
    ),
    *(
        ("version: 1\n", f"decision_services: {{{text}}}\nversion: 1\n", f"decision_services.{path}", message, hint)
        for text, path, message, hint in (
            ("s: {protocol: ¦rest, url: 'http://127.0.0.1/'}", "s.protocol", "", ""),
            ("s: {protocol: opa, url: ¦ftp://x/}", "s.url", "must be an http or https URL", "write http://"),
            ("s: {protocol: opa, url: ¦'http://u:p@x/'}", "s.url", "without credentials", "write http://"),
            ("s: {protocol: opa, url: ¦'http://opa.example/'}", "s.url", "decisions over plain http", "use https"),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', timeout: ¦31s}", "s.timeout", "at most 30s", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', cache: ¦2h}", "s.cache", "at most 1h", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', forward: ¦X-A}", "s.forward", "only an answer of", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', headers: ¦Host}", "s.headers", "the gateway alone", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', headers: ¦[X-A, x-a]}", "s.headers", "listed twice", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', token_env: ¦NONE}", "s.token_env", "is not set", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', token_env: ¦EMPTY}", "s.token_env", "no bearer token", ""),
            ("s: {protocol: opa, url: 'http://127.0.0.1/', ca: ¦missing.pem}", "s.ca", "the file", "relative to"),
            ("s: {protocol: ext_authz, url: 'http://127.0.0.1/', claims: ¦a}", "s.claims", "no place for claims", ""),
            ("s: {protocol: ext_authz, url: ¦'http://127.0.0.1/?a'}", "s.url", "has no query", "leave it out"),
            (
                "s: {protocol: ext_authz, url: 'http://127.0.0.1/', forward: ¦X-User-ID}",
                "s.forward",
                "the gateway writes",
                "",
            ),
            (
                "s: {protocol: ext_authz, url: 'http://127.0.0.1/', forward: ¦Origin}",
                *("s.forward", "Origin of the client is what the gateway goes by", "name another"),
            ),
            (
                "s: {protocol: ext_authz, url: 'http://127.0.0.1/', forward: ¦Authorization}",
                "s.forward",
                "written by the gateway alone",
                "",
            ),
            (
                "s: {protocol: ext_authz, url: 'http://127.0.0.1/', headers: Authorization, token_env: ¦S}",
                "s.token_env",
                "two of Authorization",
                "keep one",
            ),
        )
    ),
    (
        "upstreams:\n  users: {",
        "decision_services: {s: {protocol: ext_authz, url: 'http://127.0.0.1/', forward: X-Tier}}\n"
        "upstreams:\n  users: {trailers: [¦x-tier], ",
        "upstreams.users.trailers[0]",
        "the gateway alone writes it",
        "",
    ),
    # Paths that servers read differently.
    ("{prefix: /users}", "{prefix: ¦/users;v=1}", "routes[0].match.prefix", "the path holds a parameter (;)", ""),
    ("{prefix: /users}", "{prefix: ¦//users}", "routes[0].match.prefix", "the path holds an empty segment", ""),
    ("{prefix: /users}", "{prefix: ¦/users%20/..%20}", "routes[0].match.prefix", "the path holds a dot segment", ""),
    (
        "{prefix: /users}",
        '{prefix: ¦"/[id]"}',
        "routes[0].match.prefix",
        "must be a canonical",
        "did you mean /%5Bid%5D?",
    ),
    # Fields of clients that are kept.
    (
        "identity:",
        "identity:\n  keep: [¦X-Real-IP]",
        "identity.keep[0]",
        "a client's X-Real-IP is always removed",
        "only",
    ),
    ("identity:", "identity:\n  keep: [¦Accept]", "identity.keep[0]", "Accept goes on as it is", "leave it out"),
    ("identity:", "identity:\n  keep: ¦[X-User-Role]", "identity.keep", "the gateway's own word", ""),
    (
        "identity:",
        "identity:\n  proofs: {certificate_header: X-SSL-Cert}\n  keep: ¦[X-SSL-Cert]",
        *("identity.keep", "the gateway's own word", ""),
    ),
    (
        "identity:",
        "identity:\n  proofs: {certificate_header: ¦DPoP}",
        *("identity.proofs.certificate_header", "DPoP has a meaning of its own", "name another"),
    ),
    (
        "identity:",
        "identity:\n  forward: {subject: ¦Content-Type}",
        *("identity.forward.subject", "Content-Type has a meaning of its own", "name another"),
    ),
    (
        "identity:",
        "identity:\n  certificates: {dns: a, header: ¦Authorization}",
        *("identity.certificates.header", "Authorization has a meaning of its own", "name another"),
    ),
    (
        "identity:",
        "identity:\n  certificates: {dns: a, forwarded: true, header: ¦X-Client-Cert}",
        *("identity.certificates.header", "proxies pass certificates on in one field", "leave out"),
    ),
    ("identity:", "identity:\n  proofs: {lifetime: ¦6m}", "identity.proofs.lifetime", "must be at most 5m", ""),
    # Unknown members and missing ones.
    ("cors:", "¦corse:", "corse", "there is no member corse", "did you mean cors?"),
    ("version: 1\n", "¦listn: {}\nversion: 1\n", "listn", "there is no member", "did you mean listen?"),
    (
        "window: 1s}",
        "¦windw: 1s, window: 1s}",
        "rate_limits.per-user.windw",
        "there is no member",
        "did you mean window?",
    ),
    (
        "secret_env",
        "¦secret_nv: X, secret_env",
        "identity.issuers.dev.keys.secret_nv",
        "no member",
        "did you mean secret_env?",
    ),
    ("prefix: /users", "¦prefxi: /x, exact: /y", "routes[0].match.prefxi", "no member prefxi", "mean prefix?"),
    ("    upstream: users\n", "", "routes[0]", "the member upstream is missing", "add upstream"),
    ("{limit: 5, window: 1s}", "¦{limit: 5}", "rate_limits.per-user", "the member window is missing", "add window"),
    # Types and units.
    ("version: 1", "version: ¦2", "version", "must be 1", ""),
    ("version: 1", "version: ¦true", "version", "must be 1", ""),
    ("version: 1", "version: ¦1.0", "version", "must be 1", ""),
    ("version: 1", 'version: ¦"1"', "version", "must be 1", ""),
    ("version: 1", "version: 1\nmode: ¦repotr", "mode", "must be enforce or report", "did you mean report?"),
    ("version: 1", 'version: 1\nlisten: {port: ¦"80"}', "listen.port", "must be a whole number", "without quotes"),
    (
        "    upstream: users\n",
        "    upstream: users\n    websocket: ¦yes\n",
        "routes[0].websocket",
        "true or false",
        "write true",
    ),
    (
        "    upstream: users\n",
        "    upstream: users\n    websocket: ¦Off\n",
        "routes[0].websocket",
        "true or false",
        "write false",
    ),
    ("version: 1", "version: 1\nlisten: {port: ¦65536}", "listen.port", "must be at most 65535", ""),
    ("version: 1", "version: 1\nlisten: {port: ¦80.0}", "listen.port", "must be a whole number", ""),
    ("version: 1", "version: 1\nlisten: {port: ¦true}", "listen.port", "must be a whole number", ""),
    ("version: 1", "version: 1\nlisten: ¦null", "listen", "must be a mapping", "write {...}"),
    ("version: 1", "version: 1\nlisten: ¦[]", "listen", "must be a mapping", "write {...}"),
    ("version: 1", "version: 1\nlimits: {head_timeout: ¦10}", "limits.head_timeout", "must be a duration", "write 10s"),
    ("version: 1", "version: 1\nlimits: {head_timeout: ¦1d}", "limits.head_timeout", "must be a duration", "write 24h"),
    ("version: 1", "version: 1\nlimits: {head_timeout: ¦0s}", "limits.head_timeout", "must be more than zero", ""),
    ("version: 1", "version: 1\nlimits: {body: ¦1MB}", "limits.body", "must be a size", "write 1MiB"),
    ("version: 1", "version: 1\nlimits: {body: ¦[1]}", "limits.body", "must be a size", ""),
    ("version: 1", "version: 1\nlimits: {memory: ¦100KiB}", "limits.memory", "must be at least 1MiB", ""),
    ("version: 1", "version: 1\nlimits: {body_rate: ¦500}", "limits.body_rate", "must be a size", "write 500B"),
    ("version: 1", "version: 1\nlimits: {body_timeout: ¦0s}", "limits.body_timeout", "must be more than zero", ""),
    ("version: 1", "version: 1\nlimits: {head: ¦100B}", "limits.head", "must be from 1KiB to 1MiB", ""),
    ("version: 1", "version: 1\nstore: ¦redis", "store", "must be memory or {url: redis://...}", ""),
    ("version: 1", "version: 1\nstore: {url: ¦http://x}", "store.url", "URL of a Redis server", "redis://HOST:6379/0"),
    ("prefix: /users}", "prefix: /users}\n    websocket: ¦yes", "routes[0].websocket", "must be true or false", ""),
    # Trailers that no service may be given.
    (
        '9001"]}',
        '9001"], trailers: [X-Sum, ¦Content-Type]}',
        "upstreams.users.trailers[1]",
        "can't follow a body",
        "it belongs in a head",
    ),
    ('9001"]}', '9001"], trailers: [¦X-Auth-User]}', "upstreams.users.trailers[0]", "can't follow a body", ""),
    ('9001"]}', '9001"], trailers: [¦X-User-ID]}', "upstreams.users.trailers[0]", "can't follow a body", ""),
    (
        "upstreams:\n  users: {",
        "  forward: {subject: X-Who}\nupstreams:\n  users: {trailers: [¦x-who], ",
        "upstreams.users.trailers[0]",
        "carries identity",
        "",
    ),
    ('9001"]}', '9001"], trailers: [¦x_sum]}', "upstreams.users.trailers[0]", "must be a header name without '_'", ""),
    # What nothing is ever equal to.
    ('["https://app.example"]', '[¦"https://*.app.example"]', "cors.web.origins[0]", "sends no wildcard", "* alone"),
    (
        '["https://app.example"]',
        '["https://app.example", ¦"*.app.example"]',
        "cors.web.origins[1]",
        "an origin",
        "or *",
    ),
    (
        '["https://app.example"]',
        '[¦"https://bücher.example"]',
        "cors.web.origins[0]",
        "as browsers",
        "xn--bcher-kva.example?",
    ),
    ('["https://app.example"]', '[¦"https://app example"]', "cors.web.origins[0]", "has no valid host", ""),
    ('["https://app.example"]', '[¦"https://app.example:99999"]', "cors.web.origins[0]", "has no valid host", ""),
    (
        '["https://app.example"]',
        '[¦"https://app.example:443"]',
        "cors.web.origins[0]",
        "as browsers",
        "https://app.example?",
    ),
    (
        "{prefix: /users}",
        '{prefix: /u, hosts: [¦"https://a.example"]}',
        "routes[0].match.hosts[0]",
        "host name",
        "mean a.example?",
    ),
    (
        "{prefix: /users}",
        '{prefix: /u, hosts: [¦"http://a.example:80/x"]}',
        "routes[0].match.hosts[0]",
        "host",
        "mean a.example?",
    ),
    (
        "{prefix: /users}",
        '{prefix: /u, hosts: [¦"a.example/x"]}',
        "routes[0].match.hosts[0]",
        "host name",
        "mean a.example?",
    ),
    (
        "{prefix: /users}",
        '{prefix: /u, hosts: [¦"*.bücher.example"]}',
        "routes[0].match.hosts[0]",
        "host",
        "*.xn--bcher-kva.example?",
    ),
    ("{prefix: /users}", '{prefix: /u, hosts: [¦"*"]}', "routes[0].match.hosts[0]", "host name", "leave hosts out"),
    ("{prefix: /users}", '{prefix: /u, hosts: [¦"api.*"]}', "routes[0].match.hosts[0]", "host name", "*.example"),
    (
        "{prefix: /users}",
        '{prefix: ¦"/users/{id}/x"}',
        "routes[0].match.prefix",
        "a canonical path",
        "prefix: /users takes",
    ),
    ("{prefix: /users}", '{prefix: ¦"^/users"}', "routes[0].match.prefix", "a canonical path", ""),
    ("{prefix: /users}", '{exact: ¦"/<id>"}', "routes[0].match.exact", "a canonical path", "prefix: / takes"),
    (
        "upstream: users",
        'upstream: users\n    require: {scopes_all: ¦"a b"}',
        "routes[0].require.scopes_all",
        "one scope",
        "write [a, b]",
    ),
    (
        "upstream: users",
        "upstream: users\n    require: {scopes_all: [a, ¦é]}",
        "routes[0].require.scopes_all[1]",
        "one scope",
        "",
    ),
    (
        "upstream: users",
        f"upstream: users\n    require: {{roles_any: ¦{'r' * 256}}}",
        "routes[0].require.roles_any",
        "255",
        "",
    ),
    (
        "version: 1",
        'version: 1\nlisten: {host: ¦"0.0.0.0:8080"}',
        "listen.host",
        "host name alone",
        "did you mean 0.0.0.0?",
    ),
    (
        "version: 1",
        'version: 1\nlisten: {host: ¦"http://a.example/"}',
        "listen.host",
        "host name alone",
        "mean a.example?",
    ),
    ("version: 1", 'version: 1\nlisten: {host: ¦"[::1]"}', "listen.host", "host name alone", "did you mean ::1?"),
    ("version: 1", 'version: 1\nadmin: {host: ¦"127.0.0.1:8090"}', "admin.host", "host name alone", "mean 127.0.0.1?"),
    # Two sinks of one file, and acknowledgements.
    (
        "version: 1",
        "version: 1\naudit: {sinks: [{file: a/b.jsonl}, {file: ¦a/./b.jsonl}]}",
        "audit.sinks[1].file",
        "another sink writes this file",
        "it is at line 2",
    ),
    (
        "version: 1",
        "version: 1\nacknowledge: {¦pubilc: x}",
        "acknowledge.pubilc",
        "no warning has this code",
        "mean public?",
    ),
    (
        "version: 1",
        "version: 1\nacknowledge: {¦nothing-to-acknowledge: x}",
        "acknowledge.nothing-to-acknowledge",
        "no warning",
        "",
    ),
    ("version: 1", 'version: 1\nacknowledge: {public: ¦""}', "acknowledge.public", "must not be empty", ""),
    # Names, addresses, headers.
    ("version: 1", "version: 1\nnetworks: {allow: [¦10.0.0.1/8]}", "networks.allow[0]", "host bits", "10.0.0.0/8?"),
    ("version: 1", "version: 1\nnetworks: {deny: [¦10.0.0.300]}", "networks.deny[0]", "must be a network", "192.0.2.0"),
    ("version: 1", "version: 1\nnetworks: {deny: ¦10.0.0.0/8}", "networks.deny", "must be a list", "write [...]"),
    ("{prefix: /users}", '{prefix: /u, hosts: [¦"a:80"]}', "routes[0].match.hosts[0]", "without a port", "mean a?"),
    ("{prefix: /users}", "{prefix: /u, hosts: ¦a..b}", "routes[0].match.hosts", "must be a host name", "api.example"),
    ("{prefix: /users}", "{prefix: /u, methods: [¦get]}", "routes[0].match.methods[0]", "in capitals", "mean GET?"),
    ("{prefix: /users}", "{prefix: ¦users}", "routes[0].match.prefix", "canonical path", "did you mean /users?"),
    ("{prefix: /users}", "{prefix: ¦/a/../b}", "routes[0].match.prefix", "dot segment", ""),
    ("{prefix: /users}", "{prefix: ¦/%7Ea}", "routes[0].match.prefix", "canonical path", "did you mean /~a?"),
    ("{prefix: /users}", "{prefix: /a, exact: ¦/b}", "routes[0].match.exact", "exclude each other", "keep one"),
    ("{prefix: /users}", "¦{methods: [GET]}", "routes[0].match", "needs a path", "add prefix: /"),
    (
        "version: 1",
        "version: 1\nresponse_headers: {set: {¦X_A: b}}",
        "response_headers.set.X_A",
        "must be a header name without '_'",
        "did you mean X-A?",
    ),
    (
        "version: 1",
        'version: 1\nresponse_headers: {set: {X-A: ¦"b\\nc"}}',
        "response_headers.set.X-A",
        "must be a header value",
        "",
    ),
    (
        "version: 1",
        "version: 1\nresponse_headers: {remove: ¦[Content-Length]}",
        "response_headers.remove",
        "Content-Length frames the message",
        "",
    ),
    (
        '["http://127.0.0.1:9001"]',
        "[¦127.0.0.1:9001]",
        "upstreams.users.endpoints[0]",
        "must be http",
        "http://127.0.0.1",
    ),
    (
        '["http://127.0.0.1:9001"]',
        '[¦"http://a/b"]',
        "upstreams.users.endpoints[0]",
        "without a path",
        "mean http://a?",
    ),
    ('["http://127.0.0.1:9001"]', '[¦"http://u:p@a"]', "upstreams.users.endpoints[0]", "credentials", "mean http://a?"),
    ('["http://127.0.0.1:9001"]', '¦["http://a", "http://a:80/"]', "upstreams.users.endpoints", "listed twice", ""),
    ('["http://127.0.0.1:9001"]', "¦[]", "upstreams.users.endpoints", "must not be empty", ""),
    (
        "{endpoints: [",
        "{circuit: {statuses: [¦404]}, endpoints: [",
        "upstreams.users.circuit.statuses[0]",
        "at least 500",
        "",
    ),
    ("key: client_ip", "key: client_ip, ipv6_prefix: ¦129", "rate_limits.per-client.ipv6_prefix", "at most 128", ""),
    ("{endpoints: [", "{circuit: {share: ¦0.5}, endpoints: [", "upstreams.users.circuit.share", "a share", "write 50%"),
    ("{endpoints: [", "{circuit: {share: ¦yes}, endpoints: [", "upstreams.users.circuit.share", "a share", "like 50%"),
    # References.
    ("upstream: users", "upstream: ¦usres", "routes[0].upstream", "no upstream has this name", "did you mean users?"),
    ("upstream: users", "upstream: users\n    cors: ¦wbe", "routes[0].cors", "no CORS policy", "did you mean web?"),
    (
        "upstream: users",
        "upstream: users\n    rate_limits: [¦per-usr]",
        "routes[0].rate_limits[0]",
        "no rate",
        "per-user?",
    ),
    (
        "upstream: users",
        "upstream: users\n    rate_limits: ¦per-usr",
        "routes[0].rate_limits",
        "no rate limit",
        "per-user?",
    ),
    (
        "upstream: users",
        "upstream: users\n    auth: {issuers: [¦dve]}",
        "routes[0].auth.issuers[0]",
        "no issuer",
        "dev?",
    ),
    ("version: 1", "version: 1\nclient_limits: [¦zzz]", "client_limits[0]", "no rate limit", "there are per-user"),
    ("identity:\n", "identity:\n  default: ¦dve\n", "identity.default", "no issuer has this name", "did you mean dev?"),
    ("name: orders", "name: ¦users", "routes[1].name", "two routes have this name", "the first is at line 14"),
    ("{prefix: /orders}", "¦{prefix: /users/}", "routes[1].match", "the very same requests", "it is at line 15"),
    # Tokens and keys.
    *(
        ("issuer: https://dev.example", new, f"identity.issuers.dev.{member}", message, hint)
        for new, member, message, hint in (
            ("issuer: ¦'https://a/{tid}'", "issuer", "an issuer for many tenants needs a list", "add tenants"),
            ("issuer: https://a, tenants: ¦[t]", "tenants", "no part of issuer says where", "https://login.example/{"),
            (
                "issuer: ¦['https://a/{tid}', 'https://b'], tenants: t",
                "issuer",
                "each issuer of a list has the same",
                "",
            ),
            ("issuer: ¦['https://a/{t}', 'https://b/{u}'], tenants: t", "issuer", "each issuer of a list", ""),
            ("issuer: ¦'https://{t}.a/{t}', tenants: t", "issuer", "each issuer of a list", ""),
            ("issuer: ¦[https://a, https://a]", "issuer", "an issuer is listed twice", ""),
            ("issuer: ¦[]", "issuer", "must not be empty", ""),
            ("issuer: ¦[spiffe://a, spiffe://b]", "issuer", "two trust domains", "give each"),
            ("issuer: 'https://a/{t}', tenants: ¦[x, x]", "tenants", "a tenant is listed twice", ""),
            ("issuer: 'https://a/{t}', tenants: [¦x/y]", "tenants[0]", "must be a tenant", ""),
            ("issuer: 'https://a/{t}', tenants: [¦'*']", "tenants[0]", "must be a tenant", ""),
            ("issuer: https://a, claims: {roles: [x, ¦/a~b]}", "claims.roles[1]", "no JSON pointer", "write /realm"),
        )
    ),
    (
        "  issuers:\n    dev: {issuer: https://dev.example,",
        "  default: dev\n  issuers:\n"
        "    two: {issuer: [https://x, https://dev.example], algorithms: HS256, keys: {secret_env: S}}\n"
        "    dev: {issuer: ¦https://dev.example,",
        "identity.issuers.dev.issuer",
        "two is the same issuer",
        "",
    ),
    (
        "limit: 5, window: 1s}",
        "limit: 5, window: 1s, key: ¦claim:/a~2}",
        "rate_limits.per-user.key",
        "no JSON",
        "claim:/",
    ),
    (
        "upstream: orders\n",
        "upstream: orders\n    rewrite: {set: {X-A: ¦'{claim:/a~2}'}}\n",
        "routes[1].rewrite.set.X-A",
        "the claim of the placeholder at character 1 is no JSON pointer",
        "",
    ),
    *(
        (
            "issuer: https://dev.example, audience: api, algorithms: [HS256], keys: {secret_env: S}",
            f"issuer: {issuer}, audience: api, algorithms: [ES256], keys: {{{keys}}}",
            f"identity.issuers.dev.{member}",
            message,
            hint,
        )
        for issuer, keys, member, message, hint in (
            ("https://a", "jwks_url: ¦'http://a/'", "keys.jwks_url", "keys over plain http", "plain_http: true"),
            ("https://a", "discovery: ¦true, jwks_url: 'https://a/'", "keys.discovery", "two sources", "keep one"),
            ("https://a", "discovery: ¦false", "keys.discovery", "", ""),
            ("https://a", "secret_env: S, plain_http: ¦true", "keys.plain_http", "only jwks_url and", "leave it out"),
            ("https://a", "secret_env: S, ca: ¦x.pem", "keys.ca", "only jwks_url and discovery", "leave it out"),
            ("https://a", "discovery: true, ca: ¦nowhere.pem", "keys.ca", "the file", "paths are relative"),
            ("https://a", "discovery: true, ca: ¦p.yaml", "keys.ca", "the file has no PEM certificate", ""),
            ("¦http://a", "discovery: true", "issuer", "discovery would ask over plain http", "use https"),
            ("¦accounts.example", "discovery: true", "issuer", "discovery asks the issuer", "name jwks_url"),
            ("¦'https://a/?x'", "discovery: true", "issuer", "discovery asks the issuer", "name jwks_url"),
            ("https://a", "jwks_url: 'https://a/{tid}'", "keys", "jwks_url has a {NAME}", ""),
        )
    ),
    *(
        (
            "identity:\n",
            f"identity:\n  resources: [{{resource: {url}{more}}}]\n",
            f"identity.resources[0].{at}",
            message,
            hint,
        )
        for url, more, at, message, hint in (
            ("¦http://api.example", "", "resource", "must be an https URL", "write https://"),
            ("¦https://API.example/x", "", "resource", "must be a URL without query", "write https://"),
            ("¦'https://api.example/x?y'", "", "resource", "must be a URL without query", "write https://"),
            ("¦https://api.example/a/../b", "", "resource", "must have a canonical path", "write https://"),
            ("¦api.example", "", "resource", "must be a URL without query", "write https://"),
            ("https://api.example", ", issuers: [¦dve]", "issuers[0]", "no issuer", "did you mean dev?"),
        )
    ),
    (
        "identity:\n",
        "identity:\n  resources: [{resource: https://a/x}, {resource: ¦https://a/x/}]\n",
        "identity.resources[1].resource",
        "resources[0] is of the same host and path",
        "",
    ),
    (
        "issuer: https://dev.example,",
        "issuer: https://dev.example, profile: rfc9068, token_type: ¦any,",
        "identity.issuers.dev.token_type",
        "RFC 9068 knows at+jwt alone",
        "leave it out",
    ),
    (
        "issuer: https://dev.example, audience: api,",
        "issuer: https://dev.example, profile: ¦rfc9068,",
        "identity.issuers.dev.profile",
        "RFC 9068 demands an audience",
        "add audience",
    ),
    (
        "upstream: orders\n",
        "upstream: orders\n    require: {acr_values: [¦'a \"b']}\n",
        "routes[1].require.acr_values[0]",
        "must be one class",
        "",
    ),
    (
        "upstream: orders\n",
        "upstream: orders\n    auth: none\n    require: {¦max_age: 5m}\n",
        "routes[1].require.max_age",
        "a public route has no principal",
        "leave out auth: none",
    ),
    *(
        ("limit: 5, window: 1s}\n  per-client", f"{new}, window: 1s}}\n  per-client", path, message, hint)
        for new, path, message, hint in (
            (
                "limit: 5, tiers: ¦{claim: plan, values: {a: 1}, default: 1}",
                "rate_limits.per-user.tiers",
                "exclude",
                "keep",
            ),
            ("tiers: {claim: plan, values: ¦{}, default: 1}", "rate_limits.per-user.tiers.values", "", ""),
            (
                "tiers: {claim: plan, values: ¦{default: 1}, default: 1}",
                "rate_limits.per-user.tiers.values",
                "default",
                "",
            ),
            ("tiers: ¦{claim: plan, values: {a: 1}}", "rate_limits.per-user.tiers", "", ""),
            ("tiers: {claim: ¦/a~2, values: {a: 1}, default: 1}", "rate_limits.per-user.tiers.claim", "no JSON", ""),
            ("cost: ¦2, tiers: {claim: p, values: {a: 9}, default: 1}", "rate_limits.per-user.cost", "above the", ""),
        )
    ),
    (
        "limit: 5, window: 1s, key: client_ip}",
        "tiers: {claim: plan, values: {a: 1}, default: 2}, window: 1s, key: client_ip}\nclient_limits: [¦per-client]",
        "client_limits[0]",
        "client limits are taken before authentication, and this one counts by claim:plan",
        "use a limit by client_ip",
    ),
    ("[HS256]", "[¦none]", "identity.issuers.dev.algorithms[0]", "an unsigned token proves nothing", ""),
    ("[HS256]", "[¦HS265]", "identity.issuers.dev.algorithms[0]", "must be an algorithm of JWS", "did you mean HS256?"),
    (
        "[HS256]",
        "¦[HS256, RS256]",
        "identity.issuers.dev.algorithms",
        "HS256 needs a secret and RS256 a public key",
        "two",
    ),
    ("[HS256]", "¦[ES256]", "identity.issuers.dev.algorithms", "ES256 does not work with a secret", "use HS256"),
    ("[HS256]", "¦[]", "identity.issuers.dev.algorithms", "must not be empty", ""),
    (
        "[HS256], keys: {secret_env: S}",
        "[HS384], keys: {secret_env: ¦S}",
        "identity.issuers.dev.keys.secret_env",
        "32 bytes; HS384 takes at least 48",
        "openssl rand",
    ),
    (
        "[HS256], keys: {secret_env: S}",
        "[HS512, HS256], keys: {secret_env: ¦LONG}",
        "identity.issuers.dev.keys.secret_env",
        "48 bytes; HS512 takes at least 64",
        "openssl rand",
    ),
    (
        "{secret_env: S}",
        "{secret_env: ¦SHORT}",
        "identity.issuers.dev.keys.secret_env",
        "31 bytes; HS256 takes at least 32",
        "",
    ),
    (
        "{secret_env: S}",
        "{secret_env: ¦SHROT}",
        "identity.issuers.dev.keys.secret_env",
        "SHROT is not set",
        "did you mean SHORT?",
    ),
    (
        "{secret_env: S}",
        "{secret_file: ¦nope}",
        "identity.issuers.dev.keys.secret_file",
        "can't be read: no such file",
        "relative",
    ),
    ("{secret_env: S}", "¦{}", "identity.issuers.dev.keys", "no source of keys", "one of secret_env"),
    (
        "{secret_env: S}",
        "{secret_env: S, secret_file: ¦f}",
        "identity.issuers.dev.keys.secret_file",
        "two sources",
        "keep one",
    ),
    (
        "{secret_env: S}",
        "{secret_env: S, refresh: ¦5m}",
        "identity.issuers.dev.keys.refresh",
        "only jwks_url",
        "leave it out",
    ),
    (
        "[HS256], keys: {secret_env: S}",
        'algorithms: ¦[HS256], keys: {jwks_url: "https://a/"}'.replace("algorithms: ", ""),
        "identity.issuers.dev.algorithms",
        "HS256 does not work with public keys",
        "ES256",
    ),
    (
        "[HS256], keys: {secret_env: S}",
        '[ES256], keys: {jwks_url: ¦"ftp://a/"}',
        "identity.issuers.dev.keys.jwks_url",
        "http or https URL",
        "",
    ),
    (
        "[HS256], keys: {secret_env: S}",
        '[ES256], keys: {jwks_url: "https://a/", min_refresh: ¦1h}',
        "identity.issuers.dev.keys.min_refresh",
        "not be more than refresh",
        "",
    ),
    (
        "[HS256], keys: {secret_env: S}",
        "[ES256], keys: {public_key_file: ¦p.yaml}",
        "identity.issuers.dev.keys.public_key_file",
        "no PEM public key",
        "",
    ),
    (
        "[HS256], keys: {secret_env: S}",
        "[ES256], keys: {jwks_file: ¦p.yaml}",
        "identity.issuers.dev.keys.jwks_file",
        "no plain JSON object",
        "",
    ),
    (
        "    dev:",
        "    other: {issuer: https://o.example, algorithms: [HS256], keys: {secret_env: S}}\n"
        "  default: other\n  ¦issuers:\n    dev:",
        "identity.issuers",
        "duplicate key",
        "first at line 3",
    ),
    # CORS, limits, rewriting.
    (
        '{origins: ["https://app.example"]}',
        '{origins: ["*"], credentials: ¦true}',
        "cors.web.credentials",
        "* in origins",
        "list the origins",
    ),
    (
        '["https://app.example"]',
        "[¦https://App.example:443/]",
        "cors.web.origins[0]",
        "as browsers send it",
        "mean https://app.example?",
    ),
    (
        '["https://app.example"]',
        "[¦app.example]",
        "cors.web.origins[0]",
        "must be an origin",
        "write https://app.example",
    ),
    ("window: 1s}", "window: 1s, key: ¦pricipal}", "rate_limits.per-user.key", "counted by", "did you mean principal?"),
    ("window: 1s}", "window: 1s, key: [route, ¦claim]}", "rate_limits.per-user.key[1]", "must", "claim:NAME"),
    ("window: 1s}", "window: 1s, cost: ¦6}", "rate_limits.per-user.cost", "never passes", ""),
    ("limit: 5", "limit: ¦0", "rate_limits.per-user.limit", "must be at least 1", ""),
    (
        "upstream: users",
        "upstream: users\n    rewrite: {strip_prefix: true, replace_prefix: ¦/x}",
        "routes[0].rewrite.replace_prefix",
        "exclude each other",
        "keep one",
    ),
    (
        "upstream: users",
        'upstream: users\n    rewrite: {set: {X-A: ¦"{clam:x}"}}',
        "routes[0].rewrite.set.X-A",
        "there is no such placeholder as the one at character 1",
        "claim:NAME?",
    ),
    (
        "upstream: users",
        'upstream: users\n    rewrite: {set: {X-A: ¦"a}"}}',
        "routes[0].rewrite.set.X-A",
        "a lone '}' at character 2",
        "",
    ),
    (
        "upstream: users",
        'upstream: users\n    rewrite: {set: {X-A: ¦"{header:authorization}"}}',
        "routes[0].rewrite.set.X-A",
        "a credential is never forwarded",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    rewrite: {set: ¦{Host: a}}",
        "routes[0].rewrite.set",
        "Host is written by the gateway alone",
        "",
    ),
    (
        "upstream: users",
        'upstream: users\n    rewrite: {set: ¦{Cookie: "sid={claim:sid}"}}',
        "routes[0].rewrite.set",
        "Cookie of the client is what the gateway goes by",
        "name another",
    ),
    (
        "upstream: users",
        "upstream: users\n    rewrite: {¦set: {x-user-id: a}}",
        "routes[0].rewrite.set",
        "x-user-id carries identity",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    rewrite: {¦set: {X-User.ID: a}}",  # the same to services that fold what is no letter
        "routes[0].rewrite.set",
        "X-User.ID carries identity",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    rewrite: {¦remove: [X-User-Role]}",
        "routes[0].rewrite.remove",
        "carries identity",
        "",
    ),
    # Conditions.
    (
        "upstream: users",
        "upstream: users\n    require: {when: ¦'1 +'}",
        "routes[0].require.when",
        "not valid CEL at character 4",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    require: {when: ¦'principle.subject == \"a\"'}",
        "routes[0].require.when",
        "no variable principle",
        "mean principal?",
    ),
    (
        "upstream: users",
        "upstream: users\n    require: {when: ¦'request.method'}",
        "routes[0].require.when",
        "the value is str",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    require: {claims: {a: ¦[]}}",
        "routes[0].require.claims.a",
        "must not be empty",
        "",
    ),
    # Kinds of credentials.
    (
        "upstream: users",
        "upstream: users\n    auth: ¦api-key",
        "routes[0].auth",
        "there are no API keys",
        "add api_keys",
    ),
    ("upstream: users", "upstream: users\n    auth: {any: [¦cookie]}", "routes[0].auth.any[0]", "must be", ""),
    ("upstream: users", "upstream: users\n    auth: {any: ¦[jwt, jwt]}", "routes[0].auth.any", "listed twice", ""),
    (
        "upstream: users",
        "upstream: users\n    auth: {any: [jwt], all: ¦[jwt]}",
        "routes[0].auth.all",
        "exclude",
        "keep one",
    ),
    (
        "upstream: users",
        "upstream: users\n    auth: ¦{bound: required}",
        "routes[0].auth",
        "says nothing of what",
        "add",
    ),
    ("version: 1\n", "version: 1\napi_keys: ¦{on_failure: deny}\n", "api_keys", "needs a file, or a redis", "add file"),
    (
        "version: 1\n",
        "version: 1\napi_keys: {file: k, header: ¦Authorization}\n",
        "api_keys.header",
        "has a meaning of its own",
        "write X-API-Key",
    ),
    (
        "version: 1\n",
        "version: 1\napi_keys: {file: k, header: ¦X-User-ID}\n",
        "api_keys.header",
        "has a meaning of its own",
        "write X-API-Key",
    ),
    # Public routes.
    (
        "upstream: users",
        "upstream: users\n    auth: ¦nnoe",
        "routes[0].auth",
        "must be none, jwt, api-key, certificate, {issuers: [...]} or",
        "did you mean none?",
    ),
    (
        "upstream: users",
        "upstream: users\n    auth: none\n    require: {¦roles_any: [a]}",
        "routes[0].require.roles_any",
        "no principal",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    auth: none\n    require: {when: ¦'principal.subject == \"a\"'}",
        "routes[0].require.when",
        "no principal",
        "",
    ),
    (
        "upstream: users",
        "upstream: users\n    auth: none\n    rate_limits: [¦per-user]",
        "routes[0].rate_limits[0]",
        "counts by principal",
        "client_ip",
    ),
    (
        "upstream: users",
        'upstream: users\n    auth: none\n    rewrite: {set: {X-A: ¦"{subject}"}}',
        "routes[0].rewrite.set.X-A",
        "{subject} has no value",
        "",
    ),
    ("version: 1", "version: 1\nclient_limits: [¦per-user]", "client_limits[0]", "before authentication", "client_ip"),
    # Stores.
    ("version: 1", "version: 1\nlisten: {workers: ¦2}", "listen.workers", "can't share counters in memory", "store:"),
    ("version: 1", 'version: 1\nlisten: {workers: ¦"${WORKERS}"}', "listen.workers", "can't share counters", "store:"),
    (
        "version: 1",
        "version: 1\naudit: {sinks: [{redis_stream: ¦a}]}",
        "audit.sinks[0].redis_stream",
        "a redis store",
        "",
    ),
    ("version: 1", "version: 1\naudit: {chain: {key_env: ¦SHORT}}", "audit.chain.key_env", "31 bytes; at least 32", ""),
    # The environment.
    (
        "version: 1",
        "version: 1\nlisten: {host: ¦'${NUBMER}'}",
        "listen.host",
        "NUBMER is not set",
        "did you mean NUMBER?",
    ),
    ("version: 1", "version: 1\nlisten: {port: ¦'${NOT THERE}'}", "listen.port", "no reference to the environment", ""),
    ("version: 1", "version: 1\nlisten: {port: ¦'${S}'}", "listen.port", "must be a whole number", ""),
    ("version: 1", "version: 1\nlisten: {host: ¦'${EMPTY}'}", "listen.host", "must not be empty", ""),
    # YAML.
    ("version: 1", "version: 1\n¦version: 1", "version", "duplicate key", "first at line 1"),
    ("version: 1", "version: ¦!!python/name:os.system 1", "version", "has no meaning here", "leave it out"),
    (
        "rate_limits:\n",
        "rate_limits:\n  ¦7: {limit: 1, window: 1s}\n",
        "rate_limits.7",
        "a key must be text",
        'write "7"',
    ),
    ("version: 1", "version: 1\nlisten: {port: $¦{NUMBER}}", "", "expected", "is written in quotes"),
    ("version: 1", "version: 1\n¦\tlisten: {}", "", "cannot start any token", "indent by spaces"),
    ("version: 1", "version: ¦*nowhere", "", "undefined alias", ""),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[2]}: {case[1].strip()[:40]}")
def test_one_error_at_its_place(tmp_path: Path, case: Case) -> None:
    old, new, path, message, hint = case
    assert old in BASE
    marked = BASE.replace(old, new, 1)
    text = marked.replace("¦", "")
    (problem,) = problems(tmp_path, text)
    if "¦" in marked:
        assert (problem.line, problem.column) == place(marked, "¦")
    assert problem.path == path
    assert message in problem.message
    assert hint in problem.hint
    assert str(problem).startswith(f"{tmp_path}/p.yaml:{problem.line}:{problem.column}: error: ")


def test_all_errors_of_a_file_at_once(tmp_path: Path) -> None:
    text = BASE.replace("upstream: users", "upstream: usres").replace("secret_env: S", "secret_env: SHORT")
    text = text.replace("limit: 5", "limit: five").replace("mode", "x") + "extra: 1\nversion: 1\n"
    found = [(problem.line, problem.path) for problem in problems(tmp_path, text)]
    assert found == [
        (4, "identity.issuers.dev.keys.secret_env"),
        (9, "rate_limits.per-user.limit"),
        (10, "rate_limits.per-client.limit"),
        (16, "routes[0].upstream"),
        (20, "extra"),
        (21, "version"),
    ]


def test_a_problem_reads_as_a_compilers(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, BASE.replace("upstream: users", "upstream: usres"))
    assert str(problem) == (
        f"{tmp_path}/p.yaml:16:15: error: routes[0].upstream: no upstream has this name "
        "(found 'usres'; did you mean users?)"
    )


def test_values_of_the_environment_and_passwords_are_never_shown(tmp_path: Path) -> None:
    text = BASE.replace("version: 1", "version: 1\nlisten: {host: 1, port: '${S}'}\nstore: {url: 'redis://:pass@h/x'}")
    shown = "\n".join(map(str, problems(tmp_path, text)))
    assert "sss" not in shown
    assert "'${S}'" in shown
    assert "pass" not in shown


def test_a_key_with_control_characters_stays_on_one_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, BASE + '"a\\nb\\e[31m": 1\n')
    assert "\n" not in str(problem)
    assert "\x1b" not in str(problem)


@pytest.mark.parametrize(
    ("content", "place_", "message"),
    [
        (b"", (1, 1), "empty"),
        (b"# nothing\n", (1, 1), "empty"),
        (b"[]", (1, 1), "must be a mapping"),
        (b"7", (1, 1), "must be a mapping"),
        (b"a: 1\nb: \xff\n", (2, 4), "not UTF-8"),
        (b"version: 1\nb: \x01\n", (2, 4), "U+0001 is not allowed"),
        (b"version: 1\n--- \nversion: 1\n", (2, 1), "another document"),
        (b"[" * 5000, (1, 1), "deep"),
        (b"{a: " * 40 + b"1" + b"}" * 40, (1, 1), "deep"),
        (b"a: &a [*a]", (1, 1), "deep"),
        (b"a: &a\n  <<: *a\n", (1, 1), "merges itself"),
        (b"x" * ((1 << 20) + 1), (1, 1), "larger than"),
    ],
)
def test_what_is_no_policy_at_all(tmp_path: Path, content: bytes, place_: tuple[int, int], message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(PolicyError) as caught:
        load(path, {})
    (problem,) = caught.value.problems[:1]
    assert (problem.line, problem.column) == place_
    assert message in problem.message


def test_a_billion_laughs_ends_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (problem,) = problems(tmp_path, "\n".join(lines))
    assert "more than 100000 values" in problem.message


def test_merges_are_bounded_too(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12)]
    (problem,) = problems(tmp_path, "\n".join(lines))
    assert "more than 100000 values" in problem.message


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        load(tmp_path / "none.yaml", {})
    assert str(caught.value) == f"{tmp_path}/none.yaml:1:1: error: the policy can't be read: no such file or directory"


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "/"])
def test_paths_that_are_no_file(name: str) -> None:
    with pytest.raises(PolicyError):
        load(name, {})


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is a directory"):
        load(tmp_path, {})


def test_routes_without_any_issuer_must_say_that_they_are_public(tmp_path: Path) -> None:
    text = BASE[: BASE.index("identity")] + BASE[BASE.index("upstreams") :]
    first, second = problems(tmp_path, text)
    assert (first.path, second.path) == ("routes[0]", "routes[1]")
    assert "no issuer whose tokens it could accept" in first.message
    assert "auth: none" in first.hint


def test_several_issuers_need_a_default(tmp_path: Path) -> None:
    other = "    corp: {issuer: https://c.example, algorithms: ES256, keys: {jwks_url: 'https://c.example/'}}\n    dev:"
    (problem,) = problems(tmp_path, BASE.replace("    dev:", other))
    assert (problem.path, problem.hint) == ("identity", "add default, one or more of corp, dev")


def test_two_issuers_with_one_name_in_tokens(tmp_path: Path) -> None:
    other = (
        "    corp: {issuer: https://dev.example, algorithms: ES256, keys: {jwks_url: 'https://c.example/'}}\n    dev:"
    )
    (problem,) = problems(tmp_path, BASE.replace("    dev:", other).replace("identity:", "identity:\n  default: dev"))
    assert problem.path == "identity.issuers.dev.issuer"
    assert "corp is the same issuer" in problem.message


def test_a_client_limit_that_is_listed_twice(tmp_path: Path) -> None:
    text = BASE + "client_limits: [per-client, per-client]\n"
    (problem,) = problems(tmp_path, text)
    assert (problem.path, problem.message) == ("client_limits", "a limit is listed twice")
