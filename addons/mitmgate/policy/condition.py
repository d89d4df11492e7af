"""CEL conditions: compiled when the policy is loaded, evaluated fail-closed.

The evaluator (cel, in Rust) finds unknown variables and functions only when it meets them, so an expression with a
misspelt name would deny one request in a thousand. All names are therefore checked at load.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from itertools import count
from typing import Final, Protocol

from pydantic_core import SchemaError, SchemaValidator, core_schema

from mitmgate.policy.problem import nearest

MAX_SOURCE = 4096

FACTS: Final[Mapping[str, frozenset[str]]] = {
    "request": frozenset({"method", "path", "query", "host", "headers"}),
    "principal": frozenset({"subject", "roles", "scopes", "claims", "issuer"}),
    "client": frozenset({"ip", "certificate"}),
    "route": frozenset({"name"}),
}
"""The variables of a condition and their members, as core.authorize.facts_of makes them: names in request.headers are
lower-case, request.query is "" where there is none, principal.issuer is the policy's name of the issuer."""

_SAMPLE: Final[Mapping[str, Mapping[str, object]]] = {
    "request": {"method": "GET", "path": "/", "query": "", "host": "api.example", "headers": {}},
    "principal": {"subject": "alice", "roles": [], "scopes": [], "claims": {}, "issuer": "corp"},
    "client": {"ip": "192.0.2.1", "certificate": ""},
    "route": {"name": "route"},
}
_TYPES = frozenset({"int", "uint", "double", "string", "bytes", "bool", "list", "map", "null_type", "type"})
_FUNCTIONS = frozenset(
    {
        *("size", "startsWith", "endsWith", "contains", "matches"),
        *("int", "uint", "double", "string", "bytes", "dyn", "type", "duration", "timestamp"),
        *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
        *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    }
)
_MACROS = ("has", "all", "exists", "exists_one", "map", "filter")
_STRING = re.compile(
    r"""[bB]?[rR]\"\"\".*?\"\"\"|[bB]?[rR]'''.*?'''|[bB]?[rR]"[^"]*"|[bB]?[rR]'[^']*'"""
    r"""|\"\"\"(?:[^\\]|\\.)*?\"\"\"|'''(?:[^\\]|\\.)*?'''|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|//[^\n]*""",
    re.DOTALL,
)
_BOUND = re.compile(r"\.\s*(?:all|exists|exists_one|existsOne|map|filter)\s*\(\s*([A-Za-z_]\w*)\s*,")
_MEMBER = re.compile(r"(?<![\w.])(request|principal|client|route)\s*\.\s*([A-Za-z_]\w*)\b(?!\s*\()")
_MATCHES = re.compile(r"\bmatches\s*\(")
_LITERAL = re.compile(r"\.\s*matches\s*\(\s*\"(\d+)\"\s*\)")
_NUMBERED = re.compile(r'"(\d+)"')
_COST = re.compile(
    r"\.\s*(?P<once>all|exists|exists_one|existsOne)\s*\(|\.\s*(?P<made>map)\s*\(|\.\s*(?P<kept>filter)\s*\(|(?P<open>\()|(?P<close>\))"
    r"|(?<![\w.])(?P<linear>request|principal|client|route|in)\b"
)
_SYNTAX = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")


_FEW_VALUES: Final = frozenset(
    {"request.method", "principal.roles", "principal.scopes", "principal.issuer", "route.name"}
)
"""Members with few values in practice: a condition on these alone is remembered, since it is a function of them."""
LONGEST_KNOWN: Final = 512
"""Characters of the facts of an answer that is remembered: roles come from tokens, and may be long."""
KNOWN: Final = 1024
"""Answers that a condition remembers; when it knows so many, further ones are evaluated every time."""


LONGEST: Final = 0.1
"""Seconds of the processor that one evaluation may take. It can't be broken off, so that STEPS comes first; what took
longer all the same is denied, and so is told from what is only false."""
STEPS: Final = 300_000
"""Steps that an evaluation may take at the worst, some 0.3 us each: with loops in one another, the values that a token
or a head holds multiply. More is denied before it begins."""
_CHARACTERS: Final = 4096
"""Characters of texts that cost what another value costs, where the evaluator copies or compares them."""


class ConditionError(ValueError):
    """An expression that can't be a condition. hint: what would be right, or ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the hint apart from the message."""
        super().__init__(message)
        self.hint = hint


class _Program(Protocol):
    """What is used of cel.Program."""

    def execute(self, context: object) -> object: ...

    def variables(self) -> list[str]: ...

    def functions(self) -> list[str]: ...


_Functions = Mapping[str, Callable[[object], bool]]


