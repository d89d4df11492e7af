"""mitmproxy's default addons, imported when somebody asks for them: `serve` does not.

`mitmproxy/addons/__init__.py` imports all of them before any one addon, the web server of the certificate page and LDAP
among them: a quarter of a second and 12 MiB at each start of a worker. The package is put in its place without that;
whoever asks it for `default_addons`, as mitmweb does, finds it whole.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Final

_PACKAGE: Final = "mitmproxy.addons"


class _Later(ModuleType):
    """The package until it is asked for anything but one of its modules."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> object:
        """Run the package's own code, unless it is the import system that asks for a part of the package."""
        loader = self.__spec__.loader
        if name.startswith("__") or loader is None or find_spec(f"{_PACKAGE}.{name}") is not None:
            raise AttributeError(f"module {_PACKAGE} has no attribute {name}")
        self.__class__ = ModuleType  # type: ignore[assignment]  # a module may change its class
        loader.exec_module(self)
        return getattr(self, name)


def put_off() -> None:
    """Do nothing yet for the import of `mitmproxy.addons`. Called at the start of a process, before anything else."""
    spec = find_spec(_PACKAGE)
    if _PACKAGE in sys.modules or spec is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _Later
    sys.modules[_PACKAGE] = module
    importlib.import_module("mitmproxy").addons = module  # type: ignore[attr-defined]  # as an import would do
