"""An explanation for people."""

import json
from collections.abc import Mapping

from mitmgate.audit.reading import printable
from mitmgate.replay.explain import Explanation, StageReport

_INDENT = " " * 9


def as_text(explanation: Explanation) -> str:
    """Write an explanation, stage by stage; what a stage has nothing to say about takes one line."""
    lines = [f"{explanation.decision} ({explanation.status}): {explanation.request}, by {explanation.policy}", ""]
    for stage in explanation.stages:
        lines += stage_lines(stage)
    if explanation.upstream:
        lines += ["", f"to {explanation.upstream['endpoint']}: {explanation.upstream['request']}"]
        headers = explanation.upstream["headers"]
        lines += [f"{_INDENT}{name}: {value}" for name, value in headers] if isinstance(headers, list) else []
    lines += [f"note: {note}" for note in explanation.notes]
    return "\n".join(printable(line) for line in lines) + "\n"


def stage_lines(stage: StageReport) -> list[str]:
    """Write what one stage has said."""
    said = f" {stage.reason}: {stage.detail}" if stage.outcome in {"deny", "observe", "answer"} else ""
    lines = [f"{stage.outcome:<8} {stage.stage}{said}".rstrip(": ")]
    if stage.outcome == "skip":
        return lines
    lines += [f"{_INDENT}read     {name}: {_shown(value)}" for name, value in stage.read.items()]
    lines += [f"{_INDENT}rule     {member}  {place}" for member, place in stage.rules]
    for predicate in stage.failing:
        lines.append(f"{_INDENT}false    {predicate['predicate']}")
        values = predicate["values"]
        if isinstance(values, Mapping):
            lines += [f"{_INDENT}         {path} = {_shown(value)}" for path, value in values.items()]
        if "error" in predicate:
            lines.append(f"{_INDENT}         no value: {predicate['error']}")
    lines += [f"{_INDENT}change   {line}" for line in stage.change]
    return lines


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
