"""A wheel for one platform, in which what runs on every request is compiled with mypyc; the source is the pure wheel's.

    .venv/bin/python -m pip install setuptools
    .venv/bin/python deploy/compiled.py wheel DIRECTORY   # some three minutes of CPU
    .venv/bin/python deploy/compiled.py test DIRECTORY [PYTEST'S ARGUMENTS]

docs/operation.md says what it is for, docs/bars.md what was tested on which wheel.

Modules call one another without the interpreter only where they are compiled together; so all of them are, as one
group. Their .py files stay in the wheel, and Python takes the extension beside them. `test` runs the suite of this
checkout, in a copy, with the compiled modules of the wheel that lies in DIRECTORY.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parents[1]
HOT = (
    *("core/**/*.py", "pipeline/*.py", "stages/*.py", "proxy/*.py", "chain.py"),
    *(f"audit/{name}.py" for name in ("asked", "chain", "decided", "ended", "event", "file_sink", "gathering")),
    *(f"audit/{name}.py" for name in ("record", "redact", "sink", "trail", "writer")),
)
LEFT = {
    "core/circuit.py": "a weak set of objects of a class that would be compiled",
    "core/openapi.py": "a NamedTuple's member typed object, a name that mypyc looks for in the module alone",
    "core/reason.py": "an Enum whose members have attributes, made with object.__new__",
    "core/value.py": "TYPE_CHECKING is true in a compiled module, and the other branch is never to be reached",
    "stages/authorization.py": "members of the policy: what is assigned to pydantic's fields is not of their type",
    "stages/decision_service.py": "as stages/authorization.py",
    "stages/openapi.py": "as stages/authorization.py",
    "stages/own.py": "__slots__ in a class whose base is not compiled",
    "stages/size_limit.py": "as stages/authorization.py",
    "proxy/acceptor.py": "weakref.finalize of an object of a compiled class",
    "proxy/listener.py": "mitmproxy reads all attributes of an addon, and one that is not set yet is an error there",
    "proxy/tls.py": "asyncio.Transport has a slot, and sets it, where a compiled class has its table of methods",
    "proxy/hooks.py": "mitmproxy holds bound methods weakly, and weakref.WeakMethod takes none of a compiled class",
}
"""What stays as it is, and why."""
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class CompiledModules(BuildHookInterface[Any]):
    """Put the compiled modules into a wheel; off, unless HATCH_BUILD_HOOK_ENABLE_CUSTOM is set."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what is to be taken from where."""
        if self.target_name != "wheel":
            return
        self._place = Path(tempfile.mkdtemp(prefix="mitmgate-compiled-"))
        place = ["--build-lib", str(self._place / "lib"), "--build-temp", str(self._place / "objects")]
        environment = os.environ | {"MYPYPATH": "addons", "MITMGATE_C_SOURCES": str(self._place / "c")}
        words = [sys.executable, str(Path(self.root, "deploy", "compiled.py")), "build_ext", *place]
        subprocess.run(words, cwd=self.root, env=environment, check=True)  # noqa: S603 - our own words
        library = self._place / "lib"
        made = {str(file): str(file.relative_to(library)) for file in library.rglob(f"*{SUFFIX}")}
        build_data["force_include"] |= made
        build_data["pure_python"], build_data["infer_tag"] = False, True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Clean up."""
        if self.target_name == "wheel":
            shutil.rmtree(self._place, ignore_errors=True)


def sources() -> list[str]:
    """Return the files that are compiled, relative to the checkout."""
    package = ROOT / "addons" / "mitmgate"
    files = sorted({file for pattern in HOT for file in package.glob(pattern)})
    return [str(file.relative_to(ROOT)) for file in files if str(file.relative_to(package)) not in LEFT]


def compile_modules() -> None:
    """Be the setup.py of the compiled modules."""
    from mypyc.build import mypycify  # noqa: PLC0415 - where there is no setuptools, the words above say what is wanted
    from setuptools import setup  # noqa: PLC0415

    modules = mypycify(
        ["--config-file", "pyproject.toml", *sources()],
        only_compile_paths=sources(),
        target_dir=os.environ["MITMGATE_C_SOURCES"],
        multi_file=True,
    )
    mend_slices(Path(os.environ["MITMGATE_C_SOURCES"], "bytes_ops.c"))
    setup(name="mitmgate-compiled", ext_modules=modules, packages=[], py_modules=[])


def mend_slices(operations: Path) -> None:
    """Let a slice of bytes that ends before it begins be empty, as Python has it: mypyc 2.4 raises SystemError.

    b"x"[1:-1] is one, and such slices are made of what clients send.
    """
    text = operations.read_text(encoding="utf-8")
    fault = "Py_ssize_t slice_len = endn - startn;"
    if text.count(fault) != 1:
        sys.exit("mypyc cuts bytes in another way than 2.4 did: see whether mend_slices is still wanted")
    operations.write_text(text.replace(fault, "Py_ssize_t slice_len = endn > startn ? endn - startn : 0;"), "utf-8")


def wheel(directory: str) -> int:
    """Build the wheel; one that does not import is put nowhere."""
    environment = os.environ | {"HATCH_BUILD_HOOK_ENABLE_CUSTOM": "true"}
    with tempfile.TemporaryDirectory(prefix="mitmgate-compiled-") as place:
        words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place]
        if code := subprocess.run(words, cwd=ROOT, env=environment, check=False).returncode:  # noqa: S603
            return code
        (made,) = Path(place).glob("*.whl")
        if not imports(made):
            sys.exit(f"{made.name} was built, but does not import (see above): {directory} gets none")
        Path(directory).mkdir(parents=True, exist_ok=True)
        sys.stdout.write(f"it imports: {shutil.move(made, Path(directory, made.name))}\n")
    return 0


def imports(made: Path) -> bool:
    """Tell whether each module of a wheel can be imported, the pure ones too: some derive from compiled classes."""
    importing = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    with tempfile.TemporaryDirectory(prefix="mitmgate-compiled-") as place:
        with zipfile.ZipFile(made) as archive:
            archive.extractall(place)
            files = [name for name in archive.namelist() if name.startswith("mitmgate/") and name.endswith(".py")]
        names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
        words = [sys.executable, "-c", importing, *(name for name in names if name != "mitmgate.__main__")]
        return subprocess.run(words, cwd=place, check=False).returncode == 0  # noqa: S603


def test(directory: str, *arguments: str) -> int:
    """Run tests with the compiled modules of a wheel."""
    (found,) = Path(directory).glob("mitmgate-*-cp*.whl")
    with tempfile.TemporaryDirectory(prefix="mitmgate-compiled-") as place:
        copy = Path(place, "checkout")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache"), symlinks=True)
        with zipfile.ZipFile(found) as archive:
            archive.extractall(copy / "addons", [name for name in archive.namelist() if name.endswith(SUFFIX)])
        words = [str(copy / ".venv" / "bin" / "python"), "-m", "pytest", *arguments]
        return subprocess.run(words, cwd=copy, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["wheel", directory]:
            sys.exit(wheel(directory))
        case ["test", directory, *arguments]:
            sys.exit(test(directory, *arguments))
        case ["build_ext", *_]:
            compile_modules()
        case _:
            sys.exit(__doc__)
