"""Recorded traffic: one request as it arrived, when, what token it showed, what was decided and what came of it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Request
from mitmgate.core.token import UnverifiedToken
from mitmgate.replay.decision import Decision

Signature = Literal[
    "good",
    "bad",
    "key-unknown",
    "keys-unavailable",
    "unchecked",
    "revoked",
    "revocations-unknown",
    "proof-missing",
    "proof-invalid",
    "proof-replayed",
    "proof-nonce",
    "inactive",
    "introspection-unavailable",
]
"""What was found out about a token's signature when it was recorded, and of a good one what came behind."""


@dataclass(frozen=True, slots=True)
class Known:
    """A principal of which only this is known. issuer is the policy's name of it."""

    issuer: str
    subject: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Presented:
    """The token of a recorded request.

    text stands in its place in the Authorization field, as long as the token was, and is no credential anywhere.
    refusal: why it was refused, or is no token at all; otherwise `token` is what it says, with listed claims hashed, or
    `known` what an audit event says of its principal. partial: claims, or whether there was a token, are not known.
    """

    text: bytes
    signature: Signature
    token: UnverifiedToken | None = None
    refusal: Refusal | None = None
    known: Known | None = None
    partial: bool = False


class KeyShown(NamedTuple):
    """The API key of a recorded request. field: its lower-case name. found: whose it was, or why it was refused.

    text stands in its place: no key, as long as one.
    """

    field: bytes
    text: bytes
    found: Principal | Refusal


class Aftermath(NamedTuple):
    """What came of an admitted request.

    known: Unix seconds at which the circuit knew of the last endpoint; None: it learnt nothing of it. tried: the times
    at which an endpoint had failed and another took its place, and why it had. status: of the upstream's response;
    None: there was none. failure: what went wrong. took: seconds up to the response's head; None: from `at` to `known`.
    """

    known: float | None
    status: int | None = None
    failure: Reason | None = None
    tried: tuple[tuple[float, Reason], ...] = ()
    took: float | None = None


class Recorded(NamedTuple):
    """One recorded request. at: Unix seconds at which it was, and is again, decided.

    decision: what was decided then; None where the recording does not say. policy: the digest of what decided it.
    aftermath: None where the upstream was not asked, or nobody knows. sample: the part of all requests that the
    recording holds. response_status: of the response that the client got. service_answer: what a decision service said.
    """

    id: str
    at: float
    request: Request
    request_id: str = ""
    presented: Presented | None = None
    decision: Decision | None = None
    aftermath: Aftermath | None = None
    policy: str = ""
    sample: float = 1.0
    response_status: int | None = None
    service_answer: ServiceAnswer | None = None
    key: KeyShown | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A part of a recording on which nothing can be decided. reason: a short phrase, the same for all of its kind."""

    id: str
    reason: str


Entry = Recorded | Skipped

DAMAGE: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What is raised by a part of a recording that no recorder has written so."""
LAST: Final = 253_402_300_799.0
"""Unix seconds of the last moment that a date can say: 9999-12-31. No number of a recording is larger."""


def plausible(entry: Entry) -> Entry:
    """Return what was read; "damaged" where that has values which no request had, and which would break what follows.

    Raises DAMAGE where it has values of other types.
    """
    if isinstance(entry, Skipped):
        return entry
    request, aftermath = entry.request, entry.aftermath
    texts = (entry.id, entry.request_id, entry.policy, request.method, request.target, request.version)
    numbers = [entry.at, entry.sample, float(request.declared_body or 0), float(entry.response_status or 0)]
    if aftermath is not None:
        numbers += [aftermath.known or 0.0, aftermath.took or 0.0, *(at for at, _ in aftermath.tried)]
    whole = all(isinstance(text, str) for text in (*texts, request.authority, request.peer)) and all(
        0 <= number <= LAST for number in numbers
    )
    if whole and request.scheme in {"http", "https"} and entry.request_id.isascii():
        return entry
    return Skipped(str(entry.id), "damaged")


class Traffic(Protocol):
    """A recording that can be read again and again, in the order in which its requests arrived."""

    @property
    def name(self) -> str:
        """The recording's file, as it was given."""
        ...

    def __iter__(self) -> Iterator[Entry]:
        """Read it from the beginning. Raises UserError where it can't be read."""
        ...

    def __len__(self) -> int:
        """Count the entries, without deciding on them."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """Traffic that is in memory."""

    name: str
    entries: list[Entry] = field(default_factory=list)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Count them."""
        return len(self.entries)