class CelCondition:
    """A compiled condition (core.rules.Condition). variables: the facts that it reads; only those are needed."""

    __slots__ = (
        "_degree",
        "_few",
        "_functions",
        "_known",
        "_literals",
        "_program",
        "_reads",
        "reads",
        "source",
        "variables",
    )

    def __init__(
        self,
        source: str,
        program: _Program,
        reads: Mapping[str, frozenset[str]],
        functions: _Functions,
        degree: int,
        literals: int,
    ) -> None:
        """Take a program that compile_condition has checked. reads: the members that it reads of each variable.

        functions: what the program calls beside CEL's own. degree: the power of the number of values that bounds its
        steps, 0: no loop. literals: values that the expression itself may hold.
        """
        self.source = source
        self.variables = frozenset(reads)
        self._program = program
        self._functions = functions
        self._degree = degree
        self._literals = literals
        self.reads: Mapping[str, Iterable[str]] = {name: tuple(members) for name, members in reads.items()}
        self._reads = tuple((name, tuple(members)) for name, members in reads.items())
        self._few = all(f"{name}.{member}" in _FEW_VALUES for name, members in self._reads for member in members)
        self._known: dict[tuple[object, ...], bool] = {}

    def holds(self, facts: Mapping[str, object]) -> bool:
        """Evaluate over facts, shaped as FACTS says.

        Raises ValueError where there is no boolean value: a missing claim or header (ask `has` or `in` first), a type
        that does not fit, a result that is no bool; TimeoutError where it could take more than STEPS, or took longer
        than LONGEST. Never anything else, a panic in the evaluator included, so that the caller's denial is the only
        other outcome.
        """
        asked: tuple[object, ...] | None = None
        if self._few:
            asked = tuple([_value(facts[name], member) for name, members in self._reads for member in members])
            known = self._known.get(asked)
            if known is not None:
                return known
        result = self.value(facts)
        if result is not True and result is not False:
            raise ValueError(f"the condition's value is {type(result).__name__}, not bool")
        if asked is not None and len(self._known) < KNOWN and _size(asked) <= LONGEST_KNOWN:
            self._known[asked] = result
        return result

    def value(self, facts: Mapping[str, object]) -> object:
        """Evaluate, whatever the type of the value: of a condition as a whole it is to be a boolean.

        Raises ValueError and TimeoutError as `holds` does.
        """
        try:
            values: dict[str, object] = {name: _some(facts[name], members) for name, members in self._reads}
            if self._beyond(values):
                raise TimeoutError(f"the condition could take more than {STEPS} steps")
            for _ in range(2):  # what was only the interpreter's own pause, a collection, does not come twice
                began = time.thread_time()
                result = self._program.execute({**values, **self._functions})
                if time.thread_time() - began <= LONGEST:
                    return result
        except TimeoutError:
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a Rust panic is no Exception
            raise ValueError(f"{type(error).__name__}: {error}") from error
        raise TimeoutError(f"the condition took more than {LONGEST:g} s")

    def _beyond(self, values: Mapping[str, object]) -> bool:
        """Tell whether an evaluation over these facts could take more than STEPS."""
        return bool(self._degree) and (self._literals + _weight(values)) ** self._degree > STEPS

    def refuse_other_types(self) -> None:
        """Evaluate over sample facts: errors say nothing (claims are missing), but a value must be a bool.

        Raises ConditionError, also where the least facts are too many: that would go on without a bound, and hold a
        reload up, for a condition that no request could meet.
        """
        sample = {name: dict(members) for name, members in _SAMPLE.items()}
        if self._beyond({name: _some(sample[name], members) for name, members in self._reads}):
            message = f"any request could take more than {STEPS} steps"
            raise ConditionError(message, "loops in one another multiply: have fewer")
        try:
            result = self._program.execute({**sample, **self._functions})
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            return
        if not isinstance(result, bool):
            raise ConditionError(f"the value is {type(result).__name__}, and must be bool", "compare it with something")


def compile_condition(source: str) -> CelCondition:
    """Compile an expression; raises ConditionError for all that is known to be wrong before there is a request."""
    condition = compile_part(source)
    condition.refuse_other_types()
    return condition


def compile_part(source: str) -> CelCondition:
    """Compile an expression as a part of a condition, whose value may be of any type."""
    if len(source) > MAX_SOURCE:
        raise ConditionError(f"an expression of more than {MAX_SOURCE} characters")
    program = _compiled(source)
    texts = _STRING.findall(source)
    numbers = count()
    code = _STRING.sub(lambda _: f'"{next(numbers)}"', source)
    bound = set(_BOUND.findall(code))
    variables = frozenset(program.variables()) - bound - _TYPES
    for name in sorted(variables - FACTS.keys()):
        raise ConditionError(f"there is no variable {name}", nearest(name, FACTS) or f"one of {', '.join(FACTS)}")
    for name in program.functions():
        if name.isidentifier() and name not in _FUNCTIONS:
            raise ConditionError(f"there is no function {name}", nearest(name, (*_FUNCTIONS, *_MACROS)))
    for name in sorted(bound & FACTS.keys()):
        raise ConditionError(f"{name} is a variable already", "call the macro's variable x")
    literal = _LITERAL.findall(code)
    if len(_MATCHES.findall(code)) != len(literal):
        message = "matches takes a pattern that is written out: one that comes with a request is compiled for each"
        raise ConditionError(message, 'write request.path.matches("^/a")')
    for variable, member in _MEMBER.findall(code):
        if member not in FACTS[variable]:
            members = FACTS[variable]
            hint = nearest(member, members) or f"one of {', '.join(sorted(members))}"
            raise ConditionError(f"{variable} has no member {member}", hint)
    functions: _Functions = {f"pattern_{number}": _pattern(texts[int(number)]) for number in literal}
    if functions:
        program = _compiled(_NUMBERED.sub(lambda text: texts[int(text[1])], _LITERAL.sub(r".pattern_\1()", code)))
    reads = {name: _members_read(code, name) for name in variables}
    return CelCondition(source, program, reads, functions, _degree(code), 1 + code.count(","))


