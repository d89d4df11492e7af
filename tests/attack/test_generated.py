"""The short form of `./run.sh fuzz`: half a minute of generated conversations, both fronts, in two hosts."""

import os

from tests.attack import fuzz

SECONDS = 30.0


def test_generated_conversations() -> None:
    """In CI always the same ones, so that what fails is due to the change; elsewhere new ones."""
    said: list[str] = []
    seed = "1" if os.environ.get("CI") else None
    assert fuzz.run(("serve", "stock"), SECONDS, seed, said.append), "\n".join(said)
    assert len(said) == 4
