"""deploy/compiled.py, without compiling: what is compiled, what is left out, and that no class of it can't be."""

import importlib
import importlib.util
import inspect
from abc import ABCMeta
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "addons" / "mitmgate"
SUPPORTED = (tuple, dict, BaseException)
"""Bases that mypyc knows, or whose classes it leaves to Python; as those with a metaclass, such as Enum."""


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    found = importlib.util.spec_from_file_location("compiled", ROOT / "deploy" / "compiled.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_what_is_left_as_it_is_exists_and_would_be_compiled(compiled: ModuleType) -> None:
    hot = {str(file.relative_to(PACKAGE)) for pattern in compiled.HOT for file in PACKAGE.glob(pattern)}
    assert set(compiled.LEFT) <= hot
    assert all(compiled.LEFT.values())
    made = {name.removeprefix("addons/mitmgate/") for name in compiled.sources()}
    assert made == hot - set(compiled.LEFT)
    assert all([*PACKAGE.glob(pattern)] for pattern in compiled.HOT), "a pattern that finds nothing"


def test_no_base_of_a_compiled_class_has_a_slot_where_mypyc_puts_its_own(compiled: ModuleType) -> None:
    """A compiled class begins where `object` ends, whatever else it derives from.

    Before: asyncio.BaseTransport sets its slot `_extra`, which was the compiled TlsTransport's table of methods; the
    first TLS connection was a segmentation fault.
    """
    names = {name.removeprefix("addons/").removesuffix(".py").replace("/", ".") for name in compiled.sources()}
    classes = [
        value
        for name in sorted(names)
        for value in vars(importlib.import_module(name.removesuffix(".__init__"))).values()
        if inspect.isclass(value) and value.__module__ == name.removesuffix(".__init__")
    ]
    assert len(classes) > 100
    modules = {name.removesuffix(".__init__") for name in names}
    wrong = [
        f"{made.__module__}.{made.__name__} derives from {base.__name__}"
        for made in classes
        if type(made) in {type, ABCMeta} and not issubclass(made, SUPPORTED)
        for base in made.__mro__
        if base.__module__ not in modules and base.__basicsize__ > object.__basicsize__
    ]
    assert wrong == []


def test_no_section_of_the_policy_is_compiled(compiled: ModuleType) -> None:
    """Before: `stages/size_limit.py` of the wheel was a TypeError: "None object expected; got FieldInfo"."""
    names = [name.removeprefix("addons/").removesuffix(".py").replace("/", ".") for name in compiled.sources()]
    values = [
        value for name in names for value in vars(importlib.import_module(name.removesuffix(".__init__"))).values()
    ]
    modules = {value.__module__ for value in values if inspect.isclass(value) and issubclass(value, BaseModel)}
    assert modules.isdisjoint(names)
