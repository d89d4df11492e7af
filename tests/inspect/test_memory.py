"""What mitmweb costs: a flow that it keeps, the garbage collector, its hooks."""

import asyncio
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from mitmproxy.http import HTTPFlow
from mitmproxy.options import Options
from mitmproxy.proxy.layers.http._hooks import HttpRequestHeadersHook
from mitmproxy.test import taddons, tflow

from mitmgate.inspect import Inspection
from mitmgate.inspect.web import InspectMaster
from mitmgate.proxy.hooks import HookTable
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


def test_the_host_runs_compiled_hooks_and_configures_once() -> None:
    configured: list[set[str]] = []
    shown: list[HTTPFlow] = []

    class Witness:
        def configure(self, updated: set[str]) -> None:
            configured.append(updated)

        def requestheaders(self, flow: HTTPFlow) -> None:
            shown.append(flow)

    async def run() -> int:
        master = InspectMaster(Options(), with_termlog=False)
        master.addons.add(Witness())
        configured.clear()
        master.options.update(showhost=True)
        flow = tflow.tflow()
        await master.addons.handle_lifecycle(HttpRequestHeadersHook(flow))
        assert isinstance(master.addons, HookTable)
        assert shown == [flow]
        return len(master.view)

    assert asyncio.run(run()) == 1
    assert configured == [{"showhost"}]
