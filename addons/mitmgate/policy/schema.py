"""The JSON Schema of the policy (draft 2020-12), made from the model: `python -m mitmgate.policy.schema` writes it."""

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mitmgate.policy.declared import policy_model
from mitmgate.policy.problem import Code
from mitmgate.policy.section import Section

FILE = Path(__file__).parents[3] / "policies" / "gateway.schema.json"

_REFERENCE = {"$ref": "#/$defs/FromEnvironment"}
_FROM_ENVIRONMENT = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
    "description": "A value from the environment: ${NAME}, or ${NAME:-default}.",
}
_ACKNOWLEDGE = {
    "type": "object",
    "propertyNames": {"enum": [code.value for code in Code if code is not Code.NOTHING_TO_ACKNOWLEDGE]},
    "additionalProperties": {"type": "string"},
    "default": {},
}
_VERBATIM = frozenset({"default", "enum", "const", "examples", "required", "pattern", "propertyNames"})
_NARROW = frozenset({"pattern", "const", "enum"})
_BOUNDS = {"ge": "minimum", "le": "maximum"}  # as pydantic leaves them behind a validator


def schema() -> dict[str, Any]:
    """Return the schema. Wherever a scalar may stand, a reference to the environment may stand too."""
    made = policy_model().model_json_schema()
    descriptions = _descriptions()
    for name, section in (("Policy", made), *made["$defs"].items()):
        for member, value in section.get("properties", {}).items():
            if member in descriptions[name] and "description" not in value:
                described = {"description": descriptions[name][member], **value}
                section["properties"][member] = dict(sorted(described.items()))
    made = _open(made)
    acknowledge = {**_ACKNOWLEDGE, "description": descriptions["Policy"]["acknowledge"]}
    made["$defs"] |= {"FromEnvironment": _FROM_ENVIRONMENT, "Acknowledge": acknowledge}
    for section in (made, *made["$defs"].values()):
        _complete(section.get("properties", {}), made["$defs"])
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:mitmgate:schema:policy:1",
        "title": "mitmgate policy",
    }
    result: dict[str, Any] = {**head, **{key: value for key, value in made.items() if key not in head}}
    return result


def _descriptions() -> dict[str, dict[str, str]]:
    """Return the docstrings of members, their own and inherited ones, by the name of the section."""
    found: dict[str, dict[str, str]] = {}
    for section in _subsections(Section):
        members = found.setdefault(section.__name__, {})
        for base in reversed(section.__mro__):
            if issubclass(base, Section):
                members |= _docstrings(base.__module__).get(base.__qualname__, {})
    return found


def _subsections(section: type[Section]) -> Iterator[type[Section]]:
    for one in section.__subclasses__():
        yield one
        yield from _subsections(one)


@cache
def _docstrings(module: str) -> dict[str, dict[str, str]]:
    """Read a module's source: the string below each annotated member, by class."""
    made: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            texts = made[node.name] = {}
            for member, below in zip(node.body, node.body[1:], strict=False):
                match member, below:
                    case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(text))):
                        texts[name] = inspect.cleandoc(text)
    return made


def _complete(members: dict[str, Any], sections: dict[str, Any]) -> None:
    """Say what the model's own schema does not: a section's default as a policy writes it, with its units."""
    if "acknowledge" in members:
        members["acknowledge"] = {"$ref": "#/$defs/Acknowledge"}
    for member in members.values():
        section = sections.get(str(member.get("$ref", "")).rpartition("/")[2])
        if section is not None and "properties" in section and "default" in member:
            member["default"] = _default(section, sections)


def _default(section: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    """Return a section whose members all have their defaults."""
    made = {}
    for name, member in section["properties"].items():
        inner = sections.get(str(member.get("$ref", "")).rpartition("/")[2], {})
        if "default" in member and name != "acknowledge":
            made[name] = _default(inner, sections) if "properties" in inner else member["default"]
    return made


def _open(node: Any) -> Any:
    """Let a reference stand for a scalar that is not any text; drop titles, which say nothing."""
    if isinstance(node, list):
        return [_open(item) for item in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    key: str
    for key, value in node.items():
        if key in {"properties", "$defs"}:
            made[key] = {name: _open(member) for name, member in value.items()}
        elif key in _VERBATIM:
            made[key] = value
        elif key in _BOUNDS:
            made[_BOUNDS[key]] = value
        elif key != "title":
            made[key] = _open(value)
    number = made.get("type") in ("integer", "number", "boolean") and made.get("const") != 1  # but not the version
    narrow = made.get("type") == "string" and _NARROW & made.keys()
    if not number and not narrow:
        return made
    outer = {key: made.pop(key) for key in ("description", "default") if key in made}
    return {**outer, "anyOf": [made, _REFERENCE]}


def text() -> str:
    """Return the schema as the file has it."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"wrote {FILE}\n")
