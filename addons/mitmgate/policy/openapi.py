"""OpenAPI documents that routes name: read, checked, and compiled to what core.openapi decides with.

Nothing is fetched: a reference leads into the document, or is an error. Schemas are compiled by jsonschema-rs with
Rust's regular expressions, which take a time that is linear in the text; a pattern that needs more is an error.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import AfterValidator, Field, ValidationError

from mitmgate.core.openapi import Api, Form, MediaType, Operation, Parameter, Schema, Segment, is_json, read_media_type
from mitmgate.core.path import CanonicalPath, canonical_path
from mitmgate.core.rewrite import REPLACED
from mitmgate.policy.document import Document
from mitmgate.policy.files import Files, UnreadableError
from mitmgate.policy.parsing import parse
from mitmgate.policy.problem import Location, Problem, nearest
from mitmgate.policy.scalars import TOKEN, Size, Text, UrlPath, wrong
from mitmgate.policy.section import Section

MOST_PROBLEMS: Final = 50
"""Errors of a document that are listed."""
MOST_OPERATIONS: Final = 20_000
MOST_TOLD: Final = 20
"""Parts of a value, of one level, that is told what it does not meet, where a schema has alternatives."""
DEEPEST_TOLD: Final = 3
"""Levels of a value that is told what it does not meet, where no schema has."""
METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_KINDS: Final = ("integer", "number", "boolean", "null", "string")
_TYPES: Final = frozenset({*_KINDS, "array", "object"})
LARGEST_CHECKED: Final = 256 << 10  # bytes
_URI: Final = "urn:mitmgate:openapi"
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE: Final = (
    *("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_ELSEWHERE: Final = ("$id", "$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor")
_DIALECTS: Final = frozenset(
    {
        "https://spec.openapis.org/oas/3.1/dialect/base",
        "https://spec.openapis.org/oas/3.1/dialect/2024-11-10",
        "https://json-schema.org/draft/2020-12/schema",
    }
)
_DATA: Final = frozenset({"enum", "const", "default", "example", "examples"})
"""Members that hold values, and no schemas."""
_RANGES: Final = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_IGNORED: Final = frozenset({"accept", "content-type", "authorization"})
"""Header parameters that have no meaning (OpenAPI 3.1, section 4.8.12.1)."""
_SEPARATORS: Final = {"form": ",", "spaceDelimited": " ", "pipeDelimited": "|"}
_STYLES: Final = {
    "path": ("simple",),
    "header": ("simple",),
    "cookie": ("form",),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
}


def _checked(size: int) -> int:
    if size > LARGEST_CHECKED:
        raise wrong(f"is at most {LARGEST_CHECKED >> 10}KiB: other requests wait while a body is checked")
    return size


class OpenApi(Section):
    """The document that a route's requests are held to, OpenAPI 3.0 or 3.1."""

    document: Text
    """The file, YAML or JSON."""
    base: UrlPath | None = None
    """The path that the document's paths are below, as the service gets it; unset: that of the document's servers."""
    unknown_query: Literal["deny", "allow"] = "deny"
    """Whether a query may have parameters that the document does not know."""
    body: Annotated[Size, AfterValidator(_checked)] | None = Field(
        None, description="JSON bodies up to this size (bytes) are checked, and larger ones denied; unset: none is."
    )


