"""What an OpenAPI document takes: its operations, found by path and method, and whether a request's head is one.

The path is the one that the service gets, canonical and percent-encoded: segments are compared as they are, and a value
is decoded once. Where servers could read a request in two ways, both have to be right: a `+` of a query that is a
space to most, a comma that comes percent-encoded, a path that holds what its route was told to let pass. Nothing that a
client has written stands in a refusal's words, but for the name of a parameter that looks like one.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from mitmgate.core.client_fields import shape
from mitmgate.core.credentials import hide_in_text, is_secret_name
from mitmgate.core.headers import Headers
from mitmgate.core.path import CanonicalPath, readings
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.value import value as frozen_value

Place = Literal["path", "query", "header", "cookie"]
Form = Literal["plain", "repeated", "separated", "deep", "json"]
"""How a parameter is written: a value; a list of equally named ones, or of one that is split; `name[member]`; JSON."""

LONGEST_NUMBER: Final = 64
"""Characters of a number that is read: more is none that a service would take for the same."""
DEEPEST: Final = 64
"""How deep a JSON text may be nested."""
MOST_PARAMETERS: Final = 1000
"""Parameters of a query, and parts of a list, that are looked at; no request needs more."""

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_DEEP: Final = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]")
_SHOWN: Final = re.compile(r"[A-Za-z0-9_.\[\]-]{1,40}")
_MEDIA_TYPE: Final = re.compile(  # RFC 9110, section 8.3.1; possessive, so that hostile text costs O(n)
    r"([!#$%&'*+.^_`|~0-9a-z-]++/[!#$%&'*+.^_`|~0-9a-z-]++)"
    r"((?:[ \t]*+;[ \t]*+(?:[!#$%&'*+.^_`|~0-9a-z-]++=(?:[!#$%&'*+.^_`|~0-9a-z-]++|\"(?:[^\"\\]|\\.)*+\"))?+)*+)"
)
_PARAMETER: Final = re.compile(r";[ \t]*([^=;\s]+)=(\"(?:[^\"\\]|\\.)*\"|[^\";\s]*)")
_PLACES: Final[Mapping[Place, str]] = {
    "path": "The path's",
    "query": "The query's",
    "header": "The header's",
    "cookie": "The cookie's",
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A compiled schema. valid: tells it of a value. flaw: says what of the schema a value does not meet, "" if none.

    Both are given plain values (json.loads) and may raise anything, which counts as not valid. flaw has only words of
    the document.
    """

    valid: Callable[[object], bool]
    flaw: Callable[[object], str]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an operation.

    kinds: JSON's types that its text may stand for, in the order in which they are tried; of a list's items, where it
    is one. members: the same of each member of a `deep` one. prefix, suffix: what stands around it in its segment of
    the path. empty: whether it may have no value at all (allowEmptyValue).
    """

    name: str
    place: Place
    schema: Schema
    kinds: tuple[str, ...] = ("string",)
    required: bool = False
    form: Form = "plain"
    separator: str = ","
    members: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prefix: str = ""
    suffix: str = ""
    empty: bool = False

    def flaw(self, texts: list[str]) -> str | None:
        """Say what is wrong with its values, as they were sent; None where nothing is."""
        if self.form == "repeated":
            return self._list_flaw([self._decoded(text) for text in texts])
        if len(texts) != 1:
            return "is given more than once"
        text = texts[0]
        if not text and self.empty:
            return None
        if self.form == "separated":
            return self._separated_flaw(text)
        ways = self._decoded(text)
        if self.form == "json":
            return self._json_flaw(ways)
        valid = self.schema.valid
        for way in ways:
            for kind in self.kinds:
                value = _READ[kind](way)
                if value is not _NOTHING and valid(value):
                    break
            else:
                return self._flaw_of(way)
        return None

    def deep_flaw(self, members: Mapping[str, list[str]]) -> str | None:
        """Say what is wrong with an object that was sent as `name[member]=value`."""
        found: dict[str, object] = {}
        for name, texts in members.items():
            if len(texts) != 1:
                return "has a member more than once"
            ways = self._decoded(texts[0])
            if len(ways) > 1:
                return "has a +, which is a space to most: write %2B or %20"
            kinds = self.members.get(name, ("string",))
            value = _value(ways[0], kinds)
            if value is _NOTHING:
                return "has a member that is not of its type"
            found[name] = value
        return None if self.schema.valid(found) else self.schema.flaw(found) or "is not valid"

    def _decoded(self, text: str) -> tuple[str, ...]:
        """Decode a text in the one way that there is, or in the two."""
        return _decoded(text) if self.place == "query" else (text,)

    def _flaw_of(self, text: str) -> str:
        value = _value(text, self.kinds)
        if value is _NOTHING:
            return f"has to be {' or '.join(_ARTICLES.get(kind, kind) for kind in self.kinds)}"
        return self.schema.flaw(value) or "is not valid"

    def _json_flaw(self, ways: tuple[str, ...]) -> str | None:
        for way in ways:
            found = parse_json(way)
            if isinstance(found, NotJson):
                return f"is not JSON that everybody reads alike: {found.detail}"
            if not self.schema.valid(found.value):
                return self.schema.flaw(found.value) or "is not valid"
        return None

    def _separated_flaw(self, text: str) -> str | None:
        """Check a list in one value, as those read it who split before they decode, and as those who decode first."""
        if not text:
            return self._list_flaw([])
        if len(text) > 2 * MOST_PARAMETERS and text.count(",") + text.count("|") + text.count("%") > MOST_PARAMETERS:
            return f"has more than {MOST_PARAMETERS} parts"
        flaw = None
        if self.separator == ",":  # the others may not stand in a URL as they are
            flaw = self._list_flaw([self._decoded(part) for part in text.split(",")])
        if self.separator != "," or "%" in text or "+" in text:
            for way in self._decoded(text):
                flaw = flaw or self._list_flaw([(part,) for part in way.split(self.separator)])
        return flaw

    def _list_flaw(self, items: list[tuple[str, ...]]) -> str | None:
        """Check a list, each item in one or two readings."""
        for number in range(max(map(len, items), default=1)):
            found = [_value(ways[min(number, len(ways) - 1)], self.kinds) for ways in items]
            if _NOTHING in found:
                return f"has to be a list of {' or '.join(self.kinds)} values"
            if not self.schema.valid(found):
                return self.schema.flaw(found) or "is not valid"
        return None


_NOTHING: Final = object()
_ARTICLES: Final = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "null": "empty",
    "string": "a text",
}


@frozen_value(frozen=True, slots=True)
class MediaType:
    """A media type that a body may have; `*` stands for all. parameters: those that it has to have.

    schema: of bodies that are JSON, where they are to be checked; None: they are not.
    """

    kind: str
    parameters: tuple[tuple[str, str], ...] = ()
    schema: Schema | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Order by how much it says: the most specific one decides (OpenAPI 3.1, section 4.8.13.1)."""
        return (self.kind.count("*"), -len(self.parameters))

    def takes(self, kind: str, parameters: Mapping[str, str]) -> bool:
        """Tell whether a Content-Type is one of these."""
        if self.kind not in {kind, "*/*"} and not (self.kind.endswith("/*") and kind.startswith(self.kind[:-1])):
            return False
        return all(parameters.get(name) == value for name, value in self.parameters)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """An operation. template: its path as the document writes it. line: where that has it.

    path: its parameters, one for each segment of the whole path (None: a literal). others: of the header and cookies.
    content: most specific first; None: it takes no body.
    """

    method: str
    template: str
    line: int = 0
    path: tuple[Parameter | None, ...] = ()
    query: Mapping[str, Parameter] = field(default_factory=dict)
    others: tuple[Parameter, ...] = ()
    content: tuple[MediaType, ...] | None = None
    body_required: bool = False
    needed: tuple[Parameter, ...] = field(init=False)
    """Parameters of the query that every request has."""
    deep: frozenset[str] = field(init=False)
    """Names of parameters of the query that come as `name[member]`."""

    def __post_init__(self) -> None:
        """Sort out the query's parameters once."""
        object.__setattr__(self, "needed", tuple(known for known in self.query.values() if known.required))
        object.__setattr__(self, "deep", frozenset(name for name, known in self.query.items() if known.form == "deep"))

    @property
    def checks_bodies(self) -> bool:
        """Whether a body of it may be one that has to be checked."""
        return any(known.schema is not None for known in self.content or ())

    @property
    def name(self) -> str:
        """Method and path, as people write it."""
        return f"{self.method} {self.template}"


