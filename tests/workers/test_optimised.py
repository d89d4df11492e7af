"""`python -O`, which `serve` runs under: no behaviour of the protocol layers may hang on an assert statement."""

import os
import subprocess
import sys

from tests.live.harness import ROOT

IGNORED = "ignore:assertions not in test modules:pytest.PytestConfigWarning"


def test_the_protocol_is_the_same_without_asserts() -> None:
    """A part of tests/protocol, whose gateways run in pytest's process, is run under -O.

    pytest keeps the asserts of tests and harnesses (tests/conftest.py); `sees_a_connection` fails where it does not.
    """
    names = ("protocol/test_answers.py", "protocol/test_strictness.py", "live/test_harness.py")
    files = [str(ROOT / "tests" / name) for name in names]
    done = subprocess.run(
        [sys.executable, "-O", "-m", "pytest", "-q", "-W", IGNORED, "-k", "lean or sees_a_connection", *files],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 20, done.stdout
