"""Mutants of a module: one decision-relevant expression or statement changed in each, on its syntax tree."""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType

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
    number: int | None

    @property
    def name(self) -> str:
        """What names it for good: no line number, which every edit moves."""
        return f"{self.path} {self.place}: {self.change}"


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split()).replace("|", "¦").replace("`", "'")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _changes(tree: ast.Module) -> Iterator[tuple[str, int, str, Callable[[], None]]]:
    """Yield (place, line, change, apply) of every change, in one order; apply changes this tree."""

    def visit(node: ast.AST, place: str) -> Iterator[tuple[str, int, str, Callable[[], None]]]:
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
                    line: int = getattr(child, "lineno", 0)
                    yield inner, line, change, partial(put, ast.copy_location(new, child))
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


def mutants_of(path: str) -> list[Mutant]:
    """List the mutants of a module of the package, `stages/stage.py` for instance."""
    tree = ast.parse((PACKAGE / path).read_text())
    found: dict[str, Mutant] = {}
    for number, (place, line, change, _) in enumerate(_changes(tree)):
        mutant = Mutant(path, place or "module", change, line, number)
        again = 1
        while mutant.name in found:  # the same change at a second place of one function
            again += 1
            mutant = Mutant(path, place or "module", f"{change} ({again})", line, number)
        found[mutant.name] = mutant
    return list(found.values())


def code_of(mutant: Mutant) -> CodeType:
    """Compile a mutant."""
    file = PACKAGE / mutant.path
    tree = ast.parse(file.read_text())
    for number, (_, _, _, apply) in enumerate(_changes(tree)):
        if number == mutant.number:
            apply()
            break
    return compile(ast.fix_missing_locations(tree), str(file), "exec", dont_inherit=True)


class Importer(importlib.abc.MetaPathFinder):
    """Imports a mutant in the place of its module, from now on in this process."""

    def __init__(self, mutant: Mutant) -> None:
        self._name = ".".join(("mitmgate", *Path(mutant.path).with_suffix("").parts))
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
