"""`mitmgate key`: the API keys of a policy: make one, list them, have one take another's place, revoke one."""

import asyncio
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from mitmgate.core.api_key import LONGEST, MOST, ApiKey, changed, id_of, made, make, read
from mitmgate.core.jose import Json, parse_object
from mitmgate.net.dialler import Dialler
from mitmgate.net.resolver import Resolver
from mitmgate.policy.loader import PolicyError, load_snapshot
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.units import UnitError, parse_duration
from mitmgate.revoke_command import user
from mitmgate.services import open_api_keys
from mitmgate.usage import UserError

_POLICY = click.option("--policy", "path", required=True, metavar="FILE", help="The policy, which names the list.")
_LASTING = click.option(
    "--for", "lasting", default="365d", show_default=True, metavar="DURATION", help="How long it is good: 90d, 12h."
)


@click.group("key")
def key() -> None:
    """Make, list and revoke API keys: each process that follows the policy's list knows within a second."""


@key.command()
@_POLICY
@click.option("--principal", required=True, help="The subject: whose key it is. Several keys may be of one principal.")
@click.option("--role", "roles", multiple=True, help="A role; may be given again.")
@click.option("--scope", "scopes", multiple=True, help="A scope; may be given again.")
@click.option("--claim", "claims", multiple=True, metavar="NAME=VALUE", help="A further claim; VALUE is JSON or text.")
@_LASTING
def add(
    path: str, principal: str, roles: Sequence[str], scopes: Sequence[str], claims: Sequence[str], lasting: str
) -> None:
    """Make a key, and print it, this once: nobody can find it out again."""
    snapshot, now = _snapshot(path), time.time()
    _new(
        snapshot,
        _listed(snapshot, absent=True),
        principal,
        now + _duration(lasting),
        roles=tuple(roles),
        scopes=tuple(scopes),
        claims=dict(map(_claim, claims)),
    )


@key.command()
@_POLICY
@click.argument("identifier", metavar="ID")
@click.option("--overlap", default="24h", show_default=True, metavar="DURATION", help="How long the old is good.")
@_LASTING
def rotate(path: str, identifier: str, overlap: str, lasting: str) -> None:
    """Make a key that takes the place of another, with its roles, scopes and claims; both are good for a while."""
    snapshot, now = _snapshot(path), time.time()
    keys = _listed(snapshot)
    old = _found(keys, identifier)
    if old.revoked is not None or old.expires <= now:
        raise UserError(f"the key {old.id} is over; add another one")
    principal = old.principal
    _new(
        snapshot,
        keys,
        principal.subject,
        now + _duration(lasting),
        roles=principal.roles,
        scopes=tuple(sorted(principal.scopes)),
        claims=old.claims,
        old=old,
        until=now + _duration(overlap, "--overlap"),
    )


@key.command("list")
@_POLICY
def list_(path: str) -> None:
    """Show the keys, by principal: id, principal, expiry, roles and scopes, and when it was made or took a place."""
    now = time.time()
    keys = sorted(_listed(_snapshot(path)).values(), key=lambda one: (one.principal.subject, one.created))
    rotated = {one.before: one for one in keys if one.before}
    for one in keys:
        principal, after = one.principal, rotated.get(one.id)
        if one.revoked is not None:
            state = f"revoked {_shown(one.revoked)}"
        else:
            state = f"{'expired' if one.expires <= now else 'expires'} {_shown(one.expires)}"
        words = [one.id, principal.subject, state]
        words += [f"roles {','.join(principal.roles)}"] * bool(principal.roles)
        words += [f"scopes {' '.join(sorted(principal.scopes))}"] * bool(principal.scopes)
        words.append(f"made {_shown(one.created)}" + (f" by {one.by}" if one.by else ""))
        words += [f"in the place of {one.before}"] * bool(one.before)
        words += [] if after is None else [f"rotated {_shown(after.created)}"]
        click.echo("  ".join(words))


@key.command()
@_POLICY
@click.argument("identifier", metavar="ID")
def revoke(path: str, identifier: str) -> None:
    """End a key at once, and what it has opened: by its id, or by the key itself where that was found somewhere."""
    snapshot = _snapshot(path)
    one = _found(_listed(snapshot), identifier)
    if one.revoked is None:
        _append(snapshot, [changed(one.id, revoked=time.time(), by=user())])
    click.echo(f"revoked: {one.id} of {one.principal.subject}")


