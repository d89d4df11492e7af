"""The lists that a policy names, of API keys and of what is revoked, as an explanation on its machine reads them.

Files alone: nobody's Redis is asked. What was not looked at, or can't be read, is said.
"""

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, time
from typing import NamedTuple

from mitmgate.core import api_key
from mitmgate.core.api_key import ApiKey
from mitmgate.pipeline.exchange import Exchange
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stores.revocations import Revocations, live


class Lists(NamedTuple):
    """What was read. keys: by id; None: nothing is known of any. notes: on API keys, and on revocations, or ""."""

    keys: Mapping[str, ApiKey] | None
    revocations: Revocations
    notes: tuple[str, str]

    def said_of(self, exchange: Exchange) -> list[str]:
        """Return what a reader of a decision has to know of the lists."""
        of_keys, of_revocations = self.notes
        field, principal = exchange.snapshot.key_field, exchange.principal
        shown = field is not None and field in exchange.request.headers
        tokens = principal is not None and principal.issuer in exchange.snapshot.issuers
        return [note for note, holds in ((of_keys, shown), (of_revocations, tokens)) if note and holds]


def read_lists(snapshot: Snapshot) -> Lists:
    """Read what the policy names, as it is now."""
    keys, of_keys = _keys(snapshot)
    revocations, of_revocations = _revocations(snapshot)
    return Lists(keys, revocations, (of_keys, of_revocations))


def _keys(snapshot: Snapshot) -> tuple[Mapping[str, ApiKey] | None, str]:
    rule = snapshot.policy.api_keys
    if rule is None:
        return None, ""
    if rule.file is None:
        return None, "the list of API keys is in Redis, which was not asked"
    try:
        return api_key.read(_lines(snapshot, rule.file)), ""
    except (OSError, ValueError) as error:
        return None, f"the list of API keys {rule.file} can't be read: {_reason(error)}"


def _revocations(snapshot: Snapshot) -> tuple[Revocations, str]:
    rule, nothing = snapshot.policy.revocation, Revocations()
    if rule is None:
        return nothing, ""
    if rule.file is None:
        return nothing, "the list of revocations is in Redis, which was not asked: the token may be revoked"
    try:
        lines = _lines(snapshot, rule.file)
        live(lines, time())
    except FileNotFoundError:  # it is made at the first start
        return nothing, ""
    except (OSError, ValueError) as error:
        return nothing, f"the list of revocations {rule.file} can't be read: {_reason(error)}; the token may be revoked"
    known = Revocations(on_failure="last-known")
    known.heard(lines, perf_counter())
    return known, ""


def _lines(snapshot: Snapshot, file: str) -> list[bytes]:
    """Read whole lines: what has no end yet was not acknowledged to anybody."""
    path = Path(snapshot.resolve(file))
    if not path.is_file() and path.exists():
        raise OSError("is no regular file")
    content = path.read_bytes()
    return [line for line in content[: content.rfind(b"\n") + 1].split(b"\n") if line]


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
