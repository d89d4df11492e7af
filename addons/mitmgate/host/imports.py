"""What a process of ours imports at its start: not what most of them never use. Somebody who asks for it gets it whole.

`mitmproxy/addons/__init__.py` imports all default addons before any one of them, the web server of the certificate page
and LDAP among them; `mitmproxy/proxy/layers/__init__.py` all of mitmproxy's own protocols, QUIC among them, before the
classes of the hooks that ours run; `mitmproxy/command_lexer.py` makes a parser of the commands that people type. That
is a third of a second and 20 MiB at each start of a worker. These are put in their places without their own code, which
runs when they are asked for something: of a package, for anything but one of its modules.

Of stock mitmproxy and of `web`, which are mitmproxy's programs, nothing is put off.
"""

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Final, cast

PACKAGES: Final = ("mitmproxy.addons", "mitmproxy.proxy.layers", "mitmproxy.proxy.layers.http")
"""A package comes before those in it."""
PARSER: Final = ("pyparsing", "mitmproxy.command_lexer")
TAKEN: Final = ("mitmproxy.command_lexer", "unquote")
"""A function that mitmproxy's modules take by its name when they are imported."""

_RUNNING: Final = RLock()


class _Later(ModuleType):
    """A module until it is asked for something."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> object:
        """Import a module of the package, or run the module's own code for what else is asked for."""
        if name.startswith("__") and name not in {"__all__", "__version__"}:
            raise AttributeError(f"module {self.__name__} has no attribute {name}")
        part = f"{self.__name__}.{name}"
        if self.__name__ in PACKAGES and find_spec(part) is not None:
            return importlib.import_module(part)
        _run(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__} has no attribute {name}") from None


def _run(module: _Later) -> None:
    """Run a module's own code, once. Meanwhile its own modules may ask for its names, as in any circular import."""
    spec = module.__spec__
    with _RUNNING:
        if spec.loader is None or spec.loader_state is not None:
            return
        spec.loader_state = "running"
        try:
            spec.loader.exec_module(module)
        except BaseException:
            spec.loader_state = None
            raise
        module.__class__ = ModuleType  # type: ignore[assignment]  # a module may change its class


def put_off() -> None:
    """Do nothing yet for the import of PACKAGES and PARSER. Called at the start of a process, before anything else."""
    for name in (*PACKAGES, *PARSER):
        spec = find_spec(name)
        if name in sys.modules or spec is None:
            continue
        module = module_from_spec(spec)
        module.__class__ = _Later
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:  # as an import would do
            setattr(importlib.import_module(parent), own, module)
        if name == TAKEN[0]:
            setattr(module, TAKEN[1], _forward(cast(_Later, module), TAKEN[1]))


def _forward(module: _Later, name: str) -> Callable[..., object]:
    """Return what stands for a function of the module's, which takes its place when the module's own code has run."""

    def forward(*arguments: object) -> object:
        _run(module)
        function: Callable[..., object] = getattr(module, name)
        return function(*arguments)

    return forward


def structlog_alone() -> None:
    """Import structlog without rich, where nothing has imported either; afterwards rich is there for who asks.

    structlog shows tracebacks with rich where that is installed, which process_log does not let it do (of every frame
    they have the local variables, tokens among them): 70 modules, a tenth of a start.
    """
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # as the import system has it: there is no such module
    try:
        importlib.import_module("structlog")
    finally:
        del sys.modules["rich"]
