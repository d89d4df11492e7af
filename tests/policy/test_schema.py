"""The JSON Schema: fresh, valid, and of one mind with the model about the policies that are here."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from mitmgate.policy.schema import FILE, text

POLICIES = sorted(FILE.parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(FILE.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def test_is_fresh() -> None:
    assert FILE.read_text() == text(), "run python -m mitmgate.policy.schema"


def test_the_example_is_valid(validator: Draft202012Validator) -> None:
    validator.validate(read(Path(__file__).with_name("policy-example.yaml")))


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.name)
def test_our_policies_are_valid(validator: Draft202012Validator, path: Path) -> None:
    validator.validate(read(path))


@pytest.mark.parametrize(
    ("location", "value"),
    [
        (["extra"], 1),
        (["version"], 2),
        (["version"], "${V}"),
        (["mode"], "off"),
        (["listen", "port"], 70000),
        (["listen", "port"], "80"),
        (["limits", "head_timeout"], 10),
        (["limits", "body"], "1MB"),
        (["store"], "redis"),
        (["routes"], []),
        (["routes", 0, "auth"], "nobody"),
        (["routes", 0, "upstream"], None),
        (["identity", "issuers", "dev", "algorithms"], ["none"]),
        (["cors", "web", "headers"], ["X_A"]),
    ],
)
def test_mistakes_are_not_valid(validator: Draft202012Validator, location: list[str | int], value: object) -> None:
    policy = read(Path(__file__).with_name("policy-example.yaml"))
    *parents, last = location
    inner = policy
    for step in parents:
        inner = inner[step]
    inner[last] = value
    assert not validator.is_valid(policy)


def test_defaults_and_units_are_as_a_policy_writes_them() -> None:
    definitions = json.loads(FILE.read_text())["$defs"]
    timeout = definitions["Limits"]["properties"]["head_timeout"]
    assert (timeout["default"], timeout["description"]) == (
        "10s",
        "How long a client may take to send a head (seconds).",
    )
    assert definitions["Limits"]["properties"]["body"]["default"] == "10MiB"
    every = [member for section in definitions.values() for member in section.get("properties", {}).values()]
    assert [member for member in every if "description" not in member and "$ref" not in str(member)] == []
