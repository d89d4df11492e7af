"""What a process that runs `serve` imports, and that what it puts off is there, whole, for whoever asks."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from mitmgate.host.imports import PACKAGES, PARSER

BEGIN = "from mitmgate.host.imports import put_off; put_off(); import json, sys\n"
UNUSED = """
    flask ldap3 tornado redis aioquic h2 service_identity rich pygments pyparsing.core prometheus_client
    asgiref argon2 urwid dns jsonschema_rs
    mitmproxy.addons.onboarding mitmproxy.addons.script mitmproxy.addons.proxyserver mitmproxy.proxy.mode_servers
    mitmproxy.proxy.server mitmproxy.proxy.layers.quic mitmproxy.proxy.layers.tls mitmproxy.proxy.layers.http._http1
"""
LISTED = """
addonmanager addons addons.core addons.errorcheck addons.termlog addons.update_alt_svc certs command command_lexer
connection contrib contrib.click coretypes coretypes.multidict coretypes.serializable ctx dns eventsequence exceptions
flow hooks http log master net net.check net.dns net.dns.classes net.dns.domain_names net.dns.https_records
net.dns.op_codes net.dns.response_codes net.dns.types net.encoding net.http net.http.cookies net.http.headers
net.http.multipart net.http.status_codes net.http.url net.server_spec options optmanager proxy proxy.commands
proxy.context proxy.events proxy.layer proxy.layers proxy.layers.http proxy.layers.http._hooks proxy.layers.websocket
proxy.mode_specs proxy.server_hooks proxy.utils tcp types udp utils utils.asyncio_utils utils.emoji utils.human
utils.signals utils.strutils utils.typecheck utils.vt_codes version websocket
"""
"""Modules of mitmproxy's that `serve` imports: flows, hooks, options and addons, and nothing of its proxy."""


def said(program: str, begin: str = BEGIN) -> str:
    return subprocess.run(
        [sys.executable, "-c", begin + program], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()


def test_serve_imports_nothing_that_it_may_never_use() -> None:
    missing = [name for name in UNUSED.split() if not name.startswith("mitmproxy.") and find_spec(name) is None]
    assert missing == [], "or the list says nothing"
    program = (
        "import gc\n"
        "from mitmgate.collector import importing\n"
        "from mitmgate.host.imports import structlog_alone\n"
        "with importing():\n"
        "    structlog_alone()\n"
        "    import mitmgate.host.serve\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 50_000, len(gc.get_objects()) < 5_000)\n"
        "from mitmgate.policy.declared import policy_model\n"
        "print(policy_model().__pydantic_complete__, policy_model().model_config.get('use_attribute_docstrings'))\n"
        "print(json.dumps(list(sys.modules)))"
    )
    aside, model, names = said(program).splitlines()
    assert aside == "True True True", "the collector has set all of that aside, and goes on"
    assert model == "False None", "the policy's model is built once, when a policy is read, and no source is parsed"
    loaded = set(json.loads(names))
    assert loaded.intersection(UNUSED.split()) == set()
    ours = {name.removeprefix("mitmproxy.") for name in loaded if name.startswith("mitmproxy.")}
    assert sorted(ours - set(LISTED.split())) == [], "serve imports more of mitmproxy than it did"


def test_who_asks_for_a_package_gets_all_of_it() -> None:
    """The names of a package in a process that puts it off are those of one that does not (an upgrade may change)."""
    packages = (
        "import importlib\n"
        f"packages = [importlib.import_module(name) for name in {[*PACKAGES, *PARSER]!r}]\n"
        "def own(package): return sorted(name for name in vars(package) if name[:2] != '__')\n"
    )
    whole = json.loads(said(packages + "print(json.dumps([own(package) for package in packages]))", "import json\n"))
    program = (
        packages
        + f"for package, names in zip(packages, {whole!r}):\n"
        + "    for name in names: getattr(package, name)\n"
        + "print(json.dumps([type(package).__name__ for package in packages]))\n"
        + "print(json.dumps([own(package) for package in packages]))"
    )
    kinds, later = map(json.loads, said(program).splitlines())
    assert kinds == ["module"] * len([*PACKAGES, *PARSER]), "their own code has run"
    for before, after in zip(whole, later, strict=True):
        assert set(before) - set(after) == set()
        assert len(before) > 3, "or it is no package to put off"


def test_a_stage_of_the_operators_may_import_any_layer() -> None:
    program = (
        "import mitmgate.host.serve\n"
        "from mitmproxy.proxy.layers.http._hooks import HttpRequestHook as before\n"
        "from mitmproxy.proxy import layers\n"
        "print('mitmproxy.proxy.layers.quic' in sys.modules, end=' ')\n"
        "print(layers.tcp.TcpStartHook.__name__, layers.HttpLayer.__name__, layers.http.HttpStream.__name__)\n"
        "from mitmproxy.proxy.layers import *\n"
        "from mitmproxy.proxy.layers.http import HttpRequestHook as after\n"
        "from mitmproxy.addons.proxyserver import Proxyserver\n"
        "from mitmproxy import eventsequence\n"
        "from mitmproxy.test import tflow\n"
        "hooks = [hook.name for hook in eventsequence.iterate(tflow.tflow(resp=True))]\n"
        "print(QuicStreamLayer.__name__, Proxyserver.__name__, after is before, hooks)"
    )
    assert said(program).splitlines() == [
        "False TcpStartHook HttpLayer HttpStream",
        "QuicStreamLayer Proxyserver True ['requestheaders', 'request', 'responseheaders', 'response']",
    ]


def test_threads_that_ask_at_once_all_get_it() -> None:
    program = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import mitmproxy.proxy.layers as layers\n"
        "with ThreadPoolExecutor(8) as threads:\n"
        "    print(set(threads.map(lambda _: layers.HttpLayer.__name__, range(8))))"
    )
    assert said(program) == "{'HttpLayer'}"


