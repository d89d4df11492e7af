"""The command line: `mitmgate COMMAND …`, each command imported only when it runs."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from mitmgate import __version__
from mitmgate.usage import UserError


class Entry(NamedTuple):
    """Where a command lives ("module:attribute") and its line in the help, so that help imports nothing."""

    target: str
    summary: str


COMMANDS = {
    "demo": Entry("mitmgate.demo.command:demo", "Start the gateway with two small services; the default."),
    "init": Entry("mitmgate.init_command:init", "Begin a folder: a policy, tests, recorded traffic, a pipeline."),
    "echo": Entry("mitmgate.demo.echo:echo", "Run a small service that answers with what it received."),
    "serve": Entry("mitmgate.host.serve:command", "Run the gateway for a policy."),
    "web": Entry("mitmgate.inspect.web:command", "Run mitmweb with the gateway in it."),
    "schema": Entry("mitmgate.schema_command:schema", "Print the JSON Schema of policies, for editors."),
    "check": Entry("mitmgate.check_command:check", "Check policy files: errors and warnings with their places."),
    "token": Entry("mitmgate.token_command:token", "Mint a token for an issuer with a development secret."),
    "revoke": Entry("mitmgate.revoke_command:command", "Revoke tokens before they expire, in every process."),
    "key": Entry("mitmgate.key_command:key", "Make, list and revoke API keys."),
    "top": Entry("mitmgate.top_command:command", "Watch gateways at a terminal: what is wrong, traffic, denials."),
    "stage": Entry("mitmgate.stage_command:stage", "Begin a stage of your own, as a file and its test."),
    "audit": Entry("mitmgate.audit.commands:audit", "Verify, follow, show or count an audit file."),
    "replay": Entry("mitmgate.replay.commands:replay", "Decide recorded traffic again and compare."),
    "explain": Entry("mitmgate.replay.commands:explain", "Show what every stage says of one request."),
    "learn": Entry("mitmgate.replay.commands:learn", "Propose a policy from recorded traffic."),
    "redact": Entry("mitmgate.replay.commands:redact", "Write a recording without usable credentials."),
    "bench": Entry("mitmgate.bench_command:command", "Measure the gateway beside stock mitmdump."),
    "fuzz": Entry("mitmgate.fuzz_command:command", "Hold generated conversations with a gateway, and judge what came."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command where there is none of the name that was given."""
        if args and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], [*COMMANDS, "test"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from COMMANDS alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mitmgate")
def group() -> None:
    """Run mitmgate, a zero-trust API gateway: a request passes only when every stage has admitted it."""


def _with_command(words: Sequence[str]) -> list[str]:
    if not words or (words[0].startswith("-") and words[0] not in {"-h", "--help", "--version"}):
        return ["demo", *words]
    return list(words)


def import_command(words: Sequence[str]) -> None:
    """Import what the command in a process's words needs, and run nothing. An unknown one is for `main` to refuse."""
    entry = COMMANDS.get(_with_command(words)[0])
    if entry is not None:
        importlib.import_module(entry.target.partition(":")[0])


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 2 for a user's mistake, 130 for Ctrl-C, else the command's own.

    Without a command, or with an option first, the demo runs. A command's integer result is its status.
    """
    words = _with_command(sys.argv[1:] if args is None else args)
    try:
        status = group.main(words, prog_name="mitmgate", standalone_mode=False)
    except UserError as error:
        click.echo(f"mitmgate: {error}", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except RecursionError:  # the files that users name are the only things here that nest
        click.echo("mitmgate: an input is nested too deeply to be read", err=True)
        return 2
    except MemoryError:  # as only a file's own word asks for so much
        click.echo("mitmgate: an input is too large for the memory of this machine", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader left (`… | head`): point stdout elsewhere, so that Python's own flush at exit is quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0
