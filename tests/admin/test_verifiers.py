"""docs/assertion.md: the verifiers as they are printed believe the gateway, and nobody and nothing else."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.admin.asking import AdminGateway
from tests.admin.test_assertion import HEADER, published, signing
from tests.live.harness import ROOT, mint
from tests.live.harness_upstream import RecordingUpstream

PAGE = (ROOT / "docs/assertion.md").read_text()
PYTHON = """
import json, sys
for line in sys.stdin:
    try:
        print(json.dumps(who_asks(*json.loads(line))))
    except Exception as error:
        print(json.dumps(str(error)))
"""
NODE = """
import { readFileSync } from "node:fs";
for (const line of readFileSync(0, "utf8").trim().split("\\n")) {
  let said;
  try { said = whoAsks(...JSON.parse(line)); } catch (error) { said = String(error); }
  console.log(JSON.stringify(said));
}
"""
LANGUAGES = {"python": (sys.executable, "py", PYTHON), "js": (shutil.which("node"), "mjs", NODE)}
"""Those that are there are asked; Go's libraries are not, so its lines are only read."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AdminGateway, Path, str, dict[str, str]]]:
    directory = tmp_path_factory.mktemp("verifiers")
    with RecordingUpstream() as upstream:
        made = signing(directory, upstream)
        made["identity"]["issuers"]["dev"]["default_role"] = "user"
        with AdminGateway(directory, made, "serve") as gateway:
            (key,) = published(gateway)
            token = mint("bob", roles=None, scope="orders.write orders.read")
            assert gateway.get("/api/v1/orders/7?page=2", token=token).status == 200
            seen = upstream.last()
            assert seen.one("x-user-role") == "user", "the default"
            assertion = seen.one(HEADER)
            assert assertion is not None
            yield gateway, directory, assertion, key


def test_the_page_has_three_languages() -> None:
    assert re.findall(r"```([a-z]+)\n", PAGE) == ["python", "js", "go"]
    words = [
        "WithValidMethods",
        "WithIssuer",
        "WithAudience",
        "WithExpirationRequired",
        "Keyfunc",
        '["htm"]',
        '["path"]',
    ]
    for word in words:
        assert word in PAGE.partition("```go")[2]


@pytest.mark.parametrize("language", [name for name, (program, _, _) in LANGUAGES.items() if program])
def test_a_verifier(language: str, asked: tuple[AdminGateway, Path, str, dict[str, str]]) -> None:
    gateway, directory, assertion, key = asked
    program, suffix, more = LANGUAGES[language]
    (code,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    file = directory / f"verifier.{suffix}"
    file.write_text(code.replace("127.0.0.1:8090", f"127.0.0.1:{gateway.admin_port}") + more)
    own = (directory / "assertion.pem").read_text()
    header = {name: value for name, value in jwt.get_unverified_header(assertion).items() if name != "alg"}
    claims = jwt.decode(assertion, options={"verify_signature": False})

    def signed(key: Any = own, algorithm: str = "ES256", head: dict[str, Any] | None = None, **changes: Any) -> str:
        return jwt.encode(claims | changes, key, algorithm, headers=header | (head or {}))

    lies = {
        "another method": (assertion, "POST", "/7"),
        "another path": (assertion, "GET", "/8"),
        "another key": (signed(ec.generate_private_key(ec.SECP256R1())), "GET", "/7"),
        "another audience": (signed(aud="users"), "GET", "/7"),
        "another issuer": (signed(iss="other"), "GET", "/7"),
        "another type": (signed(head={"typ": "JWT"}), "GET", "/7"),
        "an unknown key": (signed(head={"kid": "other"}), "GET", "/7"),
        "too late": (signed(exp=int(time.time()) - 60), "GET", "/7"),
        "without an end": (signed(exp=None), "GET", "/7"),
        "without a signature": (assertion.rpartition(".")[0] + ".", "GET", "/7"),
        "an algorithm of its own": (signed(key["x"].encode(), "HS256"), "GET", "/7"),
        "no assertion": ("x", "GET", "/7"),
    }
    questions = [(assertion, "GET", "/7"), (signed(), "GET", "/7"), *lies.values()]
    text = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(
        [str(program), str(file)], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    good, again, *refused = map(json.loads, done.stdout.splitlines())
    assert good == again == claims
    assert (good["sub"], good["sub_iss"], good["roles"]) == ("bob", "dev", ["user"])
    assert good["scope"] == "orders.read orders.write"
    assert len(refused) == len(lies)
    assert {name for name, said in zip(lies, refused, strict=True) if not isinstance(said, str)} == set()
