"""Mutants of a module: one decision-relevant expression or statement changed in each, on its syntax tree."""

import ast
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "addons" / "mitmgate"

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_SHOWN = 90  # characters of a statement in a mutant's name


@dataclass(frozen=True)
class Mutant:
    """path: below the package. place: where in its module. number: which of the module's changes, in order.

    Without a number it is the module as it is.
    """

    path: str
    place: str
    change: str
    line: int
    last: int
    """The last line of what is changed, or, of an `if`, of its test."""
    number: int | None

    @property
    def name(self) -> str:
        """What names it for good: no line number, which every edit moves."""
        return f"{self.path} {self.place}: {self.change}"


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split()).replace("|", "¦").replace("`", "'")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _lines(node: ast.AST) -> tuple[int, int]:
    """Return the first and the last line of what a change concerns."""
    match node:
        case ast.comprehension(target=target, ifs=ifs):
            return target.lineno, max(part.end_lineno or part.lineno for part in ifs)
        case ast.If(test=test):
            return node.lineno, test.end_lineno or test.lineno
        case ast.expr() | ast.stmt():
            return node.lineno, node.end_lineno or node.lineno
    raise ValueError(f"no line of {node!r}")


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a module's tree: `put(new)` makes it, `put(old)` takes it back."""

    place: str
    first: int
    last: int
    text: str
    put: Callable[[ast.AST], None]
    old: ast.AST
    new: ast.AST


def _changes(tree: ast.Module) -> Iterator[_Change]:
    """Yield every change, in one order."""

    def visit(node: ast.AST, place: str) -> Iterator[_Change]:
        for field, value in ast.iter_fields(node):
            if field in {
                "annotation",
                "returns",
                "type_params",
                "decorator_list",
                "bases",
                "keywords",
            } and not isinstance(node, ast.Call):
                continue
            children = value if isinstance(value, list) else [value]
            for index, child in enumerate(children):
                if not isinstance(child, ast.AST):
                    continue
                inner = place
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inner = f"{place}.{child.name}" if place else child.name

                def put(new: ast.AST, owner: ast.AST = node, name: str = field, at: int = index) -> None:
                    held = getattr(owner, name)
                    if isinstance(held, list):
                        held[at] = new
                    else:
                        setattr(owner, name, new)

                for change, new in _replacements(child):
                    placed = ast.fix_missing_locations(ast.copy_location(new, child))
                    yield _Change(inner, *_lines(child), change, put, child, placed)
                yield from visit(child, inner)

    yield from visit(tree, "")


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for index, operator in enumerate(ops):
                changed = [*ops]
                changed[index] = _OPPOSITE[type(operator)]()
                new = ast.Compare(left, changed, comparators)
                yield f"{_text(node)} → {_text(new)}", new
        case ast.BoolOp(op=op, values=values):
            for index, dropped in enumerate(values):
                rest = values[:index] + values[index + 1 :]
                new_value = rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
                yield f"{_text(node)}: without {_text(dropped)}", new_value
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"{_text(node)} → {_text(operand)}", operand
        case ast.If(test=test, body=body, orelse=orelse):
            yield f"if {_text(test)}: never", ast.If(ast.Constant(False), body, orelse)
            yield f"if {_text(test)}: always", ast.If(ast.Constant(True), body, orelse)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield f"{_text(node)} → {_text(body)}", body
            yield f"{_text(node)} → {_text(orelse)}", orelse
        case ast.comprehension(ifs=ifs) if ifs:
            new_loop = ast.comprehension(node.target, node.iter, [], node.is_async)
            yield f"for {_text(node.target)} in {_text(node.iter)}: without its ifs", new_loop
        case _:
            yield from _outcomes(node)


