"""The lifetime of one gateway process: started, ready, reloading, draining, stopped; and who is told of it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import ClassVar

from mitmproxy.connection import Address

from mitmgate import collector
from mitmgate.audit.event import worker_lost
from mitmgate.chain import Gateway
from mitmgate.host.drain import Drain
from mitmgate.host.gateway import listener_of
from mitmgate.host.master import LeanMaster
from mitmgate.host.notify import Watching
from mitmgate.proxy.listener import Listener

logger = logging.getLogger(__name__)


class Lifetime:
    """The last addon of `serve`: when it runs, everything before it does, and the process is ready."""

    name: ClassVar[str] = "mitmgate-lifetime"

    def __init__(self, master: LeanMaster, gateway: Gateway, patience: float, watching: Watching) -> None:
        """patience: seconds that running requests get in the end. watching: who is told."""
        self.drain = Drain(_Listening(gateway), patience, self._begin_drain, self._stop)
        self.announce: Callable[[Address, str], None] | None = None
        """Called with the address and the policy's path, when the process is ready."""
        self._master = master
        self._gateway = gateway
        self._watching = watching
        self._stopped = False
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Proxy to the end. Returns the exit status: 1 where requests were cut or audit records lost."""
        tasks = [asyncio.create_task(self._watching.beat(), name="beat")]
        proxy = asyncio.create_task(self._master.run(), name="proxy")
        await asyncio.sleep(0)  # Master.run begins with forgetting that it was told to shut down
        if self._stopped:
            self._stop()
        await asyncio.wait({proxy})
        for task in (*tasks, *self._reloads):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._gateway.done()  # which the master has not run where it was told to end before it listened
        proxy.result()
        return 1 if self.drain.cut or self._lost() else 0

    def _lost(self) -> int:
        """Count the audit records that found no way out."""
        services = self._gateway.services
        lost = 0 if services is None else sum(state.backlog + state.dropped for state in services.trail.states())
        if lost:
            logger.error("%d audit records are lost", lost)
        return lost

    def running(self) -> None:
        """Be ready."""
        source = self._gateway.policy.source
        addresses = [] if source is None else listener_of(self._gateway).listen_addrs()
        if not addresses or source is None:
            return
        collector.settle()
        if self.announce is not None:
            self.announce(addresses[0], str(source.path))
        self._watching.ready(self._status)

    @property
    def _status(self) -> str:
        source = self._gateway.policy.source
        return "no policy is in force" if source is None else f"serving with policy {source.snapshot.digest}"

    def reload(self) -> None:
        """Load the policy again."""
        task = asyncio.create_task(self._reload(), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        self._watching.reloading()
        taken = False
        try:
            taken = await self._gateway.reload("a signal")
        except Exception:
            logger.exception("the policy could not be reloaded; the old one stays in force")
        finally:
            self._watching.reloaded(taken, self._status)

    def lost(self, how: str) -> None:
        """Put on record that another worker has crashed. how: its process id and how it ended."""
        pid, _, end = how.partition(" ")
        if self._gateway.services is not None:
            self._gateway.services.trail.emit(worker_lost(time.time(), int(pid), end))

    @property
    def commands(self) -> Mapping[str, Callable[[str], None]]:
        """What a supervisor may ask for."""
        return {
            "reload": lambda _: self.reload(),
            "drain": lambda _: self.drain.begin(),
            "cut": lambda _: self.drain.hurry(),
            "lost": self.lost,
        }

    def _stop(self) -> None:
        self._stopped = True
        self._master.shutdown()  # type: ignore[no-untyped-call]  # mitmproxy's own

    def _begin_drain(self) -> None:
        self._watching.stopping(f"draining: {_Listening(self._gateway).connected} clients are connected")


class _Listening:
    """The listener of a gateway that may not have one yet: it then listens no more once it has."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def _listener(self) -> Listener | None:
        return None if self._gateway.protocol is None else listener_of(self._gateway)

    @property
    def connected(self) -> int:
        return 0 if self._listener is None else self._listener.connected

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def last_call(self) -> None:
        if self._listener is not None:
            self._listener.last_call()

    def cut_all(self) -> int:
        return 0 if self._listener is None else self._listener.cut_all()
