"""The JSON Schema of the policy (draft 2020-12), made from the model: `python -m mitmgate.policy.schema` writes it."""

import json
import sys
from pathlib import Path
from typing import Any

from mitmgate.policy.model import Policy

FILE = Path(__file__).parents[3] / "policies" / "gateway.schema.json"

_REFERENCE = {"$ref": "#/$defs/FromEnvironment"}
_FROM_ENVIRONMENT = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}",
    "description": "A value from the environment: ${NAME}, or ${NAME:-default}.",
}
_VERBATIM = frozenset({"default", "enum", "const", "examples", "required", "pattern", "propertyNames"})
_NARROW = frozenset({"pattern", "const", "enum"})
_BOUNDS = {"ge": "minimum", "le": "maximum"}  # as pydantic leaves them behind a validator


def schema() -> dict[str, Any]:
    """Return the schema. Wherever a scalar may stand, a reference to the environment may stand too."""
    made = _open(Policy.model_json_schema())
    made["$defs"]["FromEnvironment"] = _FROM_ENVIRONMENT
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mitmgate policy"}
    result: dict[str, Any] = {**head, **{key: value for key, value in made.items() if key not in head}}
    return result


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
