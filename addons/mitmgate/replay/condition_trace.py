"""Why a CEL condition is false: the predicates that it is made of, and what they read.

The evaluator says true or false of the whole. So the expression is split at its && and ||, outside of parentheses and
strings, and each part is evaluated by itself, within the bounds of a condition: of a conjunction that is false the
first false part counts, of a disjunction all of them.
"""

import re
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

from mitmgate.policy.condition import compile_part

_STRING = re.compile(r"""[rR]?(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
_PATH = re.compile(
    r"""(?<![\w."'])(?:request|principal|client|route)(?:\.[A-Za-z_]\w*(?![\w(]|\s*\()|\[\s*(?:"[^"]*"|'[^']*')\s*\])+"""
)
_OPEN, _CLOSE = "([{", ")]}"
ABSENT = "absent"
PATIENCE: Final = 0.5
"""Seconds of the processor for all parts of a condition: mitmweb explains on its event loop. The rest has no value."""

_LATE: Final = "not evaluated: the condition takes too long to explain"


class Predicate(NamedTuple):
    """A part of a condition that is not true.

    found: what it reads, by the text that reads it. error: why it has no value; "" where it is plainly false.
    """

    text: str
    found: Mapping[str, object]
    error: str = ""


def failing(source: str, facts: Mapping[str, object]) -> list[Predicate]:
    """Return the parts of a condition that make it false, those of a disjunction in their order; [] where it holds."""
    return _failing(source, facts, time.thread_time() + PATIENCE)


def _failing(source: str, facts: Mapping[str, object], until: float) -> list[Predicate]:
    held, error = _value(source, facts, until)
    if held is True:
        return []
    text = _bare(source)
    parts = _split(text, "||")
    if len(parts) > 1:
        return [predicate for part in parts for predicate in _failing(part, facts, until)]
    parts = _split(text, "&&")
    if len(parts) > 1:
        for part in parts:
            found = _failing(part, facts, until)
            if found:
                return found
    return [Predicate(text, _found(text, facts, until), error)]


def _value(source: str, facts: Mapping[str, object], until: float) -> tuple[object, str]:
    """Evaluate a part. until: when the thread has spent all that the condition may cost."""
    if time.thread_time() > until:
        return None, _LATE
    try:
        return compile_part(source).value(facts), ""
    except (ValueError, TimeoutError) as error:
        return None, str(error).partition("\n")[0] or type(error).__name__


def _found(text: str, facts: Mapping[str, object], until: float) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in _PATH.findall(_STRING.sub(_kept_index, text)):
        value, error = _value(path, facts, until)
        found[path] = (_LATE if error == _LATE else ABSENT) if error else value
    return found


def _kept_index(string: re.Match[str]) -> str:
    """Blank a string literal, unless it is an index: claims["tenant"]."""
    before = string.string[: string.start()].rstrip()
    return string[0] if before.endswith("[") else '""'


def _bare(text: str) -> str:
    """Take off parentheses that hold the whole."""
    text = text.strip()
    while text.startswith("(") and _end_of(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _end_of(text: str, start: int) -> int:
    """Return where the bracket that opens at `start` closes; -1 where it does not."""
    depth, at = 0, start
    while at < len(text):
        string = _STRING.match(text, at)
        if string is not None:
            at = string.end()
            continue
        if text[at] in _OPEN:
            depth += 1
        elif text[at] in _CLOSE:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return -1


def _split(text: str, operator: str) -> list[str]:
    """Split at an operator outside of brackets and strings; whole where a conditional (?:) binds less than it."""
    parts, depth, at, start = [], 0, 0, 0
    while at < len(text):
        string = _STRING.match(text, at)
        if string is not None:
            at = string.end()
            continue
        if text[at] in _OPEN:
            depth += 1
        elif text[at] in _CLOSE:
            depth -= 1
        elif depth == 0 and text[at] == "?":
            return [text]
        elif depth == 0 and text.startswith(operator, at):
            parts.append(text[start:at].strip())
            at += len(operator)
            start = at
            continue
        at += 1
    return [*parts, text[start:].strip()]
