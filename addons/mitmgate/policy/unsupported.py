"""Members of a policy whose capability is not there yet: `serve` refuses to start on them, never ignores them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.problem import Location, Problem


class Gap(NamedTuple):
    """A capability that is missing. where: yields the members that ask for it."""

    what: str
    where: Callable[[Policy], Iterator[Location]]


def _when(location: Location, asked: Callable[[Policy], bool]) -> Callable[[Policy], Iterator[Location]]:
    return lambda policy: iter([location] if asked(policy) else [])


GAPS = (Gap("more than one worker", _when(("listen", "workers"), lambda policy: policy.listen.workers > 1)),)
"""The table. A line goes when its capability comes."""


def unsupported(loaded: Loaded) -> list[Problem]:
    """Return a warning for each member that this version can't do; a host refuses to start on any of them."""
    return [
        loaded.document.warning(location, f"{gap.what}: not supported yet, and serve refuses to start", key=True)
        for gap in GAPS
        for location in gap.where(loaded.policy)
    ]
