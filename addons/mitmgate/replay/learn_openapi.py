"""Learn an OpenAPI document from what succeeded in a recording: its operations, their parameters and media types."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_plus

from mitmgate.core.cors import is_preflight
from mitmgate.core.credentials import is_secret_name
from mitmgate.core.http1.target import split_target
from mitmgate.core.openapi import read_media_type
from mitmgate.core.path import CanonicalPath, canonical_path
from mitmgate.core.shape import VALUE, VALUED
from mitmgate.policy.openapi import METHODS
from mitmgate.replay.evidence import Place, Template, succeeded, templates
from mitmgate.replay.traffic import Entry, Recorded

MOST_NAMES: Final = 100
"""Parameters of a query that are told apart at one operation: clients choose their names."""
_METHODS: Final = frozenset(map(str.upper, METHODS))
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?")
_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


@dataclass(slots=True)
class Values:
    """What the values of one parameter had in common. many: whether it came more than once in a request."""

    count: int = 0
    integers: bool = True
    numbers: bool = True
    booleans: bool = True
    uuids: bool = True
    negative: bool = False
    longest: int = 0
    many: bool = False

    def add(self, text: str) -> None:
        """Take a value."""
        self.count += 1
        self.integers &= _INTEGER.fullmatch(text) is not None and text != "-0"
        self.numbers &= _NUMBER.fullmatch(text) is not None
        self.booleans &= text in {"true", "false"}
        self.uuids &= _UUID.fullmatch(text) is not None
        self.negative |= text.startswith("-")
        self.longest = max(self.longest, len(text))

    def join(self, other: "Values") -> None:
        """Add another place's."""
        self.count += other.count
        for name in ("integers", "numbers", "booleans", "uuids"):
            setattr(self, name, getattr(self, name) and getattr(other, name))
        self.negative |= other.negative
        self.many |= other.many
        self.longest = max(self.longest, other.longest)

    def schema(self, *, secret: bool = False) -> str:
        """Write the narrowest type that all of them have, with room for longer texts."""
        if secret:  # a recording has something else in its place
            made = "{type: string}"
        elif self.booleans:
            made = "{type: boolean}"
        elif self.integers:
            made = "{type: integer}" if self.negative else "{type: integer, minimum: 0}"
        elif self.numbers:
            made = "{type: number}"
        elif self.uuids:
            made = "{type: string, format: uuid}"
        else:
            made = f"{{type: string, maxLength: {max(16, 2 * self.longest)}}}"
        return f"{{type: array, items: {made}}}" if self.many else made