class _Node:
    """A segment of the paths, and what may follow it."""

    __slots__ = ("literal", "methods", "values")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.values: list[tuple[str, str, _Node]] = []
        """Segments with a parameter: what is before it, what is behind it; the longest first."""
        self.methods: dict[str, Operation] | None = None


class Segment(NamedTuple):
    """A segment of a template: a literal (name None), or a parameter with what is before and behind it."""

    prefix: str
    name: str | None = None
    suffix: str = ""


class BodyCheck(NamedTuple):
    """What a body has to be: JSON, of `bound` bytes at the most, that meets a schema."""

    schema: Schema
    bound: int

    def refusal(self, content: bytes) -> Refusal | None:
        """Decide on a whole body."""
        found = parse_json(content)
        if isinstance(found, NotJson):
            return Refusal(Reason.BODY_INVALID, f"The body is not JSON that everybody reads alike: {found.detail}.")
        try:
            if self.schema.valid(found.value):
                return None
            flaw = self.schema.flaw(found.value)
        except Exception:
            flaw = ""
        return Refusal(Reason.BODY_INVALID, f"The body {flaw or 'is not valid'}.")


class Judgement(NamedTuple):
    """What a document says of a head. operation: that it is; None: there is none. refusal: None: it is right.

    allow: the methods that there are, where it is none of them. body: what its body has to be; None: anything.
    """

    operation: Operation | None
    refusal: Refusal | None = None
    allow: tuple[str, ...] = ()
    body: BodyCheck | None = None


