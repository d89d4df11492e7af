"""The JSON Schema: fresh, valid, and of one mind with the model about the policies that are here."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from mitmgate.policy.checks import check
from mitmgate.policy.document import Document
from mitmgate.policy.schema import FILE, text
from mitmgate.policy.validation import validate
from tests.command_line import command

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


def test_the_command_prints_it_with_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = command(capsys, "schema")
    assert (status, printed) == (0, FILE.read_text())
    assert json.loads(printed)["$id"] == "urn:mitmgate:schema:policy:1"


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


def sections(schema: Any, value: Any, node: Any, location: tuple[str | int, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield each place of a policy where a section stands, with the section's schema."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for choice in node.get("anyOf", []) + node.get("oneOf", []):
        yield from sections(schema, value, choice, location)
    if isinstance(value, dict) and "properties" in node and set(node.get("required", ())) <= set(value):
        yield location, node
        for name, member in node["properties"].items():
            if name in value:
                yield from sections(schema, value[name], member, (*location, name))
    elif isinstance(value, dict):
        for inner in node.get("patternProperties", {}).values():
            for name, member in value.items():
                yield from sections(schema, member, inner, (*location, name))
    elif isinstance(value, list) and isinstance(node.get("items"), dict):
        for index, member in enumerate(value):
            yield from sections(schema, member, node["items"], (*location, index))


ALONE = {
    ("Keys", "jwks_url"): "https://issuer.example/",
    ("Match", "prefix"): "/",
    ("RateLimit", "limit"): 100_000,
    ("Introspection", "client_secret_env"): "CLIENT_SECRET",
}
"""Members without which a section says nothing, though none of them is required."""


def test_every_default_of_the_schema_is_accepted(validator: Draft202012Validator) -> None:
    """In each section of the example, with its required members alone: the member, written with its default."""
    schema = json.loads(FILE.read_text())
    example = read(Path(__file__).with_name("policy-example.yaml"))
    example["stages"] = {"guard": {"use": "guard.py:Guard", "after": "routing"}}
    example["identity"]["resources"] = [{"resource": "https://api.example"}]
    example["revocation"]["events"] = {"audience": "https://gateway.example"}
    example["identity"]["certificates"] = {"spiffe": "prod.example"}
    example["audit"]["anchors"] = {"file": "elsewhere/anchors.jsonl", "key_env": "ANCHORS"}
    example["audit"]["sinks"] += [{"syslog": "unix:/dev/log"}]
    example["api_keys"] = {"file": "keys.jsonl"}
    example["decision_services"] = {"opa": {"protocol": "opa", "url": "http://127.0.0.1:8181/v1/data/gateway"}}
    example["identity"]["browsers"] = {"cookie": "__Host-token", "tickets": {"secret_env": "TICKETS"}}
    example["identity"]["proofs"] = {"lifetime": "60s"}
    example["admin"] = {"tls": {"certificate": "admin.pem", "key": "admin.key"}}
    asked = {"url": "https://issuer.example/introspect", "client_id": "gateway", "client_secret_env": "CLIENT_SECRET"}
    example["identity"]["issuers"]["corp"]["introspection"] = asked
    example["routes"][0]["openapi"] = {"document": "api.yaml"}
    tried: set[tuple[str, str]] = set()
    for location, node in sections(schema, example, schema, ()):
        name = next((name for name, section in schema["$defs"].items() if section is node), "Policy")
        for member, described in node["properties"].items():
            if "default" not in described or (name, member) in tried:
                continue
            tried.add((name, member))
            policy = copy.deepcopy(example)
            inner = policy
            for step in location:
                inner = inner[step]
            kept = {key: inner[key] for key in node.get("required", ())}
            kept |= {key: value for (section, key), value in ALONE.items() if section == name}
            inner.clear()
            inner |= {member: described["default"], **kept}
            validator.validate(policy)
            document = Document("policy.yaml", policy)
            problems = [*validate(document)[1], *check(document)]
            at = (*location, member)
            assert [str(problem) for problem in problems if problem.location[: len(at)] == at] == []
    every = {
        (name, member)
        for name, section in {**schema["$defs"], "Policy": schema}.items()
        for member, described in section.get("properties", {}).items()
        if "default" in described
    }
    assert every - tried == set()
    assert len(every) > 80


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