@dataclass(slots=True)
class Learned:
    """What the requests of one operation were like. path: the values of its parameters, by their segment."""

    count: int = 0
    path: dict[int, Values] = field(default_factory=dict)
    query: dict[str, Values] = field(default_factory=dict)
    content: Counter[str] = field(default_factory=Counter)
    untyped: int = 0  # bodies that do not say what they are
    empty: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def join(self, other: "Learned") -> None:
        """Add another template's."""
        for name in ("count", "untyped", "empty"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for at, values in other.path.items():
            self.path.setdefault(at, Values()).join(values)
        for word, values in other.query.items():
            self.query.setdefault(word, Values()).join(values)
        self.content.update(other.content)
        self.statuses.update(other.statuses)


class Document:
    """Collects the operations of a recording."""

    def __init__(self) -> None:
        """Start with none."""
        self.operations: dict[tuple[Template, str], Learned] = {}

    def watch(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Pass the entries on, and learn from those that succeeded."""
        for entry in entries:
            if isinstance(entry, Recorded) and succeeded(entry):
                self._add(entry)
            yield entry

    def _add(self, entry: Recorded) -> None:
        """Take a request: its path as the service got it, which is what a document is asked for."""
        request, decision = entry.request, entry.decision
        if is_preflight(request.method, request.headers) or request.method not in _METHODS:
            return
        target = split_target(request.target.encode("latin-1", "replace")).path.decode("latin-1")
        raw, _, query = target.partition("?")
        if decision is not None and decision.target is not None:
            raw = decision.target.partition("?")[0]
        path = canonical_path(raw)
        if not isinstance(path, CanonicalPath) or path.odd:
            return
        segments = path.text.split("/")[1:]
        template = tuple(VALUE if VALUED.fullmatch(segment) else segment for segment in segments)
        seen = self.operations.setdefault((template, request.method), Learned())
        seen.count += 1
        if entry.response_status is not None:
            seen.statuses[entry.response_status] += 1
        for at, segment in enumerate(segments):
            seen.path.setdefault(at, Values()).add(unquote_plus(segment.replace("+", "%2B")))
        _query(seen, query)
        if request.declared_body == 0:
            seen.empty += 1
        else:
            read = read_media_type(request.headers.text("content-type") or "")
            if read is None or "*" in read[0]:
                seen.untyped += 1
            else:
                seen.content[read[0]] += 1

    def write(self, source: str) -> str:
        """Write the document as YAML. source: the recording's name."""
        proposed = templates(Place("", template, method) for template, method in self.operations)
        paths: dict[Template, dict[str, Learned]] = {}
        for (template, method), seen in sorted(self.operations.items()):
            paths.setdefault(proposed[template], {}).setdefault(method, Learned()).join(seen)
        total = sum(seen.count for seen in self.operations.values())
        lines = [
            f"# Proposed by `mitmgate learn` from {json.dumps(source)}: {total:,} requests that succeeded.",
            "# It has what was seen, and no more. Read it, and widen what you know to be right.",
            "openapi: 3.1.1",
            'info: {title: Learnt from traffic, version: "0"}',
            "paths:",
        ]
        for template, methods in sorted(paths.items()):
            lines += _path(template, methods)
        return "\n".join(lines) + "\n"


def _query(seen: Learned, query: str) -> None:
    names: Counter[str] = Counter()
    for piece in query.split("&") if query else ():
        name, _, text = piece.partition("=")
        name = unquote_plus(name)
        if not name or (name not in seen.query and len(seen.query) >= MOST_NAMES):
            continue
        names[name] += 1
        values = seen.query.setdefault(name, Values())
        values.add(unquote_plus(text))
        values.many |= names[name] > 1


def _path(template: Template, methods: dict[str, Learned]) -> Iterator[str]:
    names = _names(template)
    written = "/".join("{" + names[at] + "}" if at in names else segment for at, segment in enumerate(template))
    yield f"  {json.dumps('/' + written)}:"
    if names:
        yield "    parameters:"
    for at, name in names.items():
        joined = Values()
        for seen in methods.values():
            if at in seen.path:
                joined.join(seen.path[at])
        yield f"      - {{name: {name}, in: path, required: true, schema: {joined.schema()}}}"
    for method, seen in sorted(methods.items()):
        if method == "HEAD" and "GET" in methods:
            continue
        yield f"    {method.lower()}:    # {seen.count:,} requests"
        both = methods.get("HEAD") if method == "GET" else None
        yield from _operation(seen, both)


def _operation(seen: Learned, head: Learned | None) -> Iterator[str]:
    if head is not None:
        seen.join(head)
    if seen.query:
        yield "      parameters:"
    for name, values in sorted(seen.query.items()):
        schema = values.schema(secret=is_secret_name(name))
        yield f"        - {{name: {json.dumps(name)}, in: query, schema: {schema}}}"
    if seen.content or seen.untyped:
        kinds = sorted(seen.content) + (["application/octet-stream"] if seen.untyped else [])
        content = ", ".join(f"{json.dumps(kind)}: {{}}" for kind in dict.fromkeys(kinds))
        required = "false" if seen.empty else "true"
        yield f"      requestBody: {{required: {required}, content: {{{content}}}}}"
    answers = ", ".join(
        f'"{status}": {{description: "{count:,} of them."}}' for status, count in sorted(seen.statuses.items())
    )
    yield f"      responses: {{{answers}}}"


def _names(template: Template) -> dict[int, str]:
    """Name the values of a path by what is before them."""
    names: dict[int, str] = {}
    for at, segment in enumerate(template):
        if segment == VALUE:
            before = template[at - 1] if at and template[at - 1] != VALUE else ""
            word = "".join(re.findall(r"[A-Za-z0-9]+", before))[:30]
            base = f"{word}Id" if word else "id"
            taken = set(names.values())
            names[at] = next(name for name in (base, *(f"{base}{n}" for n in range(2, 99))) if name not in taken)
    return names
