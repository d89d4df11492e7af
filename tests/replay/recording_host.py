"""`serve` with a recorder, as a process: `python -m tests.replay.recording_host POLICY PORT FILE`."""

import asyncio
import signal
import sys

from mitmproxy import options
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.tools.dump import DumpMaster

from mitmgate import process_log
from mitmgate.engine.gateway import gateway
from mitmgate.replay.recorder import recorder
from mitmgate.stages.enforcer import BLACK_HOLE


async def run(policy: str, port: int, path: str) -> None:
    opts = options.Options()
    master = DumpMaster(opts, with_termlog=False, with_dumper=False)
    recording = recorder(path)
    addon = gateway(policy, (recording,))
    master.addons.add(addon)
    opts.update(mode=[f"reverse:http://{BLACK_HOLE}@127.0.0.1:{port}"], listen_host="127.0.0.1", listen_port=port)
    assert addon.services is not None
    recording.use(addon.services.ring)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, master.shutdown)
    proxy = asyncio.create_task(master.run())
    server = master.addons.get("proxyserver")
    assert isinstance(server, Proxyserver)
    while not server.listen_addrs():  # noqa: ASYNC110 - mitmproxy has no event for it
        await asyncio.sleep(0.01)
    print(f"listening on {port}", flush=True)
    await proxy


if __name__ == "__main__":
    process_log.configure()
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
