"""`mitmgate token`: a token for a policy whose issuer is a development secret."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from mitmgate.core.rules import Issuer
from mitmgate.demo.policy import demo_policy
from mitmgate.keys.minting import mint
from mitmgate.policy.loader import PolicyError, load_snapshot
from mitmgate.policy.units import UnitError, parse_duration
from mitmgate.usage import UserError


@click.command()
@click.option("--sub", "subject", required=True, help="The subject: who the token stands for.")
@click.option("--role", "roles", multiple=True, help="A role; may be given again.")
@click.option("--scope", "scopes", multiple=True, help="A scope; may be given again.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=VALUE", help="A further claim; VALUE is JSON or text.")
@click.option("--policy", "path", metavar="FILE", help="The policy.  [default: the demo's]")
@click.option("--issuer", "name", help="The issuer's name in the policy, where it has several with a secret.")
@click.option("--ttl", default="5m", show_default=True, metavar="DURATION", help="How long the token is valid.")
def token(
    subject: str,
    roles: Sequence[str],
    scopes: Sequence[str],
    claims: Sequence[str],
    path: str | None,
    name: str | None,
    ttl: str,
) -> None:
    """Mint a token for an issuer with a development secret, and print nothing else."""
    path = path or str(demo_policy())
    try:
        issuers = load_snapshot(Path(path), os.environ).issuers
        lifetime = parse_duration(ttl)
        minted = mint(
            choose_issuer(issuers, name, path),
            subject,
            now=time.time(),
            lifetime=lifetime,
            roles=roles,
            scopes=scopes,
            claims=dict(map(parse_claim, claims)),
        )
    except UnitError as error:
        raise UserError(f"--ttl {ttl}: {error}; {error.hint}") from error
    except PolicyError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    click.echo(minted)


def choose_issuer(issuers: Mapping[str, Issuer], name: str | None, path: str) -> Issuer:
    """Return the issuer of that name, or without a name the only one with a secret; raises UserError."""
    if name is not None:
        if name not in issuers:
            raise UserError(f"{path}: no issuer {name!r}; issuers: {', '.join(issuers) or 'none'}")
        return issuers[name]
    secret = [issuer for issuer in issuers.values() if issuer.keys.kind == "secret"]
    if not secret:
        raise UserError(f"{path}: no issuer has a secret, so tokens come from the issuers themselves alone")
    if len(secret) > 1:
        raise UserError(f"{path}: several issuers have a secret; --issuer {' or '.join(i.name for i in secret)}")
    return secret[0]


def parse_claim(text: str) -> tuple[str, object]:
    """Split NAME=VALUE; the value is JSON where it parses, else the text itself. Raises UserError without a name."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"--claim {text}: must be NAME=VALUE, like tenant=acme or level=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