class Api:
    """The operations of a document."""

    __slots__ = ("_plain", "_root", "body", "known", "operations", "unknown")

    def __init__(self, *, unknown: bool = False, body: int = 0, known: Iterable[str] = ()) -> None:
        """unknown: whether a query may have parameters that nobody declares. body: bytes of a body that is checked.

        known: names that every query may have, such as an API key's.
        """
        self.unknown = unknown
        self.body = body
        self.known = frozenset(known)
        self.operations: dict[str, Operation] = {}
        self._root = _Node()
        self._plain: dict[str, dict[str, Operation]] = {}

    def add(self, segments: Iterable[Segment], operation: Operation) -> bool:
        """Add an operation; False where there is one already at such a path with such a method."""
        node = self._root
        segments = tuple(segments)
        for prefix, name, suffix in segments:
            if name is None:
                node = node.literal.setdefault(prefix, _Node())
                continue
            known = next((inner for before, behind, inner in node.values if (before, behind) == (prefix, suffix)), None)
            if known is None:
                known = _Node()
                node.values.append((prefix, suffix, known))
                node.values.sort(key=lambda entry: -len(entry[0]) - len(entry[1]))
            node = known
        if node.methods is None:
            node.methods = {}
            if all(segment.name is None for segment in segments):
                self._plain["/" + "/".join(segment.prefix for segment in segments)] = node.methods
        if operation.method in node.methods:
            return False
        node.methods[operation.method] = operation
        self.operations.setdefault(operation.name, operation)
        return True

    def reaches(self, path: str, *, exact: bool) -> bool:
        """Tell whether there is an operation at a path, or below it where it is not exact."""
        if exact:
            return self.find(path) is not None
        nodes = [self._root]
        for segment in path.strip("/").split("/") if path.strip("/") else ():
            nodes = [
                inner
                for node in nodes
                for inner in (*filter(None, [node.literal.get(segment)]), *(inner for _, _, inner in node.values))
            ]
        return bool(nodes)

    def find(self, path: str) -> tuple[Mapping[str, Operation], list[str]] | None:
        """Find what is at a path, and the path's segments; None where nothing is."""
        methods = self._plain.get(path)
        if methods is not None:
            return methods, []
        segments = path[1:].split("/")
        methods = _found(self._root, segments, 0)
        return None if methods is None else (methods, segments)

    def judge(
        self,
        method: str,
        path: CanonicalPath,
        query: str | None,
        headers: Headers,
        body: int | None,
        written: Iterable[frozenset[bytes]] = (),
    ) -> Judgement:
        """Decide on a head. path: as the service gets it. body: bytes; None: not known.

        written: lower-case names of fields that are not the client's, whatever it sends.
        """
        found = self.find(path.text)
        if found is None:
            return Judgement(None, _UNKNOWN)
        methods, segments = found
        operation = methods.get(method)
        if operation is None and method == "HEAD":  # RFC 9110, section 9.1: whoever takes GET takes HEAD
            operation = methods.get("GET")
        if operation is None:
            return Judgement(None, _NO_METHOD, tuple(methods))
        if path.odd and not self._alike(operation, path, method):
            return Judgement(operation, _TWO_WAYS)
        refusal = (
            (_path_refusal(operation, segments) if segments else None)
            or self._query_refusal(operation, query)
            or (_others_refusal(operation, headers, written) if operation.others else None)
        )
        if refusal is not None:
            return Judgement(operation, refusal)
        if body == 0:
            return Judgement(operation, _NO_BODY if operation.body_required else None)
        return self._body(operation, headers, body)

    def _alike(self, operation: Operation, path: CanonicalPath, method: str) -> bool:
        """Tell whether a path that servers read differently is the operation's in every reading, with valid values."""
        for reading in readings(path):
            found = self.find(reading)
            if found is None:
                return False
            other = found[0].get(method) or (found[0].get("GET") if method == "HEAD" else None)
            if other is not operation or _path_refusal(operation, found[1]) is not None:
                return False
        return True

    def _query_refusal(self, operation: Operation, query: str | None) -> Refusal | None:
        if not query:
            return _missing(operation.needed[0]) if operation.needed else None
        if ";" in query:
            return _SEMICOLON
        pieces = query.split("&")
        if len(pieces) > MOST_PARAMETERS:
            return _TOO_MANY
        escaped = "%" in query
        if escaped:
            refusal = _escape_refusal(query)
            if refusal is not None:
                return refusal
        found: dict[str, list[str]] = {}
        try:
            for piece in pieces:
                if piece:
                    name, _, text = piece.partition("=")
                    if escaped or "+" in name:
                        name = _decoded(name)[0]
                    texts = found.get(name)
                    if texts is None:
                        found[name] = [text]
                    else:
                        texts.append(text)
            return self._parameters_refusal(operation, found)
        except UnicodeDecodeError:
            return Refusal(Reason.PARAMETER_INVALID, "The query is not UTF-8.")

    def _parameters_refusal(self, operation: Operation, found: Mapping[str, list[str]]) -> Refusal | None:
        known = operation.query
        deep: dict[str, dict[str, list[str]]] = {}
        for name, texts in found.items():
            parameter = known.get(name)
            if parameter is None or parameter.form == "deep":
                match = _DEEP.fullmatch(name) if operation.deep else None
                if match is not None and match[1] in operation.deep:
                    deep.setdefault(match[1], {})[match[2]] = texts
                elif not self.unknown and name not in self.known:
                    return Refusal(Reason.PARAMETER_UNKNOWN, f"This operation has no query parameter{_shown(name)}.")
                continue
            flaw = parameter.flaw(texts)
            if flaw is not None:
                return _invalid(parameter, flaw)
        for name, members in deep.items():
            flaw = known[name].deep_flaw(members)
            if flaw is not None:
                return _invalid(known[name], flaw)
        for parameter in operation.needed:
            if parameter.name not in found and parameter.name not in deep:
                return _missing(parameter)
        return None

    def _body(self, operation: Operation, headers: Headers, length: int | None) -> Judgement:
        content = operation.content
        if content is None:
            return Judgement(operation, _BODY_UNASKED)
        values = headers.all(b"content-type")
        if len(values) > 1:
            return Judgement(operation, _NO_TYPE)
        read = read_media_type(values[0].decode("latin-1") if values else "application/octet-stream")
        if read is None or "*" in read[0]:
            return Judgement(operation, _NO_TYPE)
        kind, parameters = read
        chosen = next((known for known in content if known.takes(kind, parameters)), None)
        if chosen is None:
            taken = ", ".join(known.kind for known in content)
            return Judgement(operation, Refusal(Reason.CONTENT_TYPE_REFUSED, f"This operation takes {taken}."))
        schema = chosen.schema
        if not self.body or schema is None or not is_json(kind):
            return Judgement(operation)
        if parameters.get("charset", "utf-8").lower() not in {"utf-8", "utf8"}:
            return Judgement(operation, _CHARSET)
        if any(value.strip().lower() not in {b"", b"identity"} for value in headers.all(b"content-encoding")):
            return Judgement(operation, _CODED)
        if length is not None and length > self.body:
            detail = f"The body is larger than the {self.body} bytes that are checked."
            return Judgement(operation, Refusal(Reason.BODY_TOO_LARGE, detail))
        return Judgement(operation, None, (), BodyCheck(schema, self.body))