class OpenApis:
    """Reads the documents of a policy's routes, and collects what is wrong with them."""

    def __init__(self, document: Document, files: Files, hashes: dict[str, str]) -> None:
        """hashes: takes the digest of each document, by the member that names it."""
        self.document = document
        self.problems: list[Problem] = []
        self.apis: dict[int, Api] = {}
        """By the number of the route."""
        self._files = files
        self._hashes = hashes

    def read(self) -> None:
        """Read every document that a route names."""
        routes = self.document.at(("routes",))
        for index, route in enumerate(routes if isinstance(routes, list) else ()):
            if isinstance(route, dict) and route.get("openapi") is not None:
                self._read(index, ("routes", index, "openapi"))

    def _read(self, index: int, at: Location) -> None:
        if any(known[: len(at)] == at for known in self.document.unresolved):
            return
        try:
            named = OpenApi.model_validate(self.document.at(at))
        except ValidationError:
            return  # which the whole policy's validation says
        place = (*at, "document")
        try:
            content = self._files.read(named.document)
        except UnreadableError as error:
            hint = f"paths are relative to {self._files.directory}"
            self.problems.append(self.document.problem(place, f"the file {error}", hint=hint))
            return
        self._hashes["/".join(map(str, place))] = hashlib.sha256(content).hexdigest()
        file = str(Path(self.document.file).parent / named.document)
        compiled, problems = _compiled(content, file, named.base, named.unknown_query == "allow", named.body or 0)
        self.problems += problems
        if compiled is not None:
            self.apis[index] = compiled


@lru_cache(maxsize=8)
def _compiled(
    content: bytes,
    file: str,
    base: str | None,
    unknown: bool,
    body: int,
) -> tuple[Api | None, tuple[Problem, ...]]:
    """Compile a document; remembered for reloads that bring the same again. All that it depends on is the key."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return None, (Problem(file, line, 1, "error", "", "the document is not UTF-8"),)
    document = parse(text, file, None)
    if document.value is None or document.problems:
        problems = document.problems or [document.problem((), "the document is empty", found="")]
        return None, tuple(problems[:MOST_PROBLEMS])
    compiler = _Compiler(document, base, body)
    api = Api(unknown=unknown, body=body)
    try:
        compiler.compile(api)
    except _EnoughError:
        pass
    except Exception as error:  # a document may be anything
        at = document.problem((), f"the document can't be compiled: {type(error).__name__}", found="")
        return None, (*compiler.problems, at)
    return (None if compiler.problems else api), tuple(compiler.problems)


class _EnoughError(Exception):
    """There are as many problems as anybody reads."""


class _WrongError(Exception):
    """A part of the document that can't be used, which is on record."""


