"""`mitmgate token`, as a user runs it: the token alone on stdout, mistakes in one message with status 2."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from mitmgate.core.principal import Principal
from mitmgate.core.rules import KeySource
from mitmgate.keys.keyset import SECRET_SIZES
from mitmgate.keys.minting import mint
from mitmgate.keys.ring import KeyRing
from mitmgate.policy.loader import load_snapshot
from tests.keys.signing import NOW, SECRET, issuer, private_key, public_pem

ISSUER = """
    {name}:
      issuer: https://{name}.example
      audience: [api://orders]
      algorithms: [{algorithm}]
      keys: {keys}
"""
POLICY = """
version: 1
identity:
  default: {default}
  issuers:{issuers}
upstreams:
  users: {{endpoints: ["http://127.0.0.1:9001"]}}
routes:
  - {{name: users, match: {{prefix: /users}}, upstream: users}}
"""


def policy(directory: Path, **kinds: str) -> Path:
    """Write a policy whose issuers have the kinds of keys given by name: "secret" or "public"."""
    (directory / "key.pem").write_bytes(public_pem(private_key("ES256")))
    keys = {"secret": ("HS256", "{secret_env: DEV_SECRET}"), "public": ("ES256", "{public_key_file: key.pem}")}
    issuers = "".join(
        ISSUER.format(name=name, algorithm=keys[kind][0], keys=keys[kind][1]) for name, kind in kinds.items()
    )
    path = directory / "policy.yaml"
    path.write_text(POLICY.format(default=next(iter(kinds)), issuers=issuers))
    return path


def run(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mitmgate", "token", *map(str, arguments)]
    environ = {**os.environ, "DEV_SECRET": SECRET.decode(), "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_policy_it_is_the_demos_wherever_one_stands(tmp_path: Path) -> None:
    done = run("--sub", "alice", cwd=tmp_path, MITMGATE_DEV_SECRET=SECRET.decode())
    assert (done.stderr, done.returncode) == ("", 0)
    claims = jwt.decode(done.stdout.strip(), SECRET, ["HS256"], audience="api://demo")
    assert (claims["sub"], claims["iss"]) == ("alice", "https://dev.example")


def test_the_token_is_all_of_stdout_and_the_gateway_takes_it(tmp_path: Path) -> None:
    path = policy(tmp_path, dev="secret", corp="public")
    done = run(
        *("--policy", path, "--sub", "alice", "--role", "admin", "--role", "user", "--scope", "users.read"),
        *(
            "--scope",
            "users.write",
            "--claim",
            "tenant=acme",
            "--claim",
            "level=3",
            "--claim",
            'list=["a"]',
            "--ttl",
            "90s",
        ),
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("\n") == 1
    snapshot = load_snapshot(path, {"DEV_SECRET": SECRET.decode()})
    ring = KeyRing()
    ring.configure(snapshot.issuers)
    result = ring.authenticate(snapshot.issuers, ("dev",), done.stdout.strip().encode(), time.time())
    assert isinstance(result, Principal)
    assert (result.subject, result.issuer, result.roles) == ("alice", "dev", ("admin", "user"))
    assert result.scopes == {"users.read", "users.write"}
    assert {name: result.claims[name] for name in ("tenant", "level", "list")} == {
        "tenant": "acme",
        "level": 3,
        "list": ["a"],
    }
    assert 0 < result.expires - time.time() <= 90


@pytest.mark.parametrize(
    ("kinds", "arguments", "says"),
    [
        ({"corp": "public"}, [], "no issuer has a secret"),
        ({"corp": "public"}, ["--issuer", "corp"], "signed by https://corp.example; the gateway has no key for it"),
        ({"a": "secret", "b": "secret"}, [], "several issuers have a secret; --issuer a or b"),
        ({"dev": "secret"}, ["--issuer", "deb"], "no issuer 'deb'; issuers: dev"),
        ({"dev": "secret"}, ["--ttl", "5"], "--ttl 5: must be a duration; write 5s"),
        ({"dev": "secret"}, ["--claim", "tenant"], "--claim tenant: must be NAME=VALUE"),
    ],
)
def test_mistakes(tmp_path: Path, kinds: dict[str, str], arguments: list[str], says: str) -> None:
    done = run("--policy", policy(tmp_path, **kinds), "--sub", "alice", *arguments)
    assert (done.stdout, done.returncode) == ("", 2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_policy_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("version: 2\n")
    done = run("--policy", path, "--sub", "alice")
    assert (done.stdout, done.returncode) == ("", 2)
    assert f"{path}:1:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_subject_is_needed(tmp_path: Path) -> None:
    done = run("--policy", policy(tmp_path, dev="secret"))
    assert (done.stdout, done.returncode) == ("", 2)
    assert "--sub" in done.stderr


@pytest.mark.parametrize("algorithm", SECRET_SIZES)
@pytest.mark.parametrize(
    "members",
    [
        {},
        {"token_type": "at+jwt"},
        {"audience": ()},
        {"subject": ("user",), "roles": ("groups",), "scopes": ("scp",)},
        {"max_lifetime": 60.0},
    ],
)
def test_the_policy_that_a_token_was_minted_for_takes_it(algorithm: str, members: dict[str, Any]) -> None:
    trusted = issuer(KeySource("secret", SECRET), algorithm, **members)
    minted = mint(trusted, "alice", now=NOW + 0.9, lifetime=60.0, roles=["admin"], scopes=["a", "b"])
    ring, named = KeyRing(), {"corp": trusted}
    ring.configure(named)
    result = ring.authenticate(named, ("corp",), minted.encode(), NOW + 1)
    assert isinstance(result, Principal)
    assert (result.subject, result.roles, result.scopes) == ("alice", ("admin",), frozenset({"a", "b"}))
    assert result.token_id is not None


def test_claims_that_are_given_win() -> None:
    minted = mint(issuer(KeySource("secret", SECRET), "HS256"), "alice", now=NOW, lifetime=60.0, claims={"sub": "bob"})
    assert jwt.decode(minted, options={"verify_signature": False})["sub"] == "bob"


@pytest.mark.parametrize(
    ("trusted", "says"),
    [
        (issuer(KeySource("pem", b""), "ES256"), "has no key"),
        (issuer(KeySource("jwks_url"), "ES256"), "has no key"),
        (issuer(KeySource("secret", SECRET), "HS256", max_lifetime=30.0), "at most 30 seconds"),
    ],
)
def test_what_can_not_be_minted(trusted: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mint(trusted, "alice", now=NOW, lifetime=60.0)
