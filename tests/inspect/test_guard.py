"""OptionGuard: what mitmweb's API can't change while the gateway runs."""

from collections.abc import Iterator

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.script import ScriptLoader
from mitmproxy.test import taddons

from mitmgate.inspect.guard import REFUSED_COMMANDS, OptionGuard, is_loopback


@pytest.fixture
def guarded() -> Iterator[tuple[taddons.context, OptionGuard]]:
    with taddons.context(ScriptLoader(), Proxyserver()) as host:
        host.options.add_option("web_host", str, "127.0.0.1", "")
        host.options.add_option("web_columns", str, "", "")
        guard = OptionGuard()
        host.master.addons.add(guard)
        guard.running()
        yield host, guard


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scripts", ["evil.py"]),
        ("mode", ["socks5"]),
        ("listen_port", 9999),
        ("ssl_insecure", True),
        ("connection_strategy", "lazy"),
        ("rawtcp", False),
        ("web_host", "127.0.0.2"),
    ],
)
def test_refuses_and_rolls_back(guarded: tuple[taddons.context, OptionGuard], name: str, value: object) -> None:
    host, _ = guarded
    before = getattr(host.options, name)
    assert before != value
    with pytest.raises(exceptions.OptionsError, match=f"{name} can't be changed"):
        host.options.update(**{name: value})
    assert getattr(host.options, name) == before


def test_no_addon_sees_a_refused_value(guarded: tuple[taddons.context, OptionGuard]) -> None:
    host, _ = guarded
    seen: list[object] = []

    class Witness:
        def configure(self, updated: set[str]) -> None:
            seen.append(host.options.scripts)

    host.master.addons.add(Witness())
    with pytest.raises(exceptions.OptionsError):
        host.options.update(scripts=["evil.py"])
    assert seen == [[]]  # the rollback's own notification, with the old value


def test_a_change_of_several_is_refused_as_a_whole(guarded: tuple[taddons.context, OptionGuard]) -> None:
    host, _ = guarded
    with pytest.raises(exceptions.OptionsError, match="mode, rawtcp"):
        host.options.update(mode=["socks5"], rawtcp=False, web_columns="path")
    assert host.options.web_columns == ""


def test_reset_is_withdrawn() -> None:
    """`options.reset` bypasses the rollback of `update`, so its command must fail before it changes a thing."""
    assert "options.reset" in REFUSED_COMMANDS
    assert "options.reset.one" in REFUSED_COMMANDS


def test_display_options_and_same_values_pass(guarded: tuple[taddons.context, OptionGuard]) -> None:
    host, _ = guarded
    host.options.update(web_columns="path", mode=list(host.options.mode))
    assert host.options.web_columns == "path"


def test_commands_are_withdrawn_and_come_back(guarded: tuple[taddons.context, OptionGuard]) -> None:
    host, guard = guarded
    assert "script.run" not in host.master.commands.commands
    with pytest.raises(exceptions.CommandError, match="Unknown command"):
        host.master.commands.execute("script.run @all evil.py")
    guard.done()
    assert "script.run" in host.master.commands.commands
    host.options.update(rawtcp=False)


def test_refuses_a_reachable_web_host() -> None:
    with taddons.context() as host:
        host.options.add_option("web_host", str, "0.0.0.0", "")
        guard = OptionGuard()
        with pytest.raises(exceptions.OptionsError, match=r"web_host 0\.0\.0\.0 is not a loopback"):
            guard.configure({"web_host"})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.0.2.1", "example.test", "localhost.example.test"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)
