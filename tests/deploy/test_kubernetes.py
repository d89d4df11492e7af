"""The Kubernetes manifests: the API's own schemas take them, strictly, and what has to hold between them holds."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from ruamel.yaml import YAML

from mitmgate.policy.loader import load
from mitmgate.policy.units import parse_duration
from mitmgate.review import lint
from tests.live.harness import ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
NAMES = sorted(path.name for path in MANIFESTS.glob("*.yaml") if path.name != "kustomization.yaml")
VERSIONS = ("1.32", "1.34", "1.37")
validate = cast("Callable[..., str]", importlib.import_module("kubernetes_validate").validate)
ValidationError = cast("type[Exception]", importlib.import_module("kubernetes_validate").ValidationError)


def manifest(name: str) -> Any:
    return YAML(typ="safe").load(MANIFESTS / name)


def pod() -> Any:
    return manifest("deployment.yaml")["spec"]["template"]["spec"]


def container() -> Any:
    (found,) = pod()["containers"]
    return found


def option(name: str) -> str:
    words = container()["args"]
    return str(words[words.index(name) + 1])


@pytest.fixture
def policy_path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(manifest("policy.yaml")["data"]["policy.yaml"])
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_kubernetes_takes_it_without_an_unknown_field(name: str, version: str) -> None:
    assert validate(manifest(name), version, strict=True) == version


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("deployment.yaml", ("spec", "template", "spec"), "automountServiceAcountToken"),
        ("hpa.yaml", ("spec",), "maxReplica"),
        ("networkpolicy.yaml", ("spec",), "policyType"),
    ],
)
def test_a_misspelt_field_would_be_refused(name: str, path: tuple[str, ...], wrong: str) -> None:
    made = manifest(name)
    place = made
    for step in path:
        place = place[step]
    place[wrong] = 1
    with pytest.raises(ValidationError, match=wrong):
        validate(made, VERSIONS[-1], strict=True)


def test_every_manifest_but_the_example_is_applied() -> None:
    assert sorted(manifest("kustomization.yaml")["resources"]) == [name for name in NAMES if "example" not in name]


def test_the_policy_is_valid_with_what_the_secret_gives_it(policy_path: Path) -> None:
    loaded = load(policy_path, manifest("secret.example.yaml")["stringData"])
    assert lint(loaded) == ()
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert loaded.policy.admin is not None
    assert ports == {"http": loaded.policy.listen.port, "admin": loaded.policy.admin.port}


def test_a_pod_has_the_time_to_drain() -> None:
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod()["terminationGracePeriodSeconds"] >= before + parse_duration(option("--drain-timeout")) + 10


def test_a_pod_is_confined() -> None:
    mine = container()["securityContext"]
    assert mine == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False
    assert manifest("serviceaccount.yaml")["automountServiceAccountToken"] is False
    assert manifest("namespace.yaml")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_policy_is_mounted_so_that_a_change_arrives() -> None:
    mount = next(mount for mount in container()["volumeMounts"] if mount["name"] == "policy")
    assert "subPath" not in mount
    assert option("--policy") == f"{mount['mountPath']}/policy.yaml"
    volume = next(volume for volume in pod()["volumes"] if volume["name"] == "policy")
    assert volume["configMap"]["name"] == manifest("policy.yaml")["metadata"]["name"]


def test_what_the_policy_writes_is_on_a_volume(policy_path: Path) -> None:
    places = [mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")]
    audit = load(policy_path, manifest("secret.example.yaml")["stringData"]).policy.audit
    written = [getattr(sink, "file", None) or getattr(sink, "spill", None) for sink in audit.sinks]
    assert all(any(str(path).startswith(f"{place}/") for place in places) for path in written)


def test_everything_selects_the_same_pods() -> None:
    labels = manifest("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    assert manifest("deployment.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("service.yaml")["spec"]["selector"] == labels
    assert manifest("pdb.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"] == labels
    assert {tuple(c["labelSelector"]["matchLabels"].items()) for c in pod()["topologySpreadConstraints"]} == {
        tuple(labels.items())
    }
    target = manifest("hpa.yaml")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifest("deployment.yaml")["metadata"]["name"])


def test_an_eviction_leaves_gateways(policy_path: Path) -> None:
    assert manifest("hpa.yaml")["spec"]["minReplicas"] > manifest("pdb.yaml")["spec"]["maxUnavailable"]


def test_the_network_lets_through_what_the_policy_needs_and_nothing_more(policy_path: Path) -> None:
    policy = load(policy_path, manifest("secret.example.yaml")["stringData"]).policy
    assert policy.admin is not None
    rules = manifest("networkpolicy.yaml")["spec"]
    assert rules["policyTypes"] == ["Ingress", "Egress"]
    assert all("from" in rule and "ports" in rule for rule in rules["ingress"])
    assert all("to" in rule and "ports" in rule for rule in rules["egress"])
    ingress = [port["port"] for rule in rules["ingress"] for port in rule["ports"]]
    assert ingress == [policy.listen.port, policy.admin.port]
    egress = {port["port"] for rule in rules["egress"] for port in rule["ports"]}
    endpoints = {int(url.rpartition(":")[2]) for u in policy.upstreams.values() for url in u.endpoints}
    assert egress == endpoints | {53, 443, 6379}


def test_probes_ask_the_admin_listener() -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"]["port"] == "admin"
    assert container()["livenessProbe"]["httpGet"]["path"] == "/livez"  # a broken Redis must not restart the fleet
    assert container()["readinessProbe"]["httpGet"]["path"] == "/readyz"
