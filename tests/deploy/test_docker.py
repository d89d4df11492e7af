"""The image and the compose file, as far as they can be looked at without a container engine.

deploy/README.md says what was executed by hand, and what was not executed at all.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mitmgate.policy.loader import load
from mitmgate.policy.units import parse_duration
from mitmgate.review import lint
from tests.deploy.test_systemd import DRAIN
from tests.live.harness import ROOT, Gateway, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = DOCKER / "Dockerfile"
COMPOSE = DOCKER / "compose.yaml"
TOOLS = Path(sys.executable).parent
SECRETS = {
    "MITMGATE_DEV_SECRET": "a-development-secret-of-more-than-256-bits",
    "MITMGATE_AUDIT_KEY": "a-key-of-the-audit-chain-for-tests-alone",
    "REDIS_PASSWORD": "a-password-for-tests",
}


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, each with its words, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = filter(None, re.sub(r"\\\n\s*", "", text).split("\n"))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def said(tool: str, *words: str) -> str:
    done = subprocess.run([str(TOOLS / tool), *words], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def compose() -> Any:
    return YAML(typ="safe").load(COMPOSE)


def test_hadolint_has_nothing_to_say() -> None:
    assert said("hadolint", "--failure-threshold", "style", str(DOCKERFILE)) == ""


def test_hadolint_would_say_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace("python:3.13-slim", "python:latest"))
    assert "DL3007" in said("hadolint", str(tmp_path / "Dockerfile"))


def test_the_image_is_made_of_what_is_in_the_repository() -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().split("\n")
    sources = [words.split()[0] for name, words in instructions() if name == "COPY" and "--from" not in words]
    assert sources == [".lock/runtime.txt", "addons", "policies"]
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_the_final_stage_installs_nothing_and_runs_as_nobody() -> None:
    last = [number for number, (name, _) in enumerate(instructions()) if name == "FROM"][-1]
    final = instructions()[last:]
    assert not [words for name, words in final if name == "RUN" and re.search(r"apt|pip|gcc|curl", words)]
    assert dict(final)["USER"] == "65532:65532"
    assert dict(final)["STOPSIGNAL"] == "SIGTERM"


def test_the_health_check_of_the_image_tells_a_gateway_from_none(tmp_path: Path, upstream: RecordingUpstream) -> None:
    words = dict(instructions())["HEALTHCHECK"]
    command = json.loads(words[words.index("[") :])

    def check(port: int) -> int:
        mine = [sys.executable, *(word.replace("8080", str(port)) for word in command[1:])]
        return subprocess.run(mine, capture_output=True, check=False).returncode

    with Gateway(write_policy(tmp_path, policy(tmp_path, upstream))) as gateway:
        assert check(gateway.port) == 0
    assert check(gateway.port) == 1


def test_compose_accepts_the_file() -> None:
    assert said("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)) == ""


def test_compose_would_refuse_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("read_only: true", "readonly: true"))
    assert "'readonly' was unexpected" in said(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(tmp_path / "compose.yaml")
    )


def test_the_policy_of_compose_is_valid_with_what_compose_gives_it() -> None:
    given = compose()["services"]["gateway"]["environment"]
    environment = {name: re.sub(r"\$\{(\w+)[^}]*\}", lambda m: SECRETS[m[1]], text) for name, text in given.items()}
    loaded = load(DOCKER / "policy.yaml", environment)
    assert lint(loaded) == ()
    services = compose()["services"]
    for upstream in loaded.policy.upstreams.values():
        for endpoint in upstream.endpoints:
            assert re.fullmatch(r"http://(\w+):80", endpoint)[1] in services  # type: ignore[index]


def test_what_compose_trusts_is_its_own_edge() -> None:
    (address,) = re.findall(r"trusted_proxies: .*:-([\d.]+)/32", (DOCKER / "policy.yaml").read_text())
    assert compose()["services"]["edge"]["networks"]["front"]["ipv4_address"] == address


@pytest.mark.parametrize("name", ["gateway", "redis", "users", "orders", "edge"])
def test_every_container_is_confined(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_a_stop_takes_longer_than_a_drain() -> None:
    assert parse_duration(compose()["services"]["gateway"]["stop_grace_period"]) >= DRAIN + 10


def test_redis_never_forgets_a_counter_that_counts() -> None:
    command = " ".join(compose()["services"]["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
