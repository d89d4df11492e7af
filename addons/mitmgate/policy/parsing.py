"""From the text of a policy to a Document.

ruamel.yaml parses; the values are built here, because a policy needs what a general constructor does not give:
positions for every member, every duplicate key at once, the types of YAML 1.2's core schema alone (no dates, no
`on`), no tags, references to the environment, and a bound on what anchors, aliases and merge keys expand to.
"""

import re
from collections.abc import Mapping

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from mitmgate.policy.document import Document, Place
from mitmgate.policy.interpolation import UnresolvedError, interpolate
from mitmgate.policy.problem import Location, Problem, dotted

MAX_CHARACTERS = 1 << 20
MAX_VALUES = 100_000  # after aliases are expanded
MAX_DEPTH = 32
MAX_FOREIGN_DEPTH = 100  # of what is no policy, such as an API's document

_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(
    _TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge", "timestamp", "value")
)
_INT = re.compile(r"[-+]?[0-9]{1,19}|0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SPECIAL_FLOAT = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_QUOTED = re.compile(r" ?'[^'<\\][^']+'")  # a word of the file in a parser's message; it names tokens as '<scalar>'
_TABS = re.compile(r"^\t+", re.MULTILINE)


def parse(text: str, file: str, environ: Mapping[str, str] | None) -> Document:
    """Parse a policy's text, YAML 1.2 or JSON. Never raises: what is wrong stands in `problems`.

    environ: None for what is no policy: `${NAME}` means nothing there, numbers may be keys, and it may be deeper.
    """
    document = Document(file)
    if len(text) > MAX_CHARACTERS:
        document.problems.append(document.problem((), f"the file is longer than {MAX_CHARACTERS} characters"))
        return document
    if text.lstrip().startswith("{"):
        text = _TABS.sub(lambda tabs: " " * len(tabs.group()), text)  # JSON may indent by tabs, YAML may not
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except RecursionError:
        document.problems.append(document.problem((), f"nested more than {MAX_DEPTH} deep"))
    except Exception as error:  # ruamel.yaml's scanner has more ways to fail than YAMLError
        document.problems.append(_syntax(error, text, file))
    else:
        if node is None:
            document.problems.append(
                document.problem(
                    (), "the file is empty", found="", hint="" if environ is None else "start with `version: 1`"
                )
            )
        else:
            try:
                document.value = _Builder(document, environ).build(node, (), 0)
            except _TooMuchError as error:
                document.value = None
                document.problems.append(_at(node, file, str(error)))
    return document


class _TooMuchError(Exception):
    """The document is deeper or larger than any policy."""


class _Builder:
    """Builds the values of one document."""

    def __init__(self, document: Document, environ: Mapping[str, str] | None) -> None:
        self.document = document
        self.deepest = MAX_FOREIGN_DEPTH if environ is None else MAX_DEPTH
        self.environ = environ
        self.count = 0

    def build(self, node: Node, location: Location, depth: int) -> object:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _TooMuchError(f"more than {MAX_VALUES} values after aliases are expanded")
        if depth > self.deepest:
            raise _TooMuchError(f"nested more than {self.deepest} deep; an anchor that contains itself has no end")
        self.document.values.setdefault(location, _place(node))
        if str(node.tag) not in _TAGS:
            self._add(node, location, "a tag has no meaning here", "leave it out, or quote a value that begins with !")
        if isinstance(node, MappingNode):
            return self._mapping(node, location, depth)
        if isinstance(node, SequenceNode):
            return [self.build(item, (*location, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, location) if isinstance(node, ScalarNode) else None

    def _mapping(self, node: MappingNode, location: Location, depth: int) -> dict[str, object]:
        members: dict[str, object] = {}
        for key_node, (name, value_node) in self._members(node, location, set()).values():
            inner = (*location, name)
            self.document.keys[inner] = _place(key_node)
            members[name] = self.build(value_node, inner, depth + 1)
        return members

    def _members(
        self, node: MappingNode, location: Location, active: set[int]
    ) -> dict[str, tuple[Node, tuple[str, Node]]]:
        """Collect the members of a mapping, merged ones included; own members win, then the earlier merge."""
        if id(node) in active or len(active) > MAX_DEPTH:
            raise _TooMuchError("a merge key that merges itself")
        own: dict[str, tuple[Node, tuple[str, Node]]] = {}
        merged: list[MappingNode] = []
        merges = 0
        for key_node, value_node in node.value:
            self.count += 1
            if self.count > MAX_VALUES:
                raise _TooMuchError(f"more than {MAX_VALUES} values after aliases are expanded")
            if str(key_node.tag) == _TAG + "merge":
                merges += 1
                if merges > 1:
                    self._add(key_node, location, "a second merge key", "write <<: [*a, *b]")
                sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                for source in sources:
                    if isinstance(source, MappingNode):
                        merged.append(source)
                    else:
                        self._add(source, location, "only mappings can be merged", "write <<: *anchor")
                continue
            name = self._key(key_node, location)
            if name is None:
                continue
            if name in own:
                first = _place(own[name][0])
                self._add(key_node, (*location, name), "duplicate key", f"first at line {first[0]}")
                continue
            own[name] = (key_node, (name, value_node))
        for source in merged:
            for name, member in self._members(source, location, active | {id(node)}).items():
                own.setdefault(name, member)
        return own

    def _key(self, node: Node, location: Location) -> str | None:
        if not isinstance(node, ScalarNode):
            self._add(node, location, "a key must be text, not a list or a mapping")
            return None
        text = str(node.value)
        if _surrogate(text):
            self._add(node, location, "a key with an unpaired surrogate")
            return None
        if self.environ is not None and node.style is None and not isinstance(_resolve(node), str):
            self._add(node, (*location, text), "a key must be text", f'write "{text}"')
        return text

    def _scalar(self, node: ScalarNode, location: Location) -> object:
        value = _resolve(node)
        if not isinstance(value, str):
            return value
        if _surrogate(value):
            try:  # JSON writes characters beyond the basic plane as a pair of escapes
                value = value.encode("utf-16", "surrogatepass").decode("utf-16")
            except UnicodeDecodeError:
                self._unknown(node, location, "text with an unpaired surrogate")
                return ""
        if self.environ is None:
            return value
        try:
            return interpolate(value, self.environ)
        except UnresolvedError as error:
            self._unknown(node, location, str(error), error.hint)
            return ""

    def _unknown(self, node: Node, location: Location, message: str, hint: str = "") -> None:
        self.document.unresolved.add(location)
        self._add(node, location, message, hint)

    def _add(self, node: Node, location: Location, message: str, hint: str = "") -> None:
        line, column = _place(node)
        self.document.problems.append(
            Problem(self.document.file, line, column, "error", dotted(location), message, hint=hint)
        )


def _resolve(node: ScalarNode) -> object:
    """Resolve a scalar by YAML 1.2's core schema; anything quoted, or tagged !!str, is text."""
    text = str(node.value)
    if node.style is not None or str(node.tag) == _TAG + "str":
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def _surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _place(node: Node) -> Place:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _at(node: Node, file: str, message: str) -> Problem:
    line, column = _place(node)
    return Problem(file, line, column, "error", "", message)


def _syntax(error: Exception, text: str, file: str) -> Problem:
    """Turn a parser's exception into a problem."""
    line, column, message, hint = 1, 1, "not valid YAML", ""
    if isinstance(error, ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"the character U+{ord(text[error.position]):04X} is not allowed"
    elif isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            line, column = mark.line + 1, mark.column + 1
        # Without the words that it quotes: a password that begins with "*" or "&" is an alias or an anchor to YAML.
        message = _QUOTED.sub("", ", ".join(filter(None, (error.problem, error.context)))) or message
        lines = text.splitlines()
        if line <= len(lines) and "${" in lines[line - 1]:
            hint = "inside [...] and {...} a ${NAME} is written in quotes"
        elif "\\t" in message:
            hint = "indent by spaces"
    elif isinstance(error, YAMLError):
        message = _QUOTED.sub("", str(error).partition("\n")[0]) or message
    return Problem(file, line, column, "error", "", message, hint=hint)
