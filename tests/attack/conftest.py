"""Fixtures of the attacks: one rig for the whole run, each gateway started when the first test asks for it."""

from collections.abc import Iterator

import pytest

from tests.attack.gateways import FRONTS, HOSTS, Attacked, Front, Rig
from tests.live.harness import Front as Host


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Run Node and nginx, and gateways before them."""
    with Rig(tmp_path_factory.mktemp("attack")) as running:
        yield running


@pytest.fixture(params=HOSTS, scope="session")
def host(request: pytest.FixtureRequest) -> Host:
    """Attack every host."""
    name: Host = request.param
    return name


@pytest.fixture(params=FRONTS, scope="session")
def front(request: pytest.FixtureRequest) -> Front:
    """Attack every front."""
    name: Front = request.param
    return name


@pytest.fixture
def gate(rig: Rig, host: Host, front: Front) -> Iterator[Attacked]:
    """Run a gateway. Whatever a test does, in the end the origins' logs must agree with the audit file.

    One host takes HTTP/2 without TLS.
    """
    attacked = rig.gateway(host, "http2-plain" if (host, front) == ("web", "http2") else front)
    yield attacked
    attacked.judged()