def _found(node: _Node, segments: list[str], number: int) -> dict[str, Operation] | None:
    """Go down the segments, literals first; each node is seen once at the most, since one way alone leads to it."""
    if number == len(segments):
        return node.methods
    segment = segments[number]
    inner = node.literal.get(segment)
    if inner is not None:
        methods = _found(inner, segments, number + 1)
        if methods is not None:
            return methods
    for prefix, suffix, inner in node.values:
        if (
            len(segment) > len(prefix) + len(suffix)
            and segment.startswith(prefix)
            and (not suffix or segment.endswith(suffix))
        ):
            methods = _found(inner, segments, number + 1)
            if methods is not None:
                return methods
    return None


def _path_refusal(operation: Operation, segments: list[str]) -> Refusal | None:
    for parameter, segment in zip(operation.path, segments, strict=True):
        if parameter is None:
            continue
        text = segment[len(parameter.prefix) : len(segment) - len(parameter.suffix)]
        if "%" in text:
            text = unquote_to_bytes(text).decode("utf-8")  # which core.path has seen to
        flaw = parameter.flaw([text])
        if flaw is not None:
            return _invalid(parameter, flaw)
    return None


def _others_refusal(operation: Operation, headers: Headers, written: Iterable[frozenset[bytes]]) -> Refusal | None:
    cookies: dict[str, list[str]] | None = None
    for parameter in operation.others:
        if parameter.place == "header":
            name = parameter.name.lower().encode("ascii")
            if any(name in names for names in written):
                continue
            shaped = shape(name)
            if any(other.lower() != name and shape(other.lower()) == shaped for other, _ in headers.fields):
                return _invalid(parameter, "comes by another name, too, that some services take for this one")
            texts = [value.decode("latin-1") for value in headers.all(name)]
            if parameter.form == "separated" and texts:  # RFC 9110, section 5.3: a list in several lines is one
                texts = [",".join(part.strip(" \t") for text in texts for part in text.split(","))]
        else:
            if cookies is None:
                cookies = _cookies(headers)
            texts = cookies.get(parameter.name, [])
        if not texts:
            if parameter.required:
                return _missing(parameter)
            continue
        flaw = parameter.flaw(texts)
        if flaw is not None:
            return _invalid(parameter, flaw)
    return None