class _Compiler:
    """Compiles one document."""

    def __init__(self, document: Document, base: str | None, body: int) -> None:
        self.document = document
        self.base = base
        self.body = body
        self.problems: list[Problem] = []
        self._rs = import_module("jsonschema_rs")  # only here: it takes 30 ms, and 15 MB
        self._registry: Any = None
        self._seen: set[Location] = set()  # schemas that were looked through
        self._schemas: dict[Location, Schema] = {}
        self._old = False
        self._branches = _has_branches(document.value)

    # What is wrong.

    def wrong(self, at: Location, message: str, hint: str = "", found: str | None = "", *, key: bool = False) -> None:
        """Put an error on record."""
        problem = self.document.problem(at, message, hint=hint, found=found, key=key)
        if problem not in self.problems:
            self.problems.append(problem)
        if len(self.problems) >= MOST_PROBLEMS:
            raise _EnoughError

    def refuse(self, at: Location, message: str, hint: str = "", found: str | None = "") -> _WrongError:
        """Put an error on record, and make what is raised."""
        self.wrong(at, message, hint, found)
        return _WrongError()

    # The parts of a document, with references followed.

    def follow(self, at: Location) -> tuple[Any, Location]:
        """Return what stands at a place, or where its reference leads, and that place."""
        value, seen = self.document.at(at), {at}
        while isinstance(value, dict) and "$ref" in value:
            at = self.target((*at, "$ref"), value["$ref"])
            if at in seen:
                raise self.refuse(at, "references lead in a circle")
            seen.add(at)
            value = self.document.at(at)
        return value, at

    def target(self, at: Location, reference: object) -> Location:
        """Return where a reference leads (RFC 6901, section 6); raises _WrongError where that is nowhere in here."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise self.refuse(at, "a reference that leads out of the document: none is followed", "begin it with #/")
        if not reference.startswith("#/") and reference != "#":
            raise self.refuse(at, "a reference that is no JSON pointer", "begin it with #/")
        value = self.document.value
        steps = [] if reference == "#" else unquote(reference[2:]).split("/")
        found: Location = ()
        for step in steps:
            name: str | int = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and step.isdecimal() and len(step) < 6 and int(step) < len(value):
                name = int(step)
                value = value[name]
            elif isinstance(value, dict) and name in value:
                value = value[str(name)]
            else:
                names = value if isinstance(value, dict) else ()
                raise self.refuse(at, "a reference to what is not there", nearest(str(name), names), None)
            found = (*found, name)
        return found

    def mapping(self, at: Location, what: str) -> tuple[Mapping[str, Any], Location]:
        """Return a mapping that has to be there."""
        value, at = self.follow(at)
        if not isinstance(value, dict):
            raise self.refuse(at, f"{what} has to be a mapping")
        return value, at

    # The document.

    def compile(self, api: Api) -> None:
        """Compile every operation."""
        try:
            top, _ = self.mapping((), "the document")
            self._version(top)
            paths, _ = self.mapping(("paths",), "`paths`")
        except _WrongError:
            return
        prepared = _prepared(self.document.value, self._old, self._read_only)
        self._registry = self._rs.Registry([(_URI, prepared)], draft=self._rs.Draft202012)
        api.known = frozenset(self._keys(top))
        for template in paths:
            if template.startswith("x-"):
                continue
            try:
                self._path(api, template)
            except _WrongError:
                continue
        if not self.problems and not api.operations:
            self.wrong(("paths",), "the document has no operation: everything would be denied", key=True)

    def _version(self, top: Mapping[str, Any]) -> None:
        version = top.get("openapi")
        if "swagger" in top:
            raise self.refuse(("swagger",), "Swagger 2.0 is not read", "convert it to OpenAPI 3.1")
        if not isinstance(version, str) or not version.startswith(("3.0.", "3.1.")):
            hint = "3.1.1, say" if version is None else "3.0.x and 3.1.x are read"
            raise self.refuse(("openapi",), "`openapi` has to be the version of OpenAPI", hint, None)
        self._old = version.startswith("3.0.")
        dialect = top.get("jsonSchemaDialect")
        if dialect is not None and dialect not in _DIALECTS:
            raise self.refuse(("jsonSchemaDialect",), "schemas are those of JSON Schema 2020-12", found=None)

    def _keys(self, top: Mapping[str, Any]) -> Iterator[str]:
        """Yield the query parameters that API keys come in."""
        components = top.get("components")
        schemes = components.get("securitySchemes") if isinstance(components, dict) else None
        for name in schemes if isinstance(schemes, dict) else ():
            try:
                scheme, at = self.mapping(("components", "securitySchemes", name), "a security scheme")
            except _WrongError:
                continue
            if (scheme.get("type"), scheme.get("in")) == ("apiKey", "query"):
                if isinstance(scheme.get("name"), str):
                    yield scheme["name"]
                else:
                    self.wrong(at, "an API key without a name")

    def _path(self, api: Api, template: str) -> None:
        at: Location = ("paths", template)
        if not template.startswith("/"):
            raise self.refuse(at, "a path begins with a slash")
        segments = self._segments(template, at)
        item, inside = self.mapping(at, "a path")
        shared = self._parameters((*inside, "parameters"))
        for method in METHODS:
            if method not in item:
                continue
            try:
                self._operation(api, template, segments, (*inside, method), shared)
            except _WrongError:
                continue
        unlike = [name for name in item if name.lower() in METHODS and name not in METHODS]
        for name in unlike:
            self.wrong((*inside, name), "methods are written in small letters", name.lower(), key=True)

    def _segments(self, template: str, at: Location) -> tuple[Segment, ...]:
        found: list[Segment] = []
        names: set[str] = set()
        for segment in template[1:].split("/"):
            before, brace, rest = segment.partition("{")
            name, end, behind = rest.partition("}")
            if "}" in before or (brace and (not end or not name or "{" in name)):
                raise self.refuse(at, "a path with a brace that has no other one", found=None)
            if "{" in behind or "}" in behind:
                raise self.refuse(at, "a segment of a path has one parameter at the most", found=None)
            if name in names:
                raise self.refuse(at, f"the parameter {name} stands twice in the path")
            literals = [self._canonical(part, at, whole=not brace) for part in (before, behind)]
            if brace:
                names.add(name)
                found.append(Segment(literals[0], name, literals[1]))
            else:
                found.append(Segment(literals[0]))
        return tuple(found)

    def _canonical(self, literal: str, at: Location, *, whole: bool) -> str:
        """Write a literal part of a path as the gateway writes paths."""
        if not literal:
            return ""
        encoded = quote(literal, safe="!$&'()*+,;=:@%~")
        path = canonical_path(f"/{encoded}" if whole else f"/x{encoded}x")
        if not isinstance(path, CanonicalPath):
            raise self.refuse(at, f"no request has such a path: {path.detail}")
        return path.text[1:] if whole else path.text[2:-1]

    def _bases(self, at: Location) -> tuple[tuple[Segment, ...], ...]:
        """Return the segments of the paths that an operation's servers are below; servers of its own come first."""
        if self.base is not None:
            return (_literal(self.base),)
        for owner in (at, at[:-1], ()):
            servers = self.document.at((*owner, "servers"))
            if isinstance(servers, list) and servers:
                found = [self._server((*owner, "servers", index)) for index in range(len(servers))]
                return tuple(dict.fromkeys(found))
        return ((),)

    def _server(self, at: Location) -> tuple[Segment, ...]:
        server, at = self.mapping(at, "a server")
        url, variables = server.get("url"), server.get("variables")
        if not isinstance(url, str):
            raise self.refuse(at, "a server without a url")
        for name, variable in variables.items() if isinstance(variables, dict) else ():
            default = variable.get("default") if isinstance(variable, dict) else None
            url = url.replace("{" + name + "}", str(default))
        try:
            path = urlsplit(url).path.rstrip("/")
        except ValueError:
            raise self.refuse((*at, "url"), "the server's url is none", found=None) from None
        if path and not path.startswith("/"):
            hint = "name the path in the policy: base: /"
            raise self.refuse((*at, "url"), "a server's url that is relative to where the document is", hint, None)
        canonical = canonical_path(path) if path else CanonicalPath("")
        if not isinstance(canonical, CanonicalPath) or canonical.odd or "{" in path:
            raise self.refuse((*at, "url"), "the server's path is none that a request has", found=None)
        return _literal(canonical.text)

    def _operation(
        self,
        api: Api,
        template: str,
        segments: tuple[Segment, ...],
        at: Location,
        shared: Mapping[tuple[str, str], Parameter],
    ) -> None:
        node, at = self.mapping(at, "an operation")
        parameters = {**shared, **self._parameters((*at, "parameters"))}
        named = [segment.name for segment in segments if segment.name is not None]
        for name in named:
            if (name, "path") not in parameters:
                self.wrong(at, f"the path's parameter {name} is not described", "list it in `parameters`", key=True)
                raise _WrongError
        for name, place in parameters:
            if place == "path" and name not in named:
                self.wrong(at, f"there is no {{{name}}} in the path", nearest(name, named), key=True)
                raise _WrongError
        content, required = self._body(node, at)
        operation = Operation(
            method=str(at[-1]).upper(),
            template=template,
            line=self.document.place(at, key=True)[0],
            query={name: found for (name, place), found in parameters.items() if place == "query"},
            others=tuple(found for (_, place), found in parameters.items() if place in {"header", "cookie"}),
            content=content,
            body_required=required,
        )
        own = tuple(
            None
            if segment.name is None
            else replace(parameters[segment.name, "path"], prefix=segment.prefix, suffix=segment.suffix)
            for segment in segments
        )
        for base in self._bases(at):
            whole = (*base, *segments)
            if not api.add(whole, replace(operation, path=(*(None for _ in base), *own))):
                message = "there is another operation at such a path, with other names of parameters"
                self.wrong(("paths", template), message, key=True)
        if len(api.operations) > MOST_OPERATIONS:
            self.wrong(("paths",), f"more than {MOST_OPERATIONS:,} operations", key=True)
            raise _EnoughError

    # Parameters.

    def _parameters(self, at: Location) -> dict[tuple[str, str], Parameter]:
        found: dict[tuple[str, str], Parameter] = {}
        if self.document.at(at) is None:
            return found
        listed, at = self.follow(at)
        if not isinstance(listed, list):
            raise self.refuse(at, "`parameters` has to be a list")
        seen: set[tuple[str, str]] = set()
        for index in range(len(listed)):
            node, inside = self.mapping((*at, index), "a parameter")
            name, place = node.get("name"), node.get("in")
            if not isinstance(name, str) or not name:
                raise self.refuse(inside, "a parameter without a name")
            if place not in _STYLES:
                hint = nearest(str(place), _STYLES) or f"one of {', '.join(_STYLES)}"
                raise self.refuse((*inside, "in"), "no place of a parameter", hint, None)
            key = (name.lower() if place == "header" else name, place)
            if key in seen:
                raise self.refuse(inside, f"the parameter {name} is described twice")
            seen.add(key)
            if place != "header" or self._is_clients(name, inside):
                found[name, place] = self._parameter(node, inside)
        return found

    def _is_clients(self, name: str, at: Location) -> bool:
        """Tell whether a header parameter is looked at: the gateway writes some itself, whatever the client sends."""
        if re.fullmatch(TOKEN, name) is None:
            raise self.refuse((*at, "name"), "no request keeps a header of this name", "letters, digits and -", None)
        return name.lower() not in _IGNORED and name.lower().encode("ascii") not in REPLACED

    def _parameter(self, node: Mapping[str, Any], at: Location) -> Parameter:
        name, place = node["name"], node["in"]
        required = node.get("required", False)
        if not isinstance(required, bool):
            raise self.refuse((*at, "required"), "has to be true or false", found=None)
        if place == "path" and not required:
            raise self.refuse((*at, "required"), "a path's parameter is always required", "write required: true")
        common = {"name": name, "place": place, "required": required}
        if "content" in node:
            content, inside = self.mapping((*at, "content"), "`content`")
            media = [kind for kind in content if is_json(kind.lower())]
            if len(content) != 1 or not media:
                raise self.refuse(inside, "a parameter's content is one media type, and JSON")
            schema = self.schema((*inside, media[0], "schema"))
            return Parameter(schema=schema, form="json", **common)
        if "schema" not in node:
            raise self.refuse(at, f"the parameter {name} has no schema")
        style = node.get("style", _STYLES[place][0])
        if style not in _STYLES[place]:
            raise self.refuse((*at, "style"), "this style is not read", f"one of {', '.join(_STYLES[place])}", None)
        explode = node.get("explode", style == "form")
        schema, where = self.schema((*at, "schema")), (*at, "schema")
        kinds = self.kinds(where)
        empty = place == "query" and node.get("allowEmptyValue") is True
        if style == "deepObject":
            if kinds - {"null"} != {"object"}:
                raise self.refuse(where, "a deepObject has the type object")
            members = {member: self._scalars(at_member) for member, at_member in self._members(where)}
            return Parameter(schema=schema, form="deep", members=members, **common)
        if kinds - {"null"} == {"array"}:
            form: Form = "repeated" if explode and style == "form" and place == "query" else "separated"
            return Parameter(
                schema=schema,
                form=form,
                separator=_SEPARATORS.get(style, ","),
                kinds=self._items(where),
                empty=empty,
                **common,
            )
        if "object" in kinds and kinds != _TYPES:
            hint = "style: deepObject, or content: {application/json: …}"
            raise self.refuse(where, "an object is read in these forms alone", hint)
        if "array" in kinds and kinds != _TYPES:
            raise self.refuse(where, "a parameter is a list, or it is none", "give it one type")
        return Parameter(schema=schema, kinds=_ordered(kinds), empty=empty, **common)

    def _scalars(self, at: Location) -> tuple[str, ...]:
        kinds = self.kinds(at)
        if kinds != _TYPES and kinds & {"array", "object"}:
            raise self.refuse(at, "what is in a list or an object of a parameter is a single value")
        return _ordered(kinds)

    def _items(self, at: Location) -> tuple[str, ...]:
        """Return the types of a list's items."""
        for value, place in self._parts(at):
            if isinstance(value, dict) and "items" in value:
                return self._scalars((*place, "items"))
        return ("string",)

    def _members(self, at: Location) -> Iterator[tuple[str, Location]]:
        for value, place in self._parts(at):
            properties = value.get("properties") if isinstance(value, dict) else None
            for name in properties if isinstance(properties, dict) else ():
                yield name, (*place, "properties", name)

    def _parts(self, at: Location, seen: frozenset[Location] = frozenset()) -> Iterator[tuple[Any, Location]]:
        """Yield a schema, and those that hold beside it: where its reference leads, and what is in its allOf."""
        if at in seen:
            return
        value = self.document.at(at)
        yield value, at
        if not isinstance(value, dict):
            return
        if "$ref" in value:
            yield from self._parts(self.target((*at, "$ref"), value["$ref"]), seen | {at})
        for index in range(len(value["allOf"]) if isinstance(value.get("allOf"), list) else 0):
            yield from self._parts((*at, "allOf", index), seen | {at})

    def kinds(self, at: Location, seen: frozenset[Location] = frozenset()) -> frozenset[str]:
        """Return JSON's types that a schema lets a value have, as far as it says so plainly."""
        kinds = _TYPES
        for value, place in self._parts(at):
            if place in seen or not isinstance(value, dict):
                continue
            named = value.get("type")
            if named is not None:
                known = frozenset(named if isinstance(named, list) else [named]) & _TYPES
                if value.get("nullable") is True and self._old:
                    known |= {"null"}
                kinds &= known | ({"integer"} if "number" in known else set())
            elif "const" in value or isinstance(value.get("enum"), list):
                values = [value["const"]] if "const" in value else value["enum"]
                kinds &= frozenset(map(_kind_of, values))
            for member in ("anyOf", "oneOf"):
                count = len(value[member]) if isinstance(value.get(member), list) else 0
                if count:
                    inner = [self.kinds((*place, member, index), seen | {place}) for index in range(count)]
                    kinds &= frozenset().union(*inner)
        return kinds

    # Bodies.

    def _body(self, node: Mapping[str, Any], at: Location) -> tuple[tuple[MediaType, ...] | None, bool]:
        if "requestBody" not in node:
            return None, False
        body, inside = self.mapping((*at, "requestBody"), "`requestBody`")
        content, place = self.mapping((*inside, "content"), "`content`")
        found = []
        for name in content:
            read = read_media_type(name)
            if read is None or ("*" in read[0] and not read[0].endswith("/*")):
                raise self.refuse((*place, name), "no media type", "like application/json")
            kind, parameters = read
            described, where = self.mapping((*place, name), "a media type")
            schema = None
            if self.body and (is_json(kind) or kind in {"*/*", "application/*"}):
                schema = self.schema((*where, "schema")) if "schema" in described else _ANYTHING
            found.append(MediaType(kind, tuple(sorted(parameters.items())), schema))
        required = body.get("required", False)
        if not isinstance(required, bool):
            raise self.refuse((*inside, "required"), "has to be true or false", found=None)
        return tuple(sorted(found, key=lambda known: known.rank)), required

    # Schemas.

    def schema(self, at: Location) -> Schema:
        """Compile the schema at a place."""
        known = self._schemas.get(at)
        if known is not None:
            return known
        before = len(self.problems)
        self._look_through(at)
        if len(self.problems) > before:
            raise _WrongError
        rs = self._rs
        pointer = "".join(f"/{_escaped(str(step))}" for step in at)
        try:
            validator = rs.Draft202012Validator(
                {"$ref": f"{_URI}#{pointer}"},
                registry=self._registry,
                pattern_options=rs.RegexOptions(),
                offline=True,
                validate_formats=True,
                mask="the value",
            )
        except (rs.ValidationError, rs.ReferencingError, ValueError) as error:
            place = tuple(getattr(error, "instance_path", ()))
            where = place if place and self.document.at(place) is not None else at
            if where[-1:] in {("pattern",)}:
                raise self._pattern(where) from None
            raise self.refuse(where, "this is no valid schema (JSON Schema 2020-12)", found=None) from None
        made = Schema(validator.is_valid, _flaw_of(validator, self._branches))
        self._schemas[at] = made
        return made

    def _pattern(self, at: Location) -> _WrongError:
        message = "not a pattern that takes a time linear in the text"
        return self.refuse(at, message, "no look-around, no back reference, no huge repetition (Rust's regex)", None)

    def _look_through(self, at: Location) -> None:
        """Refuse, in a schema and all that it leads to, what would leave the document, and what has another meaning."""
        waiting = [at]
        while waiting:
            at = waiting.pop()
            if at in self._seen:
                continue
            self._seen.add(at)
            value = self.document.at(at)
            if isinstance(value, bool):
                continue
            if not isinstance(value, dict):
                self.wrong(at, "a schema has to be a mapping, true or false")
                continue
            for member in _ELSEWHERE:
                if member in value and isinstance(value[member], str):
                    self.wrong((*at, member), f"{member} is not read", "refer by $ref: '#/…' alone")
            if "$ref" in value:
                try:
                    waiting.append(self.target((*at, "$ref"), value["$ref"]))
                except _WrongError:
                    continue
            self._patterns(value, at)
            for member in _MAPS:
                if isinstance(value.get(member), dict):
                    waiting += [(*at, member, name) for name in value[member]]
            for member in _LISTS:
                if isinstance(value.get(member), list):
                    waiting += [(*at, member, index) for index in range(len(value[member]))]
            waiting += [(*at, member) for member in _SINGLE if isinstance(value.get(member), dict)]

    def _patterns(self, value: Mapping[str, Any], at: Location) -> None:
        named = value.get("patternProperties")
        patterns: list[tuple[Location, object]] = [((*at, "pattern"), value.get("pattern"))]
        patterns += [((*at, "patternProperties", name), name) for name in (named if isinstance(named, dict) else ())]
        for place, pattern in patterns:
            if isinstance(pattern, str):
                try:
                    self._rs.Draft202012Validator({"pattern": pattern}, pattern_options=self._rs.RegexOptions())
                except ValueError:
                    self._pattern(place)

    def _read_only(self, at: object) -> bool:
        """Tell whether a property's schema, with its reference followed, is that of what only responses have."""
        seen: set[str] = set()
        value = at
        while isinstance(value, dict) and isinstance(value.get("$ref"), str) and value["$ref"] not in seen:
            if value.get("readOnly") is True:
                return True
            seen.add(value["$ref"])
            try:
                value = self.document.at(self.target((), value["$ref"]))
            except _WrongError:
                self.problems.pop()
                return False
        return isinstance(value, dict) and value.get("readOnly") is True