def _outcomes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Raise():
            yield f"{_text(node)} → pass", ast.Pass()
        case ast.Return(value=ast.Constant(value=bool() as value)):
            yield f"return {value} → return {not value}", ast.Return(ast.Constant(not value))
        case ast.Return(value=ast.Name(id=name)) if name.startswith("_") and name.isupper():
            yield f"return {name} → return None", ast.Return(ast.Constant(None))
        case ast.Assign(value=ast.Call(func=ast.Attribute(value=who, attr="failed"))):
            taken = ast.Attribute(who, "admitted", ast.Load())
            yield f"{_text(node)} → {_text(taken)}", ast.Assign(node.targets, taken)
        case ast.Return(
            value=ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr="deny" | "_refuse" | "failed"))
        ):
            admitted = ast.Attribute(ast.Name("self", ast.Load()), "admitted", ast.Load())
            yield f"{_text(node)} → return self.admitted", ast.Return(admitted)


@cache
def _tree_of(path: str) -> tuple[ast.Module, list[_Change]]:
    tree = ast.parse((PACKAGE / path).read_text())
    return tree, list(_changes(tree))


@cache
def mutants_of(path: str) -> tuple[Mutant, ...]:
    """List the mutants of a module of the package, `pipeline/stage.py` for instance."""
    found: dict[str, Mutant] = {}
    for number, change in enumerate(_tree_of(path)[1]):
        mutant = Mutant(path, change.place or "module", change.text, change.first, change.last, number)
        again = 1
        while mutant.name in found:  # the same change at a second place of one function
            again += 1
            text = f"{change.text} ({again})"
            mutant = Mutant(path, change.place or "module", text, change.first, change.last, number)
        found[mutant.name] = mutant
    return tuple(found.values())


def code_of(mutant: Mutant) -> CodeType:
    """Compile a mutant."""
    tree, changes = _tree_of(mutant.path)
    change = None if mutant.number is None else changes[mutant.number]
    if change is not None:
        change.put(change.new)
    try:
        return compile(tree, str(PACKAGE / mutant.path), "exec", dont_inherit=True)
    finally:
        if change is not None:
            change.put(change.old)


def module_of(path: str) -> str:
    """Return the name under which a module of the package is imported."""
    return ".".join(("mitmgate", *Path(path).with_suffix("").parts))


@cache
def functions() -> dict[str, list[FunctionType]]:
    """Find the functions that this process has, by their file."""
    found: dict[str, list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType:
            found.setdefault(each.__code__.co_filename, []).append(each)
    return found


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and all that are in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


type _Where = tuple[str, int]


def _where(code: CodeType) -> _Where:
    return code.co_qualname, code.co_firstlineno


def _own(code: CodeType) -> tuple[object, ...]:
    """Return what a code object does by itself, without those in it."""
    constants = tuple(repr(each) for each in code.co_consts if not isinstance(each, CodeType))
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def patched(mutant: Mutant) -> list[tuple[FunctionType, CodeType]]:
    """Return the functions of this process that a mutant changes, with the code that they get.

    Empty: it is in none, or one can't be changed in its place, and the module has to be imported anew.
    """
    old, new = (list(codes_in(code_of(each))) for each in (replace(mutant, number=None), mutant))
    classes = {_where(code): _own(code) for code in old if not code.co_flags & inspect.CO_OPTIMIZED}
    if classes != {_where(code): _own(code) for code in new if not code.co_flags & inspect.CO_OPTIMIZED}:
        return []
    before, after = Counter(map(_where, old)), {_where(code): code for code in new}
    changed = []
    for function in functions().get(str(PACKAGE / mutant.path), ()):
        where = _where(function.__code__)
        code = after.get(where)
        if code is None or code == function.__code__:
            continue
        if before[where] != 1 or code.co_freevars != function.__code__.co_freevars:
            return []
        changed.append((function, code))
    return changed


class Importer(importlib.abc.MetaPathFinder):
    """Imports a mutant in the place of its module, from now on in this process."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = module_of(mutant.path)
        self._file = str(PACKAGE / mutant.path)
        self._code = code_of(mutant)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the mutant's module."""
        if fullname != self._name:
            return None
        code = self._code

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        return importlib.util.spec_from_file_location(fullname, self._file, loader=Loader(fullname, self._file))


def install(mutant: Mutant) -> None:
    """Import the mutant where its module is imported next; what has imported the module already is forgotten."""
    for name in [name for name in sys.modules if name.split(".")[0] in {"mitmgate", "tests"}]:
        del sys.modules[name]
    sys.meta_path.insert(0, Importer(mutant))
