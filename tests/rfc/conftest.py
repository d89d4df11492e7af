"""Fixtures of the tests of both RFCs: each front runs once for all files that a test process has."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.live.harness_upstream import Reply
from tests.rfc.fronts import KINDS, Front, Http2Front, Kind, running


@pytest.fixture(scope="session")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Kind, Front]]:
    """Keep what runs; a front is started when a test first asks for it."""
    with ExitStack() as stack:

        class Started(dict[Kind, Front]):
            def __missing__(self, kind: Kind) -> Front:
                front = stack.enter_context(running(kind, tmp_path_factory.mktemp(kind)))
                self[kind] = front
                return front

        yield Started()


@pytest.fixture(params=[*KINDS, "h2"])
def every_front(request: pytest.FixtureRequest, fronts: dict[Kind, Front]) -> Front:
    """Run the test on each front, and in HTTP/2: one that sends nothing that only HTTP/1 has."""
    if request.param != "h2":
        return _fresh(fronts[request.param])
    tls = _fresh(fronts["tls"])
    return Http2Front(tls.kind, tls.gateway, tls.upstream, tls.authority, tls.admin)


@pytest.fixture(params=KINDS)
def front(request: pytest.FixtureRequest, fronts: dict[Kind, Front]) -> Front:
    """Run the test on each front."""
    kind: Kind = request.param
    return _fresh(fronts[kind])


def _fresh(front: Front) -> Front:
    """Take back what the service was told to answer: another test of this process may have left it so."""
    front.upstream.reply = Reply()
    return front
