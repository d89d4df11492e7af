"""The schema of audit events, held to what a gateway has written."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from mitmgate.audit.schema import schema

_MOST = 4 << 20  # bytes of a file that are looked at


def strict_schema() -> dict[str, Any]:
    """Return the schema, with no member allowed that it does not name."""
    made = schema()
    for kind in made["$defs"].values():
        kind["additionalProperties"] = False
    return made


@cache
def _validator() -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(strict_schema())


def problems(event: dict[str, Any]) -> list[str]:
    """Say what is wrong with an event."""
    return [f"{error.message} in {event}" for error in _validator().iter_errors(event)]


def strange_events(folder: Path) -> list[str]:
    """Say what is wrong with the events of a folder's audit files: one of each kind, members and outcome is looked at.

    What a test has written itself has no version, and is not looked at.
    """
    seen: set[tuple[object, ...]] = set()
    found = []
    for path in sorted(folder.glob("*audit*.jsonl*")):
        if path.name.endswith((".gz", ".head", ".lock", ".torn")):
            continue
        with path.open("rb") as file:
            for line in file.readlines(_MOST):
                try:
                    event = orjson.loads(line)
                except ValueError:  # torn, or a test's own
                    continue
                if isinstance(event, dict) and "v" in event:
                    kind = (event.get("event"), event.get("outcome"), *event)
                    if kind not in seen:
                        seen.add(kind)
                        found += problems(event)
    return found
