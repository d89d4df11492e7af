"""Fixtures of the tests of processes: a recording upstream and a real Redis."""

from collections.abc import Iterator

import pytest

from tests.live.harness_upstream import RecordingUpstream
from tests.redis_server import RedisServer


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    """Run a recording upstream that answers 200."""
    with RecordingUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Run a Redis for the module; its counters outlive a test, so each test has subjects of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