def _new(
    snapshot: Snapshot,
    keys: Mapping[str, ApiKey],
    principal: str,
    expires: float,
    *,
    roles: tuple[str, ...],
    scopes: tuple[str, ...],
    claims: Mapping[str, Json],
    old: ApiKey | None = None,
    until: float = math.inf,
) -> None:
    """Make a key and print it. old: what it takes the place of, and which is good up to `until`."""
    if len(keys) >= MOST:
        raise UserError(f"there are {MOST} keys, which is as many as may be")
    secret, now, before = make(), time.time(), "" if old is None else old.id
    try:
        line = made(
            secret, principal, now, expires, roles=roles, scopes=scopes, claims=claims, by=user(), before=before
        )
    except ValueError as error:
        raise UserError(f"no key was made: {error}") from error
    lines = [line] if old is None else [line, changed(old.id, expires=min(until, old.expires), by=user())]
    _append(snapshot, lines)
    name = (snapshot.key_field or b"").decode("ascii")
    click.echo(secret)
    click.echo(f"# of {principal}, until {_shown(expires)}; sent as the field {name}. It is not shown again.", err=True)
    if old is not None:
        click.echo(f"# {old.id} stays good until {_shown(min(until, old.expires))}.", err=True)


def _snapshot(path: str) -> Snapshot:
    try:
        return load_snapshot(Path(path), os.environ)
    except PolicyError as error:
        raise UserError(str(error)) from error


def _listed(snapshot: Snapshot, *, absent: bool = False) -> dict[str, ApiKey]:
    """Read the list. absent: a file that is not there yet holds no keys."""
    try:
        return read(asyncio.run(_lines(snapshot)))
    except UserError:
        raise
    except FileNotFoundError as error:
        if absent:
            return {}
        raise UserError("there is no list of API keys yet; make a key: mitmgate key add") from error
    except ValueError as error:
        raise UserError(f"the list of API keys can't be read: {error}") from error
    except Exception as error:  # whatever Redis raises; its text may hold the URL
        raise UserError(f"the list of API keys can't be read ({_why(error)})") from error


def _append(snapshot: Snapshot, lines: Sequence[bytes]) -> None:
    try:
        asyncio.run(_add(snapshot, lines))
    except UserError:
        raise
    except Exception as error:  # the same
        raise UserError(f"nothing was changed: the list of API keys can't be written ({_why(error)})") from error


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__


async def _lines(snapshot: Snapshot) -> list[bytes]:
    resolver = snapshot.policy.resolver
    dialler = Dialler(Resolver(resolver.addresses, resolver.max_stale))
    source = open_api_keys(snapshot, dialler)
    try:
        news = await source.news(None)
        return [] if news is None else news[1]
    finally:
        await source.close()
        await dialler.resolver.close()


async def _add(snapshot: Snapshot, lines: Sequence[bytes]) -> None:
    resolver = snapshot.policy.resolver
    dialler = Dialler(Resolver(resolver.addresses, resolver.max_stale))
    source = open_api_keys(snapshot, dialler)
    try:
        await source.add(lines)
    finally:
        await source.close()
        await dialler.resolver.close()


def _found(keys: Mapping[str, ApiKey], text: str) -> ApiKey:
    found = keys.get(id_of(text.encode("utf-8")) or text)
    if found is None:  # without the text: it may be a key
        raise UserError("no key of the list has this id; mitmgate key list shows them")
    return found


def _claim(text: str) -> tuple[str, Json]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError("--claim: must be NAME=VALUE, like plan=pro or level=3")
    parsed = parse_object(b'{"value":' + value.encode("utf-8", "surrogateescape") + b"}")
    return name, value if parsed is None else parsed["value"]


def _duration(text: str, option: str = "--for") -> float:
    days = re.fullmatch(r"([0-9]{1,4})d", text)
    try:
        seconds = int(days[1]) * 86_400.0 if days else parse_duration(text)
    except UnitError as error:
        raise UserError(f"{option} {text}: {error}; {error.hint}") from error
    if seconds > LONGEST or (option == "--for" and not seconds):
        raise UserError(f"{option} {text}: a key is good for more than no time, and ten years at the most")
    return seconds


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
