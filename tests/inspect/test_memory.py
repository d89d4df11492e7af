"""What a flow costs that mitmweb keeps, and that the start is out of the collector's way."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from mitmproxy.test import taddons

from mitmgate.inspect import Inspection
from tests.live.harness import ROOT, SECRET, mint, policy, write_policy
from tests.live.harness_http import free_port
from tests.live.harness_upstream import RecordingUpstream

DENIED = 7 * 1024
"""Bytes. mitmproxy's own part is about 3 KB, the mirror of the decision that is saved with the flow 2 KB."""
ADMITTED = 10 * 1024


def test_a_kept_flow_is_small_and_keeps_nothing_of_its_exchange(tmp_path: Path) -> None:
    with RecordingUpstream() as upstream:
        path = write_policy(tmp_path, policy(tmp_path, upstream))
        command = [sys.executable, "-m", "tests.inspect.flow_cost", str(path), str(free_port()), str(free_port())]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'addons'}", "MITMGATE_TEST_SECRET": SECRET}
        ended = subprocess.run(
            [*command, mint()], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    for kind, bound in (("denied", DENIED), ("admitted", ADMITTED)):
        cost = told[kind]
        assert cost["flows"] == 200, told
        assert cost["bytes"] < bound, told
        assert cost["exchanges"] <= 2, told  # of the last request, perhaps
        assert cost["registered"] <= 2, told


def test_the_start_is_frozen() -> None:
    with taddons.context():
        before = gc.get_freeze_count()
        Inspection().running()
        try:
            assert gc.get_freeze_count() > before
        finally:
            gc.unfreeze()
