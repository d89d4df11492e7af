"""What `--coverage` counts: the rules that stages go by, and what a request has exercised of them."""

from typing import Final, NamedTuple

from mitmgate.policy.problem import Location

REACHED: Final = "reached"
MATCHED: Final = "matched"
HELD: Final = "held"
FAILED: Final = "failed"
GRANTED: Final = "granted"
LIMITED: Final = "limited"
ACCEPTED: Final = "accepted"
REFUSED: Final = "refused"
WENT_ON: Final = "went-on"


class Rule(NamedTuple):
    """One rule of a policy. branches: what can come of it; each is exercised, or never was.

    location: an item of a list has its number, also where the file has the item alone in the list's place.
    """

    location: Location
    what: str
    branches: tuple[str, ...]


class Outside(NamedTuple):
    """What a request was that a route's document does not describe. operation: method and path; "": of all the others.

    detail: what was wrong.
    """

    route: str
    reason: str
    operation: str
    detail: str


type Branch = tuple[Location, str]
"""The place of a rule, and what has come of it."""
