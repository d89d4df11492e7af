"""A policy in a mounted ConfigMap, as the kubelet lays it: links to a directory that is swapped as a whole."""

import json
import shutil
from pathlib import Path
from typing import Any

from tests.live.harness import Gateway, mint, policy, route
from tests.live.harness_http import wait_for
from tests.live.harness_upstream import RecordingUpstream


class Volume:
    """A ConfigMap's volume: policy.yaml is a link to ..data/policy.yaml, and ..data one to the directory in force."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir()
        self._number = 0

    @property
    def policy(self) -> Path:
        """Where the gateway finds the policy."""
        return self.directory / "policy.yaml"

    def put(self, made: dict[str, Any]) -> None:
        """Write a new directory, swing ..data to it by a rename, remove the old one."""
        self._number += 1
        old = self.directory / f"..{self._number - 1}"
        new = self.directory / f"..{self._number}"
        new.mkdir()
        (new / "policy.yaml").write_text(json.dumps(made))
        (self.directory / "..data_tmp").symlink_to(new.name)
        (self.directory / "..data_tmp").rename(self.directory / "..data")
        if not self.policy.is_symlink():
            self.policy.symlink_to("..data/policy.yaml")
        if old.exists():
            shutil.rmtree(old)


def events(path: Path, kind: str) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_swapped_configmap_takes_effect_and_a_bad_one_does_not(tmp_path: Path, upstream: RecordingUpstream) -> None:
    volume, audit = Volume(tmp_path / "etc"), tmp_path / "audit.jsonl"
    volume.put(policy(tmp_path, upstream))
    with Gateway(volume.policy) as gateway:
        assert gateway.get("/public").status == 200
        volume.put(route(policy(tmp_path, upstream), "public", networks={"deny": ["127.0.0.0/8"]}))
        wait_for(lambda: gateway.get("/public").status == 403, "the swapped policy to decide")
        wait_for(lambda: len(events(audit, "policy-reloaded")) == 1, "the event of the reload")
        volume.put(route(policy(tmp_path, upstream), "public", upstream="nowhere"))
        wait_for(lambda: len(events(audit, "policy-rejected")) == 1, "the event of the rejection")
        assert gateway.get("/public").status == 403
        assert gateway.get("/api/v1/users", token=mint()).status == 200
        volume.put(policy(tmp_path, upstream))
        wait_for(lambda: gateway.get("/public").status == 200, "the mended policy to decide")
