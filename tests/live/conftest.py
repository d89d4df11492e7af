"""Fixtures of the live tests: a recording upstream, and a gateway before it in either host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.harness import Gateway, Host, policy_file
from tests.live.harness_upstream import RecordingUpstream


@pytest.fixture(params=["serve", "web"], scope="module")
def host(request: pytest.FixtureRequest) -> Host:
    """Run the test in both hosts: a decision must not depend on it."""
    kind: Host = request.param
    return kind


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """Run a recording upstream that answers 200."""
    with RecordingUpstream() as server:
        yield server


@pytest.fixture
def gateway(tmp_path: Path, upstream: RecordingUpstream, host: Host) -> Iterator[Gateway]:
    """Run a gateway with the policy that live tests start from."""
    with Gateway(policy_file(tmp_path, upstream), host=host) as running:
        yield running
