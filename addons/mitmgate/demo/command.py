"""`mitmgate demo`: the gateway as a real process before two small services, and curl lines to try."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from mitmgate.core.rules import Issuer
from mitmgate.demo.examples import ROLE, SCOPES, Example, examples
from mitmgate.demo.policy import demo_policy
from mitmgate.demo.service import LOOPBACK, EchoService
from mitmgate.keys.minting import mint
from mitmgate.policy.loader import PolicyError, load_snapshot
from mitmgate.usage import UserError

SERVICES = {"users": ("MITMGATE_DEMO_USERS_PORT", 9001), "orders": ("MITMGATE_DEMO_ORDERS_PORT", 9002)}
"""Each service with the variable that tells the policy its port, and the port it has where that is free."""

TOKEN_LIFETIME = 3600.0  # seconds
STOP_PATIENCE = 10.0  # seconds that the gateway gets to drain


@click.command("demo")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="The gateway's port.")
def demo(port: int) -> int:
    """Start the gateway on 127.0.0.1 with two small services behind it, and print curl lines with fresh tokens.

    Ctrl-C ends all of it. The development secret is random unless MITMGATE_DEV_SECRET is set; the audit file is
    temporary unless MITMGATE_DEMO_AUDIT names one.
    """
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):  # end as Ctrl-C does: the gateway is not left behind
        signal.signal(number, signal.default_int_handler)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    policy = demo_policy()
    with tempfile.TemporaryDirectory(prefix="mitmgate-demo-") as directory:
        environment = {
            "MITMGATE_DEV_SECRET": secrets.token_urlsafe(48),
            "MITMGATE_DEMO_AUDIT": str(Path(directory) / "audit.jsonl"),
            **os.environ,
        }
        # The policy reads a relative path as relative to itself; a user means the directory where he stands.
        environment["MITMGATE_DEMO_AUDIT"] = str(Path(environment["MITMGATE_DEMO_AUDIT"]).absolute())
        for service, (variable, usual) in SERVICES.items():
            echo = EchoService(service, int(environment.get(variable, usual)))
            environment[variable] = str(echo.server_port)
            echo.start()
        lines = fresh_examples(f"http://{LOOPBACK}:{port}", policy, environment)
        return run(policy, f"{LOOPBACK}:{port}", environment, lines)


def fresh_examples(base: str, policy: Path, environment: Mapping[str, str]) -> list[Example]:
    """Make the lines with tokens that the policy's only issuer accepts for TOKEN_LIFETIME from now on."""
    try:
        (issuer,) = load_snapshot(policy, environment).issuers.values()
    except PolicyError as error:
        raise UserError(str(error)) from error
    return examples(
        base,
        reader=_minted(issuer, "alice", SCOPES),
        stranger=_minted(issuer, "mallory", ()),
        hurried=_minted(issuer, "bob", SCOPES),
    )


def _minted(issuer: Issuer, subject: str, scopes: Sequence[str]) -> str:
    return mint(issuer, subject, now=time.time(), lifetime=TOKEN_LIFETIME, roles=(ROLE,), scopes=scopes)


def run(policy: Path, listen: str, environment: Mapping[str, str], lines: Sequence[Example]) -> int:
    """Run the gateway until it ends or Ctrl-C comes; returns its exit status (0 for Ctrl-C)."""
    command = [sys.executable, "-m", "mitmgate", "serve", "--policy", str(policy), "--listen", listen]
    # The gateway stays in this process group: the terminal's Ctrl-C reaches it too, and it drains.
    gateway = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    try:
        if gateway.stdout is None or not gateway.stdout.readline():
            return gateway.wait()
        threading.Thread(target=gateway.stdout.read, daemon=True).start()
        show(f"http://{listen}", policy, environment, lines)
        return gateway.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        gateway.terminate()
        try:
            gateway.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            gateway.kill()
            gateway.wait()


def show(base: str, policy: Path, environment: Mapping[str, str], lines: Sequence[Example]) -> None:
    """Print what runs where, and the lines to paste."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold green]mitmgate[/] is listening on [bold]{base}[/] with policy {policy.name}; Ctrl-C ends it")
    for service, (variable, _) in SERVICES.items():
        console.print(f"  {service}: http://{LOOPBACK}:{environment[variable]}, an echo service behind the gateway")
    console.print(f"  audit: {environment['MITMGATE_DEMO_AUDIT']}")
    for example in lines:
        console.print(f"\n[bold cyan]# {example.title}[/]")
        # Not through rich's markup or wrapping: the line must survive the clipboard.
        console.file.write(example.line + "\n")
    console.file.flush()
