"""fuzz: hold generated conversations with a gateway, stock origins being the judge; what it needs is in a checkout."""

import importlib
import random
import shutil
import sys
from pathlib import Path

import click

from mitmgate.usage import UserError

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("serve", "web", "stock")


@click.command("fuzz")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", metavar="N[:ROUND]", help="Hold the same conversations again, or those of one round alone.")
@click.option(
    "--host",
    "hosts",
    type=click.Choice(HOSTS),
    multiple=True,
    help="The gateway's host; repeatable; default: serve.",
)
@click.option(
    "--alike",
    type=click.IntRange(min=1),
    metavar="N",
    help="Instead ask N requests of every front, in serve and stock mitmdump, and compare what becomes of them.",
)
def command(minutes: float, seed: str | None, hosts: tuple[str, ...], alike: int | None) -> int:
    """Hold generated HTTP/1.1 and HTTP/2 conversations, valid and broken, with a gateway before Node and nginx.

    Whatever these two log as a request must be an admitted one of the audit file, field by field, and the other way
    round. What fails is made smaller and shown; exit status 1.
    """
    if not (ROOT / "tests" / "attack" / "fuzz.py").is_file():
        raise UserError("fuzz needs a checkout of mitmgate: what it does is not installed with it")
    number, _, place = (seed or "0").partition(":")
    if not number.isdigit() or not (place or "0").isdigit():
        raise UserError(f"--seed {seed}: a number is wanted, or NUMBER:ROUND as an earlier run has shown it")
    sys.path.insert(0, str(ROOT))
    for name in ("node", "nginx"):
        if shutil.which(name) is None and shutil.which(name, path="/usr/sbin") is None:
            raise UserError(f"fuzz needs {name}, which is not installed")
    if alike is not None:
        differential = importlib.import_module("tests.attack.differential")
        same: bool = differential.run(int(number) or random.SystemRandom().randrange(10**9), alike, click.echo)
        return 0 if same else 1
    fuzz = importlib.import_module("tests.attack.fuzz")
    passed: bool = fuzz.run(hosts or ("serve",), 60 * minutes, seed, click.echo)
    return 0 if passed else 1
