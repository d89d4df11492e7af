"""Fixtures of the protocol tests."""

from collections.abc import Iterator

import pytest

from tests.live.harness_upstream import RecordingUpstream
from tests.protocol.harness import Gate, route


@pytest.fixture(params=["stock", "lean"], autouse=True)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run every test in both hosts' connection handlers."""
    name: str = request.param
    monkeypatch.setattr(Gate, "host", name)
    return name


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """Run a recording upstream that answers 200."""
    with RecordingUpstream() as server:
        yield server


@pytest.fixture
def gate(upstream: RecordingUpstream) -> Iterator[Gate]:
    """Run a gateway with one route to the upstream."""
    with Gate(route(upstream.url)) as running:
        yield running
