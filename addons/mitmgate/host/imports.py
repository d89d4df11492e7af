"""What a process of ours imports at its start: not what most of them never use. Somebody who asks for it gets it whole.

`mitmproxy/addons/__init__.py` imports all default addons before any one of them, the web server of the certificate page
and LDAP among them; `mitmproxy/proxy/layers/__init__.py` all of mitmproxy's own protocols, QUIC among them, before the
classes of the hooks that ours run. That is a third of a second and 20 MiB at each start of a worker. These packages are
put in their places without their own code, which runs when they are asked for anything but one of their modules.

Of stock mitmproxy and of `web`, which are mitmproxy's programs, nothing is put off.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Final

PACKAGES: Final = ("mitmproxy.addons", "mitmproxy.proxy.layers", "mitmproxy.proxy.layers.http")
"""A package comes before those in it."""

_RUNNING: Final = RLock()


class _Later(ModuleType):
    """A package until it is asked for anything but one of its modules."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> object:
        """Import a module of the package, or run the package's own code for what else is asked for."""
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__} has no attribute {name}")
        part = f"{self.__name__}.{name}"
        if find_spec(part) is not None:
            return importlib.import_module(part)
        with _RUNNING:
            state = self.__spec__.loader_state
            if state is None and self.__spec__.loader is not None:
                self.__spec__.loader_state = "running"  # its own modules may ask meanwhile, as in any circular import
                try:
                    self.__spec__.loader.exec_module(self)
                except BaseException:
                    self.__spec__.loader_state = None
                    raise
                self.__class__ = ModuleType  # type: ignore[assignment]  # a module may change its class
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__} has no attribute {name}") from None


def put_off() -> None:
    """Do nothing yet for the import of PACKAGES. Called at the start of a process, before anything else."""
    for name in PACKAGES:
        spec = find_spec(name)
        if name in sys.modules or spec is None:
            continue
        module = module_from_spec(spec)
        module.__class__ = _Later
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        setattr(importlib.import_module(parent), own, module)  # as an import would do
