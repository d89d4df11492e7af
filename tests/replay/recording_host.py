"""`serve` with a recorder, as a process: `python -m tests.replay.recording_host POLICY PORT FILE [CANDIDATE]`.

With a CANDIDATE it is shadowed, and the differences are written to FILE.shadow. On SIGUSR1 the policy of POLICY.new is
checked by the canary, and what it says is printed.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from mitmproxy import options
from mitmproxy.tools.dump import DumpMaster

from mitmgate import process_log
from mitmgate.host.gateway import gateway, listener_of
from mitmgate.pipeline.enforcer import BLACK_HOLE
from mitmgate.policy.loader import load_snapshot
from mitmgate.replay.canary import Allowance, Canary
from mitmgate.replay.recorder import recorder
from mitmgate.replay.shadow import Shadow


async def run(policy: str, port: int, path: str, candidate: str | None) -> None:
    opts = options.Options()
    master = DumpMaster(opts, with_termlog=False, with_dumper=False)
    recording = recorder(path)
    canary = Canary(1000)
    observers: list[object] = [recording, canary]
    if candidate is not None:
        events: list[str] = []
        shadow = Shadow(load_snapshot(candidate, os.environ), lambda event: events.append(json.dumps(event) + "\n"))
        observers.append(shadow)
    addon = gateway(policy, observers)
    master.addons.add(addon)
    opts.update(mode=[f"reverse:http://{BLACK_HOLE}@127.0.0.1:{port}"], listen_host="127.0.0.1", listen_port=port)
    assert addon.services is not None
    recording.use(addon.services.ring)
    canary.use(addon.services.ring)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, master.shutdown)

    async def check() -> None:
        new = load_snapshot(f"{policy}.new", os.environ)
        found = await canary.check(new, addon.policy.snapshot)
        print(f"canary: {found.decided} decided, {found.refusal(Allowance()) or 'accepted'}", flush=True)

    checks: set[asyncio.Task[None]] = set()
    loop.add_signal_handler(signal.SIGUSR1, lambda: checks.add(asyncio.create_task(check())))
    proxy = asyncio.create_task(master.run())
    while not listener_of(addon).listen_addrs():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)
    print(f"listening on {port}", flush=True)
    await proxy
    if candidate is not None:
        print(f"shadow: {shadow.compared} compared, {shadow.failed} failed", flush=True)
        Path(f"{path}.shadow").write_text("".join(events))  # noqa: ASYNC240 - nothing else is left to do


if __name__ == "__main__":
    process_log.configure()
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None))
