"""No message about a policy shows what the environment says, nor what a member that may hold a credential says."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mitmgate.policy.document import is_secret, without_userinfo
from mitmgate.policy.loader import PolicyError, load
from mitmgate.policy.model import Policy, RedisStore, ResponseHeaders
from mitmgate.policy.model_routes import Rewrite
from mitmgate.policy.problem import Location
from mitmgate.review import lint

CANARY = "Kanarienvogel"
PIECES = ("kanarien", "vogel", "918273645")
VALUES = (
    CANARY,
    "",
    "918273645",
    "918273645d",
    "-918273645.5",
    f"redis://:Kanarien/vo#gel@{CANARY}:6379/0",
    f"https://user:Kanarien?vo/gel@h/{CANARY}?token={CANARY}",
    f"user:{CANARY}@host:6379",
    f"/kanarien/../{CANARY}//x",
    f"{{{CANARY}}}",
    f"{{claim:{CANARY}}} }}",
    f"Kanarien == {CANARY}(",
    f"request.{CANARY} == 1",
    f"header:Kanarien_{CANARY}",
    f"claim:{CANARY}",
    f"{CANARY}:{CANARY}:80",
    f"{CANARY} {CANARY}",
    f"${{{CANARY}}}",
)
NAMES = frozenset({"name", "upstream"})  # shown with every event and metric: no place for a secret
EXAMPLE: dict[str, Any] = {
    "version": 1,
    "mode": "enforce",
    "listen": {"host": "127.0.0.1", "port": 8080, "tls": {"certificate": "c.pem", "key": "k.pem"}},
    "endpoints": {"health": "/health"},
    "trusted_proxies": ["10.0.0.0/8"],
    "limits": {"head": "32KiB", "idle_timeout": "75s", "connections": 7},
    "store": {"url": "redis://:pw@h:6379/0", "timeout": "100ms"},
    "identity": {
        "default": "dev",
        "issuers": {
            "dev": {
                "issuer": "https://dev.example",
                "audience": ["api"],
                "algorithms": ["HS256"],
                "keys": {"secret_env": "MITMGATE_DEV_SECRET"},
            },
            "corp": {
                "issuer": "https://corp.example",
                "algorithms": ["ES256"],
                "keys": {"jwks_url": "https://corp.example/jwks.json", "refresh": "5m"},
            },
        },
        "forward": {"subject": "X-User-ID", "assertion": {"header": "X-A", "key_file": "a.pem", "lifetime": "30s"}},
    },
    "upstreams": {"users": {"endpoints": ["http://127.0.0.1:9001"], "host": "preserve", "circuit": {"failures": 5}}},
    "rate_limits": {"per": {"limit": 5, "window": "1s", "key": ["principal", "claim:tenant"], "cost": 6}},
    "cors": {"web": {"origins": ["https://app.example"], "methods": ["GET"], "headers": ["X-H"], "credentials": True}},
    "client_limits": ["per"],
    "routes": [
        {
            "name": "users",
            "match": {"prefix": "/users", "hosts": ["api.example"], "methods": ["GET"]},
            "upstream": "users",
            "rewrite": {"set": {"X-Key": "value"}, "remove": ["X-Gone"], "replace_prefix": "/v2"},
            "require": {"scopes_all": ["users.read"], "claims": {"tenant": ["a"]}, "when": "request.method == 'GET'"},
            "rate_limits": ["per"],
            "cors": "web",
        },
        {
            "name": "public",
            "match": {"exact": "/p"},
            "upstream": "users",
            "auth": "none",
            "rewrite": {"set": {"X-Who": "{subject}"}},
            "rate_limits": ["per"],
        },
    ],
    "response_headers": {"set": {"X-Key": "value"}},
    "audit": {"sinks": [{"file": "audit.jsonl", "rotate": "1MiB"}], "chain": {"key_env": "MITMGATE_AUDIT_KEY"}},
}


def leaves(value: object, at: Location = ()) -> Iterator[Location]:
    """Yield the place of every scalar."""
    if isinstance(value, dict):
        for name, member in value.items():
            yield from leaves(member, (*at, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*at, index))
    else:
        yield at


PLACES = [place for place in leaves(EXAMPLE) if place[-1] not in NAMES]


def some_of(values: tuple[str, ...], place: Location) -> list[str]:
    """Choose a sixth of the values for a place: over all places each comes again and again."""
    return list(values[PLACES.index(place) % 6 :: 6])


def put(policy: Any, place: Location, value: object) -> dict[str, Any]:
    """Return the policy with another value at one place."""
    changed: dict[str, Any] = deepcopy(policy)
    inner: Any = changed
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return changed


def told(path: Path, policy: object, environ: dict[str, str]) -> str:
    """Return every word that is said of a policy, in lower case: errors, or warnings."""
    path.write_text(json.dumps(policy) if isinstance(policy, dict) else str(policy))
    try:
        loaded = load(path, environ)
    except PolicyError as error:
        return "\n".join([str(error), *(json.dumps(problem.as_dict()) for problem in error.problems)]).lower()
    return "\n".join(map(str, lint(loaded))).lower()


def assert_hidden(said: str, place: object, value: str) -> None:
    shown = [piece for piece in PIECES if piece in said]
    assert not shown, f"{place} with {value!r} shows {shown}:\n{said}"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_what_the_environment_says_is_in_no_message(tmp_path: Path, place: Location) -> None:
    policy = put(EXAMPLE, place, "${BIRD}")
    for value in some_of(VALUES, place):
        assert_hidden(told(tmp_path / "p.yaml", policy, {"BIRD": value, "MITMGATE_DEV_SECRET": "s" * 32}), place, value)


@pytest.mark.parametrize("value", VALUES)
def test_what_the_environment_says_everywhere_is_in_no_message(tmp_path: Path, value: str) -> None:
    policy = EXAMPLE
    for place in PLACES:
        policy = put(policy, place, "${BIRD}")
    assert_hidden(told(tmp_path / "p.yaml", policy, {"BIRD": value}), "everywhere", value)


SECRETS: list[Location] = [
    ("store",),
    ("store", "url"),
    ("response_headers", "set", "X-Key"),
    ("routes", 0, "rewrite", "set", "X-Key"),
]


@pytest.mark.parametrize("place", SECRETS, ids=lambda place: ".".join(map(str, place)))
def test_what_a_secret_member_says_is_in_no_message(tmp_path: Path, place: Location) -> None:
    for value in VALUES:
        if value.startswith("${"):
            continue  # the name of a variable that is not set is shown
        said = told(tmp_path / "p.yaml", put(EXAMPLE, place, value), {"MITMGATE_DEV_SECRET": "s" * 32})
        assert_hidden(said, place, value)


PASSWORDS = ("pa/ss", "pa@ss", "p#a?s", "pa ss", "p%61ss", "p[a]ss", ":@/", "${", "ü/é", "a\\b", "'\"", "80/x")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_the_user_information_of_a_url_is_hidden_wherever_it_stands(tmp_path: Path, place: Location) -> None:
    for password in some_of(PASSWORDS, place):
        for value in (f"redis://Kanarien:vogel{password}vogel@cache.internal/x/y", f"http://Kanarien:{password}@h:80"):
            said = told(tmp_path / "p.yaml", put(EXAMPLE, place, value), {"MITMGATE_DEV_SECRET": "s" * 32})
            assert_hidden(said, place, value)


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\nstore: {url: *Kanarienvogel}\n",
        "version: 1\nstore: {url: &Kanarienvogel &Kanarien x}\n",
        "version: 1\nstore: {url: !Kanarienvogel x}\n",
        "version: 1\nstore: {url: !Kanarienvogel!vogel x}\n",
        "version: 1\nstore: {url:redis://:Kanarien/vogel@h:6379/0}\n",
        "version: 1\nredis://:Kanarien/vogel@h:6379/0: 1\n",
        'version: 1\nstore: {url: "redis://:Kanarien\\vogel@h:6379/0"}\n',
        "version: 1\nstore: {url: 'redis://:Kanarien'vogel@h:6379/0'}\n",
        "version: 1\nstore: {url: redis://:${KANARIENVOGEL@h:6379/0}\n",
        "version: 1\nstore: {url: 'redis://:a${Kanarien vogel}@h:6379/0'}\n",
    ],
)
def test_a_secret_that_breaks_the_file_itself_is_in_no_message(tmp_path: Path, text: str) -> None:
    said = told(tmp_path / "p.yaml", text, {})
    assert said
    assert_hidden(said, "the file", text)


@pytest.mark.parametrize(
    "secret", ["Kanarienvogel-918273645+/=", "kanarienvogel0123456789abcdef918273645", "918273645"]
)
@pytest.mark.parametrize(
    "member", [("identity", "issuers", "dev", "keys", "secret_env"), ("audit", "chain", "key_env")]
)
def test_a_secret_in_the_place_of_its_variables_name_is_in_no_message(
    tmp_path: Path, member: Location, secret: str
) -> None:
    said = told(tmp_path / "p.yaml", put(EXAMPLE, member, secret), {"MITMGATE_DEV_SECRET": "s" * 32})
    assert "names no environment variable" in said
    assert_hidden(said, member, secret)


def test_the_name_of_a_missing_variable_is_shown(tmp_path: Path) -> None:
    assert "the environment variable mitmgate_dev_secret is not set" in told(tmp_path / "p.yaml", EXAMPLE, {})


def test_every_member_that_may_hold_a_credential_is_listed() -> None:
    """Header values and the store's URL: another member of such a type has to be listed, too."""
    holders = {
        (model.__name__, name)
        for model in (Policy, RedisStore, ResponseHeaders, Rewrite)
        for name in model.model_fields
    }
    assert {("RedisStore", "url"), ("ResponseHeaders", "set"), ("Rewrite", "set")} <= holders
    assert is_secret(("store", "url")) and is_secret(("response_headers", "set", "X-Key"))
    assert is_secret(("routes", 3, "rewrite", "set", "X-Key")) and not is_secret(("store", "timeout"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:a/b@c@h:6379/0", "redis://***@h:6379/0"),
        ("'redis://u:p@h'", "'redis://***@h'"),
        ("'u:p@h'", "'***@h'"),
        ("u:p@h", "***@h"),
        ("someone@example.org", "someone@example.org"),
        ("http://h/a@b", "http://***@b"),
    ],
)
def test_user_information(text: str, shown: str) -> None:
    assert without_userinfo(text) == shown