_ANYTHING: Final = Schema(lambda value: True, lambda value: "")


def _flaw_of(validator: Any, branches: bool) -> Callable[[object], str]:
    """Return what says of a value what it does not meet: where in the schema, and what stands there.

    The library remembers nothing while it looks for words: where a schema leads to itself by two ways (allOf of two, a
    oneOf of filters that hold filters), each level of a value doubles the time at least. branches: the document has
    alternatives, of which it lists all that is wrong with each.
    """
    deepest, most = (1, MOST_TOLD) if branches else (DEEPEST_TOLD, None)

    def flaw(value: object) -> str:
        if not _is_small(value, deepest, most):
            return ""
        try:
            validator.validate(value)
        except ValueError as error:
            return _told(error)
        return ""

    return flaw


def _told(error: Any) -> str:
    path = [str(step) for step in error.schema_path]
    names = [name for member, name in pairwise(path) if member == "properties"]
    within = f" in {'.'.join(names)}" if names else ""
    text = f"does not meet `{error.kind.name}{_asked(error.kind)}`{within}"
    return text if text.isprintable() and len(text) < 300 else f"does not meet `{error.kind.name}`"


def _asked(kind: Any) -> str:
    """Return the schema's own words of a keyword, where they are short."""
    for name in ("limit", "types", "expected_value", "options", "pattern", "format", "property", "multiple_of"):
        asked = getattr(kind, name, None)
        if asked is not None:
            text = str(asked)
            return f": {text}" if len(text) <= 120 else ""
    return ""