def _cookies(headers: Headers) -> dict[str, list[str]]:
    """Read the cookies (RFC 6265, section 4.2.1). Blanks around a name are no part of it to most services."""
    found: dict[str, list[str]] = {}
    for value in headers.all(b"cookie"):
        for pair in value.decode("latin-1").split(";"):
            name, _, text = pair.strip(" \t").partition("=")
            found.setdefault(name.strip(), []).append(text.strip('"'))
    return found


def _decoded(text: str) -> tuple[str, ...]:
    """Decode a part of a query whose escapes are sound; twice where it holds a `+`, which is a space to most."""
    if "%" not in text:
        return (text,) if "+" not in text else (text.replace("+", " "), text)
    if "+" not in text:
        return (unquote_to_bytes(text).decode("utf-8"),)
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8"), unquote_to_bytes(text).decode("utf-8")


def _escape_refusal(query: str) -> Refusal | None:
    """Refuse escapes that are none, and NUL, which ends a text for some."""
    if _BROKEN.search(query) is not None:
        return Refusal(Reason.PARAMETER_INVALID, "The query holds a % that begins no percent-encoding.")
    if "%00" in query:
        return Refusal(Reason.PARAMETER_INVALID, "The query holds an encoded NUL.")
    return None


def _integer_of(text: str) -> object:
    sound = len(text) <= LONGEST_NUMBER and _INTEGER.fullmatch(text) is not None
    return int(text) if sound else _NOTHING


def _number_of(text: str) -> object:
    if len(text) > LONGEST_NUMBER or _NUMBER.fullmatch(text) is None:
        return _NOTHING
    if _INTEGER.fullmatch(text) is not None:
        return int(text)
    number = float(text)
    return number if number - number == 0 else _NOTHING  # no infinity


_READ: Final[Mapping[str, Callable[[str], object]]] = {
    "integer": _integer_of,
    "number": _number_of,
    "boolean": lambda text: text == "true" if text in {"true", "false"} else _NOTHING,
    "null": lambda text: _NOTHING if text else None,
    "string": lambda text: text,
}
"""What a text stands for, by JSON's types; _NOTHING where it can't."""


