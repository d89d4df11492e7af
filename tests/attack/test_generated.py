"""The short forms of `./run.sh fuzz`: some seconds of generated conversations, and of requests on every front."""

import os
import random

from tests.attack import differential, fuzz

SECONDS = 16.0
REQUESTS = 150


def test_generated_conversations() -> None:
    """In CI always the same ones, so that what fails is due to the change; elsewhere new ones."""
    said: list[str] = []
    seed = "1" if os.environ.get("CI") else None
    assert fuzz.run(("serve", "stock"), SECONDS, seed, said.append), "\n".join(said)
    assert len(said) == 4


def test_every_front_and_host_treats_a_request_alike() -> None:
    """The short form of `./run.sh fuzz --alike 20000`."""
    said: list[str] = []
    seed = 1 if os.environ.get("CI") else random.SystemRandom().randrange(10**9)
    assert differential.run(seed, REQUESTS, said.append), "\n".join(said)
