"""What `serve` does beside deciding: a recording, a shadow, a canary. One value says what was asked for.

With several workers each has its own: its shadow's counters and its canary's memory are those of its own requests, and
it writes a recording of its own (`for_worker`).
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Final

import click

from mitmgate.chain import Gateway
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.loader import PolicyError, load
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.units import UnitError, parse_size
from mitmgate.replay.canary import DEFAULT, Allowance, Canary
from mitmgate.replay.recorder import KEEP, ROTATE, recorder
from mitmgate.replay.shadow import Shadow
from mitmgate.services import Services
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Observing:
    """What stands behind the chain and decides nothing. Plain values: it may be handed to another process.

    record: the flow file. sample: the part of all requests that is recorded, 0 to 1. rotate: bytes of a file; keep:
    rotated files. shadow: the candidate's policy file. canary: requests to remember, 0 for none. allowed: its drift.
    """

    record: str | None = None
    sample: float = 1.0
    rotate: int = ROTATE
    keep: int = KEEP
    shadow: str | None = None
    canary: int = 0
    allowed: Allowance = DEFAULT

    def for_worker(self, number: int) -> "Observing":
        """Return what one of several workers does: traffic.mitm becomes traffic.1.mitm; `replay` takes them all."""
        if self.record is None:
            return self
        path = Path(self.record)
        return replace(self, record=str(path.with_name(f"{path.stem}.{number}{path.suffix}")))

    def check(self) -> None:
        """Raise UserError where the candidate is broken, before anything listens."""
        if self.shadow is not None:
            _candidate(self.shadow)

    def attach(self, gateway: Gateway) -> None:
        """Put everything behind the chain of a gateway that is configured, and not running yet. Raises UserError."""
        services = gateway.services
        if services is None:  # without a policy nothing is decided, so there is nothing to observe
            return
        if self.record is not None:
            writer = recorder(
                self.record, ring=services.ring, sample=self.sample, rotate_at=self.rotate, keep=self.keep
            )
            writer.use(services.ring, services.api_keys)
            gateway.addons.append(writer)
        if self.shadow is not None:
            gateway.addons.append(_shadow(self.shadow, services))
        if self.canary:
            canary = Canary(self.canary, services.ring, api_keys=services.api_keys)
            gateway.addons.append(canary)
            gateway.approve = Approval(canary, self.allowed)


def shadow_counts(gateway: Gateway) -> Mapping[tuple[str, str], int]:
    """Return what a gateway's shadow has counted by (change, reason), for metrics; nothing where it has none."""
    return next((addon.counts for addon in gateway.addons if isinstance(addon, Shadow)), {})


class Approval:
    """Has the canary decide on each changed policy (chain.Approve)."""

    def __init__(self, canary: Canary, allowed: Allowance) -> None:
        """allowed: the drift that a policy may have."""
        self._canary = canary
        self._allowed = allowed

    async def __call__(self, candidate: Snapshot, current: Snapshot) -> str | None:
        """Say why the candidate must not be put in force; None where it may."""
        drift = await self._canary.check(candidate, current)
        refusal = drift.refusal(self._allowed)
        if refusal is not None:
            return f"the canary refuses it: {refusal}; --canary-allow says how much may differ"
        logger.info(
            "canary: %d requests decided, %d let in that were refused, %d refused that were let in",
            drift.decided,
            drift.loosened,
            drift.tightened,
        )
        return None


def _candidate(path: str) -> Snapshot:
    try:
        return compile_policy(load(path, os.environ))
    except PolicyError as error:
        raise UserError(f"--shadow: {error}") from error


def _shadow(path: str, services: Services) -> Shadow:
    return Shadow(_candidate(path), services.trail.emit, api_keys=services.api_keys)


_NEEDED: Final = {
    "record_sample": "record",
    "record_rotate": "record",
    "record_keep": "record",
    "canary_allow": "canary",
}

_OPTIONS: Final = (
    click.option("--record", type=click.Path(dir_okay=False), help="Record traffic, redacted, to this flow file."),
    click.option("--record-sample", type=float, metavar="PART", help="Record this part of all requests, such as 0.1."),
    click.option(
        "--record-rotate", metavar="SIZE", help="Begin a new file at this size, such as 100MiB (the default)."
    ),
    click.option("--record-keep", type=click.IntRange(min=1), help=f"Rotated files to keep.  [default: {KEEP}]"),
    click.option("--shadow", metavar="FILE", help="Have this policy decide every request too, without effect."),
    click.option(
        "--canary",
        type=click.IntRange(min=1),
        metavar="N",
        help="Replay a changed policy over the last N requests before it is put in force.",
    ),
    click.option(
        "--canary-allow",
        multiple=True,
        metavar="KIND=PERCENT",
        help="How many of them may be decided otherwise.  [default: loosened=0 tightened=1]",
    ),
)


def observing_options[Result](command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the options, and one argument `observing` in their place. Raises UserError for wrong values."""

    @wraps(command)
    def wrapped(
        *arguments: object,
        record: str | None,
        record_sample: float | None,
        record_rotate: str | None,
        record_keep: int | None,
        shadow: str | None,
        canary: int | None,
        canary_allow: Sequence[str],
        **others: object,
    ) -> Result:
        given = {
            "record": record,
            "record_sample": record_sample,
            "record_rotate": record_rotate,
            "record_keep": record_keep,
            "canary": canary,
            "canary_allow": canary_allow or None,
        }
        for name, needed in _NEEDED.items():
            if given[name] is not None and given[needed] is None:
                raise UserError(f"--{name.replace('_', '-')}: only with --{needed}")
        return command(
            *arguments,
            observing=Observing(
                record=record,
                sample=_part(1.0 if record_sample is None else record_sample),
                rotate=ROTATE if record_rotate is None else _size(record_rotate),
                keep=record_keep or KEEP,
                shadow=shadow,
                canary=canary or 0,
                allowed=parse_allowance(canary_allow),
            ),
            **others,
        )

    for option in reversed(_OPTIONS):
        option(wrapped)
    return wrapped


def _part(part: float) -> float:
    if not 0 < part <= 1:
        raise UserError(f"--record-sample {part:g}: must be more than 0 and at most 1, such as 0.1")
    return part


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except UnitError as error:
        raise UserError(f"--record-rotate {text}: {error}" + f"; {error.hint}" * bool(error.hint)) from error


def parse_allowance(options: Sequence[str]) -> Allowance:
    """Read `--canary-allow KIND=PERCENT` options. Raises UserError."""
    parts = DEFAULT._asdict()
    for option in options:
        kind, _, percent = option.partition("=")
        try:
            part = float(percent.removesuffix("%")) / 100
        except ValueError:
            part = -1.0
        if kind not in parts or not 0 <= part <= 1:
            raise UserError(
                f"--canary-allow {option}: must be loosened=PERCENT or tightened=PERCENT, like loosened=0.5"
            )
        parts[kind] = part
    return Allowance(**parts)
