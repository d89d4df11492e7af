"""A hiccup is not an outage: two gateways and one Redis, whose answers are late, or while the gateways stand still."""

from pathlib import Path

import pytest

from bench.hiccups import bound, measure


@pytest.mark.parametrize("trouble", ["late", "still"])
def test_a_hiccup_admits_no_more_than_the_limit(tmp_path: Path, trouble: str) -> None:
    """bench/hiccups.py runs the same for longer, and without Redis."""
    found = measure(tmp_path, trouble, 4.0)
    assert not bound(found), found
    assert found.asked > 100
    assert len(found.admitted) >= found.exact / 2, "and not much less"
    if trouble == "late":
        assert 0 < found.degraded < found.asked / 2