def test_what_is_put_off_beside_packages_works_when_it_is_used() -> None:
    """Commands of mitmproxy are parsed, and structlog and rich show what they always do."""
    program = (
        "from mitmgate.host.imports import structlog_alone; structlog_alone(); structlog_alone()\n"
        "import mitmgate.host.serve, mitmproxy.command as command\n"
        "print('pyparsing.core' in sys.modules, command.unquote('\"a b\"'), 'pyparsing.core' in sys.modules)\n"
        "from mitmproxy import command_lexer\n"
        "print(command.unquote(\"'c'\"), list(command_lexer.expr.parse_string('view.focus \"x y\"', parse_all=True)))\n"
        "import pyparsing; print(pyparsing.__version__ > '3', pyparsing.common.__name__)\n"
        "import rich.console, structlog; print(rich.console.Console.__name__, structlog.dev.ConsoleRenderer.__name__)"
    )
    assert said(program).splitlines() == [
        "False a b True",
        "c ['view.focus', ' ', '\"x y\"']",
        "True pyparsing_common",
        "Console ConsoleRenderer",
    ]


def test_who_asks_for_the_default_addons_gets_all_of_them() -> None:
    program = (
        "import mitmproxy.addons\n"
        "for name in ('nothing', '__nothing__'):\n"
        "    print(hasattr(mitmproxy.addons, name), end=' ')\n"
        "from mitmproxy.addons import core, default_addons\n"
        "from mitmproxy.addons.script import ScriptLoader\n"
        "made = default_addons()\n"
        "print(any(isinstance(one, core.Core) for one in made), any(isinstance(one, ScriptLoader) for one in made))"
    )
    assert said(program) == "False False True True"


def test_a_package_that_is_imported_already_stays_as_it_is() -> None:
    assert said("import mitmproxy.tools.main, mitmproxy.addons as a; put_off(); print(callable(a.default_addons))") == (
        "True"
    )


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (["--help"], "mitmproxy.http pydantic structlog ruamel rich"),
        (["check", "--help"], "tornado aioquic h2 mitmproxy.proxy.server"),
    ],
)
def test_a_command_imports_what_it_needs(words: list[str], unused: str) -> None:
    program = (
        f"import contextlib, io; sys.argv = ['mitmgate', *{words!r}]\n"
        "from mitmgate.__main__ import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    run()\n"
        f"print([name for name in {unused.split()} if name in sys.modules])"
    )
    assert said(program, begin="import sys\n") == "[]"
