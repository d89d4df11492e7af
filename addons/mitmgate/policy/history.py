"""What became of the policies that this process was given: which one decides since when, which were refused."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

_REMEMBERED = 5


class Rejected(NamedTuple):
    """A policy that was refused. when: Unix seconds. problems: one line each."""

    when: float
    problems: tuple[str, ...]


class Accepted(NamedTuple):
    """A policy that was put in force. when: Unix seconds."""

    when: float
    digest: str


class History:
    """Counts reloads, for metrics and the status page. Times are Unix seconds, given by the caller."""

    __slots__ = ("accepted", "rejected", "rejections", "reloaded", "since")

    def __init__(self) -> None:
        """Start without a policy."""
        self.since: float | None = None
        """When the policy in force was put there."""
        self.reloaded = 0
        self.rejected = 0
        self.rejections: deque[Rejected] = deque(maxlen=_REMEMBERED)
        """The last of them, the newest first."""
        self.accepted: deque[Accepted] = deque(maxlen=_REMEMBERED)
        """The policies that were put in force last, the newest first: that of the start among them."""

    def first(self, now: float, digest: str) -> None:
        """Note the policy that the process starts with."""
        self.since = now
        self.accepted.appendleft(Accepted(now, digest))

    def accept(self, now: float, digest: str) -> None:
        """Note that a reload put another policy in force."""
        self.first(now, digest)
        self.reloaded += 1

    def reject(self, now: float, problems: Sequence[str]) -> None:
        """Note that a reload was refused."""
        self.rejected += 1
        self.rejections.appendleft(Rejected(now, tuple(problems)))
