"""`mitmgate revoke`: end what an issuer has vouched for, at once and in every process."""

import asyncio
import getpass
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click

from mitmgate.core.revocation import Kind, Revocation, revocation_of
from mitmgate.core.rules import Issuer
from mitmgate.core.token import UnverifiedToken, read_token
from mitmgate.net.dialler import Dialler
from mitmgate.net.resolver import Resolver
from mitmgate.policy.loader import PolicyError, load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.units import UnitError, parse_duration
from mitmgate.services import open_revocations
from mitmgate.stores.revocations import MOST, ListFullError, live
from mitmgate.usage import UserError


@click.command("revoke")
@click.option("--policy", "path", required=True, metavar="FILE", help="The policy, which names the list (revocation).")
@click.option("--issuer", "name", help="The issuer's name in the policy, where it has several.")
@click.option("--subject", help="All tokens of a subject that were issued up to now, or --before.")
@click.option("--session", help="All tokens of a session (sid).")
@click.option("--token-id", help="One token, by its jti.")
@click.option("--token", "token_file", type=click.File("rb"), help="One token, in a file, or - for stdin; by its jti.")
@click.option("--key", help="All tokens that a key has signed, by its kid; for a year, unless --for.")
@click.option("--all", "everything", is_flag=True, help="All tokens of the issuer, issued up to now, or --before.")
@click.option("--before", metavar="TIME", help="Tokens issued up to this time: RFC 3339, or Unix seconds.")
@click.option("--for", "lasting", metavar="DURATION", help="How long it holds.  [default: as long as such tokens may]")
@click.option("--lift", is_flag=True, help="Take an earlier revocation back.")
@click.option("--list", "listed", is_flag=True, help="Show what is revoked.")
def command(
    path: str,
    name: str | None,
    subject: str | None,
    session: str | None,
    token_id: str | None,
    token_file: BinaryIO | None,
    key: str | None,
    everything: bool,
    before: str | None,
    lasting: str | None,
    lift: bool,
    listed: bool,
) -> None:
    """Revoke tokens: each process that follows the list refuses them within a second, and cuts what they have opened.

    Exit status 0: it is on the list.
    """
    try:
        snapshot = load_snapshot(Path(path), os.environ)
    except PolicyError as error:
        raise UserError(str(error)) from error
    what: list[tuple[Kind, str]] = []
    given: tuple[tuple[Kind, str | None], ...] = (("sub", subject), ("sid", session), ("jti", token_id), ("kid", key))
    for kind, value in given:
        if value is not None:
            what.append((kind, value))
    if everything:
        what.append(("iss", ""))
    if token_file is not None:
        token = _token(token_file.read())
        what.append(("jti", _id_of(token)))
        name = name or next((one.name for one in snapshot.issuers.values() if token.issuer in one.urls), None)
    if listed and not what:
        _show(snapshot)
        return
    if len(what) != 1 or listed:
        raise UserError("say what to revoke: one of --subject, --session, --token-id, --token, --key and --all")
    ((kind, value),) = what
    issuer = _issuer(snapshot, name)
    try:
        revocation = revocation_of(
            issuer,
            kind,
            value,
            time.time(),
            before=_time(before),
            lasting=_duration(lasting),
            lifted=lift,
            by=user(),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    add(snapshot, revocation)
    click.echo(_told(revocation))


def add(snapshot: Snapshot, revocation: Revocation) -> None:
    """Put it on the list that a policy names. Raises UserError."""
    asyncio.run(_add(snapshot, revocation))


async def _add(snapshot: Snapshot, revocation: Revocation) -> None:
    resolver = snapshot.policy.resolver
    dialler = Dialler(Resolver(resolver.addresses, resolver.max_stale))
    try:
        await open_revocations(snapshot, dialler).add(revocation)
    except ListFullError as error:
        raise UserError(
            f"nothing was revoked: there are {MOST} revocations; lift some, or revoke the issuer"
        ) from error
    except UserError:
        raise
    except Exception as error:  # whatever Redis raises; its text may hold the URL
        raise UserError(f"nothing was revoked: the list can't be written ({type(error).__name__})") from error
    finally:
        await dialler.resolver.close()


async def _lines(snapshot: Snapshot) -> list[bytes]:
    resolver = snapshot.policy.resolver
    dialler = Dialler(Resolver(resolver.addresses, resolver.max_stale))
    try:
        return await open_revocations(snapshot, dialler).lines()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the list can't be read ({type(error).__name__})") from error
    finally:
        await dialler.resolver.close()


def _show(snapshot: Snapshot) -> None:
    try:
        held = live(asyncio.run(_lines(snapshot)), time.time())
    except ValueError as error:
        raise UserError(f"an entry of the list {error}") from error
    for revocation in sorted(held, key=lambda one: one.until):
        click.echo(_told(revocation))


def _told(revocation: Revocation) -> str:
    what = f"{revocation.kind}={revocation.value!r}" if revocation.value else "all"
    upto = "" if revocation.before is None else f", issued up to {_shown(revocation.before)}"
    by = f", by {revocation.by}" if revocation.by else ""
    word = "lifted" if revocation.lifted else "revoked"
    return f"{word}: {revocation.issuer} {what}{upto}, until {_shown(revocation.until)}{by}"


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _issuer(snapshot: Snapshot, name: str | None) -> Issuer:
    issuers = snapshot.issuers
    if name is None and len(issuers) == 1:
        return next(iter(issuers.values()))
    if name is None or name not in issuers:
        wrong = "several issuers" if name is None else f"no issuer {name!r}"
        raise UserError(f"{snapshot.path}: {wrong}; --issuer is one of {', '.join(issuers) or 'none'}")
    return issuers[name]


def _token(content: bytes) -> UnverifiedToken:
    token = read_token(content.strip())
    if isinstance(token, UnverifiedToken):
        return token
    raise UserError(f"--token: {token.detail}")


def _id_of(token: UnverifiedToken) -> str:
    value = token.unverified_claims.get("jti")
    if not isinstance(value, str) or not value:
        raise UserError("--token: the token has no jti; revoke its --session or --subject")
    return value


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise UserError(f"--before {text}: must be like 2026-11-30T12:00:00Z, or Unix seconds") from error


def _duration(text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except UnitError as error:
        raise UserError(f"--for {text}: {error}; {error.hint}") from error


def user() -> str:
    """Name the user of this machine who runs a command, for the record."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
