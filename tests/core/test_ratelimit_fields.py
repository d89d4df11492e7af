"""The fields that tell of limits: which limit is told, rounding, and the draft's syntax read by a parser of its own."""

import json
import math
import re
from dataclasses import replace

import pytest

from mitmgate.core.limit import Limit, whole_seconds
from mitmgate.core.problem import problem_body
from mitmgate.core.ratelimit_fields import fields, retry_after
from mitmgate.core.reason import Reason
from mitmgate.core.window import Grant

LIMIT = Limit("per-user", 100, 60.0, ("principal",))


def grant_of(
    remaining: int, reset: float = 10.0, retry: float = 0.0, degraded: bool = False, **members: object
) -> Grant:
    limit = replace(LIMIT, **members)  # type: ignore[arg-type]
    return Grant(limit, retry == 0, remaining, reset, retry, degraded)


def told(*grants: Grant) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields(grants)}


def parsed(value: str) -> list[tuple[str, dict[str, int]]]:
    """Read a List of Strings with Integer parameters (RFC 9651), strictly."""
    items = []
    for item in value.split(", "):
        match = re.fullmatch(r'"([ !#-\[\]-~]*)"((?:;[a-z*][a-z0-9_.*-]*=\d{1,15})*)', item)
        assert match is not None, item
        parameters = (each.split("=") for each in match.group(2).split(";")[1:])
        items.append((match.group(1), {name: int(number) for name, number in parameters}))
    return items


def test_one_limit() -> None:
    assert told(grant_of(42, 12.3)) == {
        "X-RateLimit-Limit": "100",
        "X-RateLimit-Remaining": "42",
        "X-RateLimit-Reset": "13",
        "RateLimit-Policy": '"per-user";q=100;w=60',
        "RateLimit": '"per-user";r=42;t=13',
    }


def test_several_limits_are_all_named_and_the_tightest_is_told() -> None:
    burst, sustained = grant_of(3, 1.0, name="burst", limit=10, window=1.0), grant_of(7, name="sustained")
    got = told(sustained, burst)
    assert (got["X-RateLimit-Limit"], got["X-RateLimit-Remaining"], got["X-RateLimit-Reset"]) == ("10", "3", "1")
    assert parsed(got["RateLimit-Policy"]) == [("sustained", {"q": 100, "w": 60}), ("burst", {"q": 10, "w": 1})]
    assert parsed(got["RateLimit"]) == [("sustained", {"r": 7, "t": 10}), ("burst", {"r": 3, "t": 1})]


def test_a_refusing_limit_is_told_before_one_with_room_and_the_longest_wait_first() -> None:
    grants = grant_of(0, name="empty"), grant_of(2, retry=5.0, name="costly", limit=20), grant_of(0, retry=3.0)
    assert told(*grants)["X-RateLimit-Limit"] == "20"


def test_what_holds_nobody_back_is_not_told() -> None:
    report = grant_of(0, retry=9.0, name="trial", mode="report")
    lifted = grant_of(100, 0.0, degraded=True, on_store_failure="allow")
    assert fields([report, lifted]) == fields([]) == ()
    assert parsed(told(report, grant_of(5), lifted)["RateLimit"]) == [("per-user", {"r": 5, "t": 10})]
    assert told(grant_of(5, degraded=True))["X-RateLimit-Remaining"] == "5", "counted in this process, and in force"


def test_a_limit_that_is_lifted_while_its_store_is_away_holds_as_long_as_it_is_there() -> None:
    assert told(grant_of(5, degraded=False, on_store_failure="allow"))["X-RateLimit-Remaining"] == "5"
    assert fields([grant_of(5, degraded=True, on_store_failure="allow")]) == ()


def test_of_what_was_granted_nobody_waits() -> None:
    granted = Grant(LIMIT, True, 3, 900.0, 900.0, False)
    assert retry_after([granted, grant_of(0, retry=2.0)]) == 2


@pytest.mark.parametrize(
    ("seconds", "whole"),
    [(0.0, 0), (-1.0, 0), (1e-6, 1), (1.0, 1), (59.999999, 60), (60.0, 60), (60.000001, 61), (math.inf, 31_536_000)],
)
def test_seconds_are_rounded_up(seconds: float, whole: int) -> None:
    assert whole_seconds(seconds) == whole


def test_windows_below_a_second_are_still_written_as_whole_ones() -> None:
    assert parsed(told(grant_of(1, 0.1, window=0.25))["RateLimit-Policy"]) == [("per-user", {"q": 100, "w": 1})]


@pytest.mark.parametrize(
    ("waits", "seconds"), [([0.2], 1), ([3.0], 3), ([3.2, 1.0], 4), ([math.inf], 31_536_000), ([], 1)]
)
def test_retry_after_is_when_all_have_room(waits: list[float], seconds: int) -> None:
    observed = grant_of(0, retry=500.0, mode="report")
    assert retry_after([*(grant_of(0, retry=wait) for wait in waits), observed, grant_of(3, 900.0)]) == seconds


def test_two_limits_of_one_name_tell_their_own_numbers() -> None:
    before, after = grant_of(5), grant_of(5, limit=7, window=9.0)
    assert [told(grant)["RateLimit-Policy"] for grant in (before, after, before)] == [
        '"per-user";q=100;w=60',
        '"per-user";q=7;w=9',
        '"per-user";q=100;w=60',
    ]
    assert told(after)["X-RateLimit-Limit"] == "7"


def test_a_problem_says_no_more_than_it_knows() -> None:
    told = json.loads(problem_body(Reason.QUOTA_EXCEEDED, "Too much.", "id"))
    assert told == {
        "type": "urn:mitmgate:problem:quota-exceeded",
        "title": Reason.QUOTA_EXCEEDED.title,
        "status": 429,
        "detail": "Too much.",
        "reason": "quota-exceeded",
        "request_id": "id",
    }
    assert "detail" not in json.loads(problem_body(Reason.QUOTA_EXCEEDED, "", "id"))
