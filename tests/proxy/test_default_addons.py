"""What a process that runs `serve` imports, and that mitmproxy's default addons are there for whoever asks."""

import subprocess
import sys

BEGIN = "from mitmgate.host.default_addons import put_off; put_off(); import sys\n"


def said(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_serve_imports_nothing_that_it_may_never_use() -> None:
    unused = "flask ldap3 tornado redis mitmproxy.addons.onboarding mitmproxy.addons.script"
    program = f"import mitmgate.host.serve; print([name for name in {unused.split()} if name in sys.modules])"
    assert said(program) == "[]"


def test_who_asks_for_the_default_addons_gets_all_of_them() -> None:
    program = (
        "from mitmproxy.addons import core, default_addons\n"
        "from mitmproxy.addons.script import ScriptLoader\n"
        "made = default_addons()\n"
        "print(any(isinstance(one, core.Core) for one in made), any(isinstance(one, ScriptLoader) for one in made))"
    )
    assert said(program) == "True True"


def test_a_name_that_is_not_there_is_missed_as_always() -> None:
    program = (
        "import mitmproxy.addons\n"
        "for name in ('nothing', '__nothing__'):\n"
        "    print(hasattr(mitmproxy.addons, name), end=' ')\n"
        "print(mitmproxy.addons.__name__, bool(mitmproxy.addons.default_addons))"
    )
    assert said(program) == "False False mitmproxy.addons True"


def test_a_package_that_is_imported_already_stays_as_it_is() -> None:
    assert said("import mitmproxy.tools.main, mitmproxy.addons as a; put_off(); print(callable(a.default_addons))") == (
        "True"
    )
