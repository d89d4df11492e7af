"""The command line, in this process."""

import pytest

from mitmgate.cli import main


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run a command; returns its exit status and what it has printed."""
    status = main(words)
    said = capsys.readouterr()
    return status, said.out + said.err
