"""From pydantic's errors to problems with a place, a message for people and a hint."""

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mitmgate.policy.declared import policy_model
from mitmgate.policy.document import Document, written
from mitmgate.policy.interpolation import FromEnvironment
from mitmgate.policy.model import Policy
from mitmgate.policy.problem import Location, Problem, nearest

_MESSAGES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}
_HINTS = {"tuple_type": "write [...]", "model_type": "write {...}, or leave it out", "dict_type": "write {...}"}
_UNQUOTED = frozenset({"int_type", "bool_type"})
_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # of YAML 1.1; texts in YAML 1.2
_CHOICES = {
    "(memory)": "memory or {url: redis://...}",
    "(word)": "none, jwt, api-key, certificate, {issuers: [...]} or {any: [...]}",
}


def validate(document: Document) -> tuple[Policy | None, list[Problem]]:
    """Validate a document's value section by section; the policy is None where there is any error."""
    sections: dict[int, type[BaseModel]] = {}
    try:
        return policy_model().model_validate(document.value, context=sections), []
    except ValidationError as error:
        return None, problems_of(document, error, sections)


def problems_of(
    document: Document, error: ValidationError, sections: dict[int, type[BaseModel]], within: Location = ()
) -> list[Problem]:
    """Translate what pydantic says of a document. sections: who reads which mapping, by its id.

    within: where in the document the value stands that was validated.
    """
    details = error.errors(include_url=False)
    problems = [_problem(document, detail, sections, within) for detail in details]
    return [problem for problem in problems if problem is not None]


def _problem(
    document: Document, detail: ErrorDetails, sections: dict[int, type[BaseModel]], within: Location
) -> Problem | None:
    """Translate one error; None where it only follows from a reference that has no value."""
    context: dict[str, Any] = detail.get("ctx", {})
    location = _location(document, (*within, *detail["loc"]))
    if location and isinstance(location[-1], int) and not isinstance(document.at(location[:-1]), list):
        location = location[:-1]  # a list that is written as its only member
    key = detail["loc"][-1:] == ("[key]",)
    found, kind = detail["input"], detail["type"]
    if any(location[:length] in document.unresolved for length in range(len(location) + 1)):
        return None
    if kind == "too_short" and found:
        return None  # what is in it is wrong, and said elsewhere
    if kind == "missing":
        name = str(location[-1])
        return document.problem(location[:-1], f"the member {name} is missing", found="", hint=f"add {name}")
    if kind == "extra_forbidden":
        return _unknown_member(document, location, sections)
    if kind == "policy":
        message, hint = context["message"], context["hint"]
        if context["unquoted"] and not (key or document.may_quote(location)):
            message, hint = context["unquoted"], ""
        if context["at"]:
            location = (*location, context["at"])
    elif kind == "literal_error":
        words = context["expected"].replace("'", "")
        branch = next((_CHOICES[step] for step in detail["loc"] if step in _CHOICES), None)
        message, hint = f"must be {branch or words}", nearest(str(found), words.replace(" or ", ", ").split(", "))
    else:
        message, hint = _usual(document, location, detail)
    # A section's own error is about its members: their values are shown where they stand.
    shown = written(found) if key else document.shown(location)
    return document.problem(location, message, found=shown, hint=hint, key=key)


def _usual(document: Document, location: Location, detail: ErrorDetails) -> tuple[str, str]:
    """Say what pydantic itself finds wrong, or the validator of a stage's own options."""
    context, found, kind = detail.get("ctx", {}), detail["input"], detail["type"]
    if kind == "too_short":
        return "must not be empty", ""
    if kind in {"value_error", "assertion_error"}:
        said = str(context.get("error", "")) if document.may_quote(location) else ""
        return said or "is not what the stage takes", ""
    message = _MESSAGES[kind].format(**context) if kind in _MESSAGES else detail["msg"]
    quoted = isinstance(found, str) and not isinstance(found, FromEnvironment) and kind in _UNQUOTED
    if quoted and kind == "bool_type" and found.lower() in _BOOLEANS:
        return message, f"write {_BOOLEANS[found.lower()]}"
    return message, "write it without quotes" if quoted else _HINTS.get(kind, "")


def _location(document: Document, steps: Location) -> Location:
    """Leave out what stands for nothing in the file: a union's branch, "(redis)", and "[key]" for a key itself."""
    location: Location = ()
    for step in steps:
        members = document.at(location)
        named = isinstance(members, dict) and step in members
        if named or not (step == "[key]" or str(step).startswith("(")):
            location = (*location, step)
    return location


def _unknown_member(document: Document, location: Location, sections: dict[int, type[BaseModel]]) -> Problem:
    section, name = sections.get(id(document.at(location[:-1]))), str(location[-1])
    members = list(section.model_fields) if section is not None else []
    hint = nearest(name, members) or (f"members are {', '.join(members)}" if members else "")
    return document.problem(location, f"there is no member {name}", found="", hint=hint, key=True)