def _pattern(literal: str) -> Callable[[object], bool]:
    """Compile the pattern of a `matches` once: the evaluator would do so at every evaluation, for up to 0.1 s.

    pydantic's engine is the evaluator's own (Rust's regex: linear in the text, no backtracking).
    """
    pattern = _compiled(literal).execute({})
    try:
        found = SchemaValidator(core_schema.str_schema(pattern=str(pattern), strict=True)).isinstance_python
    except SchemaError as error:
        raise ConditionError(f"not a valid pattern: {literal}", "Rust's regex syntax, much like RE2's") from error

    def matches(text: object) -> bool:
        if type(text) is not str:
            raise ValueError("matches takes a text")
        return found(text)

    return matches


def _degree(code: str) -> int:
    """Return d so that an evaluation over n values takes at most some n**d steps; 0 without a loop.

    A loop in a loop multiplies. `map` and `filter` copy what they have made at every turn, as much as one more loop:
    with `filter` beside what is inside of it, with `map` around that, since it keeps what its inside makes. A fact that
    is named in a loop is copied, and what follows `in` is searched, as much as one more loop each.
    """
    degree = depth = 0
    within: list[int] = []
    for match in _COST.finditer(code):
        if match["close"]:
            depth -= within.pop() if within else 0
        elif match["linear"]:
            degree = max(degree, depth + 1) if depth else degree
        else:
            within.append(2 if match["made"] else 0 if match["open"] else 1)
            depth += within[-1]
            degree = max(degree, depth + 1 if match["kept"] else depth)
    return degree


def _weight(value: object) -> int:
    """Count the values of a fact, all the way down; long texts count for several."""
    if isinstance(value, str):
        return 1 + len(value) // _CHARACTERS
    if isinstance(value, dict):
        return 1 + sum(map(len, value)) // _CHARACTERS + sum(map(_weight, value.values()))
    return 1 + sum(map(_weight, value)) if isinstance(value, list) else 1


def _members_read(code: str, variable: str) -> frozenset[str]:
    """Name the members of a variable that an expression can read: converting the others is most of its time.

    All of them, where the variable is used as a whole, or in a way that is not plainly `variable.member`.
    """
    named = [member for name, member in _MEMBER.findall(code) if name == variable]
    used = re.findall(rf"(?<!\w){variable}\b", code)
    return frozenset(named) if named and len(named) == len(used) else FACTS[variable]


def _compiled(source: str) -> _Program:
    # Imported here because cel brings a REPL along, 0.2 seconds that a policy without a condition need not spend.
    logging.getLogger("cel").setLevel(logging.CRITICAL)  # it warns of every text that is none, of clients' choice
    cel = import_module("cel")
    try:
        program: _Program = cel.compile(source)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        match = _SYNTAX.search(str(error))
        if match is None:
            raise ConditionError("not valid CEL") from error
        line, column, message = match.groups()
        where = f"character {column}" if line == "1" else f"line {line}, character {column}"
        raise ConditionError(f"not valid CEL at {where}: {message.partition(' expecting ')[0]}") from error
    return program


def _value(fact: object, member: str) -> object:
    """Take a member as a key; raises ValueError where it is not there, as evaluating it would."""
    if not isinstance(fact, dict) or member not in fact:
        raise ValueError("the fact is not there")
    value = fact[member]
    return tuple(value) if isinstance(value, list) else value


def _size(asked: tuple[object, ...]) -> int:
    """Count the characters of facts that are texts or rows of them."""
    return sum(sum(map(len, value)) if isinstance(value, tuple) else len(str(value)) for value in asked)


def _some(fact: object, members: tuple[str, ...]) -> dict[str, object]:
    """Take the members that are read; raises TypeError or KeyError where they are not there."""
    if not isinstance(fact, Mapping):
        raise TypeError("the fact is not there")
    return {member: _plain(fact[member]) for member in members}


def _plain(value: object) -> object:
    """Turn a fact into what the evaluator takes; it knows neither sets nor mappings that are no dict."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("an integer beyond 64 bits has no exact value in CEL")
    return value