def _is_small(value: object, deepest: int, most: int | None) -> bool:
    """Tell whether a value has no more levels of lists and objects, and no more parts; most None: any number."""
    level, count = [value], 1
    for _ in range(deepest + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        count += len(level)
        if not level:
            return most is None or count <= most
    return False


def _has_branches(value: object) -> bool:
    """Tell whether a document has alternatives anywhere."""
    level = [value]
    while level:
        if any(isinstance(outer, dict) and ("anyOf" in outer or "oneOf" in outer) for outer in level):
            return True
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return False


def _prepared(value: Any, old: bool, read_only: Callable[[object], bool]) -> Any:
    """Return a document whose schemas say in JSON Schema 2020-12 what they say of requests.

    What OpenAPI 3.0 has in its own way (nullable, exclusive bounds) is written anew; int32 and int64 become bounds; and
    of a property that only responses have nothing is required.
    """
    if isinstance(value, list):
        return [_prepared(item, old, read_only) for item in value]
    if not isinstance(value, dict):
        return value
    made = {
        name: member if name in _DATA and not isinstance(member, dict) else _prepared(member, old, read_only)
        for name, member in value.items()
    }
    properties, required = value.get("properties"), value.get("required")
    if isinstance(properties, dict) and isinstance(required, list):
        made["required"] = [name for name in required if not read_only(properties.get(name))]
    kind, form = value.get("type"), value.get("format")
    if (kind == "integer" or (isinstance(kind, list) and "integer" in kind)) and form in ("int32", "int64"):
        least, most = _RANGES[form]
        made.setdefault("minimum", least)
        made.setdefault("maximum", most)
    if not old:
        return made
    if "$ref" in value and isinstance(value["$ref"], str):
        return {"$ref": value["$ref"]}  # OpenAPI 3.0.4, section 4.8.23: nothing beside it counts
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(value.get(exclusive), bool) and made.pop(exclusive) and bound in made:
            made[exclusive] = made.pop(bound)
    if value.get("nullable") is True and isinstance(kind, str):
        made["type"] = [kind, "null"]
        if isinstance(value.get("enum"), list) and None not in value["enum"]:
            made["enum"] = [*value["enum"], None]
    return made


def _ordered(kinds: frozenset[str]) -> tuple[str, ...]:
    """Return the types of single values, in the order in which a text is tried; a number may be an integer."""
    scalars = tuple(kind for kind in _KINDS if kind in kinds)
    if "number" in scalars:
        scalars = tuple(kind for kind in scalars if kind != "integer")
    return scalars or ("string",)


def _kind_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    names: tuple[tuple[type, str], ...] = ((int, "integer"), (float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "null" if value is None else "object")


def _literal(path: str) -> tuple[Segment, ...]:
    return tuple(Segment(segment) for segment in path.strip("/").split("/") if segment)


def _escaped(step: str) -> str:
    return quote(step.replace("~", "~0").replace("/", "~1"), safe="~")
