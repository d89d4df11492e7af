"""A gateway with its admin listener, in both hosts."""

from collections.abc import Iterator

import pytest

from tests.live.harness import Host
from tests.live.harness_upstream import RecordingUpstream


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """Run a recording upstream that answers 200."""
    with RecordingUpstream() as server:
        yield server


@pytest.fixture(params=["serve", "web"], scope="module")
def host(request: pytest.FixtureRequest) -> Host:
    """Run the test in both hosts."""
    kind: Host = request.param
    return kind