def _value(text: str, kinds: tuple[str, ...]) -> object:
    """Return what a text stands for: the first of JSON's types that it can."""
    for kind in kinds:
        value = _READ[kind](text)
        if value is not _NOTHING:
            return value
    return _NOTHING


def read_media_type(text: str) -> tuple[str, dict[str, str]] | None:
    """Read a Content-Type: type and subtype in small letters, and the parameters; None where it is none."""
    text = text.strip(" \t")
    match = _MEDIA_TYPE.fullmatch(text.lower())
    if match is None:
        return None
    if not match[2]:
        return match[1], {}
    parameters: dict[str, str] = {}
    for name, content in _PARAMETER.findall(text[len(match[1]) :]):
        if name.lower() in parameters:
            return None  # whose second value counts for some
        parameters[name.lower()] = re.sub(r"\\(.)", r"\1", content[1:-1]) if content[:1] == '"' else content
    return match[1], parameters


def is_json(kind: str) -> bool:
    """Tell whether a media type is JSON (RFC 6839, section 3.1)."""
    return kind == "application/json" or kind.endswith("+json")


class Json(NamedTuple):
    """A text that is JSON, as plain values."""

    value: object


class NotJson(NamedTuple):
    """A text that is no JSON, or not the same to everybody; detail says why, with nothing of the text."""

    detail: str


class _AmbiguousError(ValueError):
    """What parsers differ in; the message says it."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _AmbiguousError("a name comes twice")
    return made


def _refused(text: str) -> object:
    raise _AmbiguousError("it holds a number that JSON does not have")


def _float(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise _AmbiguousError("it holds a number that is too large")
    return number


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise _AmbiguousError("it holds a number that is too large")
    return int(text)


def parse_json(text: str | bytes) -> Json | NotJson:
    """Parse JSON that every parser reads alike (RFC 8259, sections 4, 6, 8): UTF-8, no name twice, no odd numbers."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        found: object = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refused, parse_float=_float, parse_int=_integer
        )
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode("utf-8")  # lone surrogates are no text
    except _AmbiguousError as error:
        return NotJson(str(error))
    except UnicodeError:
        return NotJson("it is not UTF-8")
    except RecursionError:
        return NotJson("it is too deep")
    except ValueError:
        return NotJson("it can't be parsed")
    level = [found]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return Json(found)
    return NotJson("it is too deep")


def _invalid(parameter: Parameter, flaw: str) -> Refusal:
    return Refusal(Reason.PARAMETER_INVALID, f"{_PLACES[parameter.place]} parameter {parameter.name} {flaw}.")


def _missing(parameter: Parameter) -> Refusal:
    return Refusal(Reason.PARAMETER_MISSING, f"{_PLACES[parameter.place]} parameter {parameter.name} is missing.")


def _shown(name: str) -> str:
    """Return a parameter's name where it is one, and nothing secret that stands in its place."""
    if _SHOWN.fullmatch(name) is None or is_secret_name(name) or hide_in_text(name, lambda hidden: "*") != name:
        return " of this name"
    return f" {name}"


_UNKNOWN: Final = Refusal(Reason.OPERATION_UNKNOWN, "There is no operation at this path.")
_NO_METHOD: Final = Refusal(Reason.OPERATION_NOT_ALLOWED, "This path has no operation with this method.")
_TWO_WAYS: Final = Refusal(Reason.OPERATION_UNKNOWN, "The path could be read as that of another operation.")
_SEMICOLON: Final = Refusal(Reason.PARAMETER_INVALID, "The query holds a ; that some take for an &: write %3B.")
_TOO_MANY: Final = Refusal(Reason.PARAMETER_INVALID, f"The query has more than {MOST_PARAMETERS} parameters.")
_NO_BODY: Final = Refusal(Reason.BODY_UNEXPECTED, "This operation needs a body.")
_BODY_UNASKED: Final = Refusal(Reason.BODY_UNEXPECTED, "This operation takes no body.")
_NO_TYPE: Final = Refusal(Reason.CONTENT_TYPE_REFUSED, "The Content-Type is not one media type.")
_CHARSET: Final = Refusal(Reason.CONTENT_TYPE_REFUSED, "JSON is UTF-8 (RFC 8259, section 8.1).")
_CODED: Final = Refusal(Reason.CONTENT_TYPE_REFUSED, "The body is checked, so that it must not be compressed.")
