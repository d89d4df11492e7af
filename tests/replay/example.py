"""Record the traffic of policies/example-tests again, after a change: `python -m tests.replay.example`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from ruamel.yaml import YAML

from tests.live.harness import ROOT
from tests.live.harness_http import request
from tests.live.harness_upstream import RecordingUpstream
from tests.replay.corpus import running

EXAMPLE = ROOT / "policies" / "example-tests"


def main() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    member = {**json.loads(ECAlgorithm.to_jwk(key.public_key())), "kid": "morning", "use": "sig"}
    made = YAML(typ="safe").load((EXAMPLE / "gateway.yaml").read_text())
    with TemporaryDirectory() as place, RecordingUpstream(port=9002):
        directory = Path(place)
        (directory / "jwks.json").write_text(json.dumps({"keys": [member]}))
        made["identity"]["issuers"]["corp"]["keys"] = {"jwks_file": "jwks.json"}
        (directory / "gateway.yaml").write_text(json.dumps(made))
        with running(directory / "gateway.yaml", EXAMPLE / "traffic.mitm", directory, ()) as (port, _, _):
            send(port, key)
    done = [sys.executable, "-m", "mitmgate", "replay", "traffic.mitm", "--policy", "gateway.yaml", "--write-expected"]
    subprocess.run(done, cwd=EXAMPLE, env={**os.environ, "PYTHONPATH": str(ROOT / "addons")}, check=True)


def send(port: int, key: ec.EllipticCurvePrivateKey) -> None:
    def token(subject: str, **claims: object) -> str:
        now = int(time.time())
        common = {"iss": "https://issuer.example", "aud": "api://orders", "iat": now, "exp": now + 300}
        return jwt.encode({**common, "sub": subject, **claims}, key, "ES256", headers={"kid": "morning"})

    alice = token("alice", scope="orders.read", email="alice@mail.example")
    root = token("root", scope="orders.read", roles=["admin"])
    for number in range(7):
        request(port, "GET", f"/api/v1/orders/{number}", token=alice, headers={"Cookie": "session=private"})
    request(port, "DELETE", "/api/v1/orders/7", token=root)
    request(port, "DELETE", "/api/v1/orders/7", token=token("bob", scope="orders.read"))
    request(port, "POST", "/api/v1/orders", token=root, body=b"x" * 100)
    request(port, "POST", "/api/v1/orders", token=root, body=b"x" * 2000)
    request(port, "GET", "/api/v1/orders", token=token("carol", scope="users.read"))
    request(port, "GET", "/api/v1/orders")
    request(port, "GET", "/status")
    request(port, "GET", "/health")


if __name__ == "__main__":
    main()
