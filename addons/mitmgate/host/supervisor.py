"""The supervisor of `serve --workers N`: it holds the sockets, and keeps a worker at each of them.

    SIGTERM, SIGINT   every worker drains, then the supervisor ends; a second signal cuts
    SIGQUIT           the same, and cuts at once
    SIGHUP            every worker loads the policy again
    SIGUSR2           one worker after the other is replaced by a new process, which runs the code that is there now

A worker is a fresh process, not a fork. One that crashes is replaced at once, and after longer and longer pauses where
that goes on; what waits in its socket's queue is not lost. It can't harm the supervisor, which parses a few words of it
and nothing of a client's.
"""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from mitmgate.host import signals
from mitmgate.host.child import Child, start_child
from mitmgate.host.notify import ServiceManager
from mitmgate.host.slot import Slot, bind

logger = logging.getLogger(__name__)

RELOAD_PATIENCE: Final = 30.0
"""Seconds that a worker may take to load the policy again."""
ENDING: Final = 15.0
"""Seconds beyond its drain that a worker may take to write its audit records."""
USERS_MISTAKE: Final = 2
EMPTY_AFTER: Final = 1.0
"""A pause before a restart, in seconds, from which on other workers get the slot's clients."""


class Figures(Protocol):
    """Collects what the workers have counted (admin.workers.Workers)."""

    async def add(self, worker: int, link: socket.socket) -> None:
        """Take a worker's socket. worker: its process id."""
        ...

    async def remove(self, worker: int) -> None:
        """Take leave of a worker whose process has ended."""
        ...


class Supervisor:
    """Keep `count` workers, until a signal says otherwise."""

    def __init__(
        self,
        address: tuple[str, int],
        count: int,
        command: Sequence[str],
        patience: float,
        manager: ServiceManager,
        announce: Callable[[tuple[str, int]], None],
        figures: Figures,
    ) -> None:
        """Bind the sockets. Raises UserError.

        command: starts a worker, see child.command_line. patience: seconds that a drain gets. announce: called with the
        address, once all workers are ready. figures: gets each worker's socket, and takes leave of it.
        """
        self._figures = figures
        host, port = address
        first = bind(host, port, shared=count > 1)
        port = first.getsockname()[1]
        sockets = [first, *(bind(host, port, shared=True) for _ in range(count - 1))]
        self.address: tuple[str, int] = first.getsockname()[:2]
        self.slots = [Slot(number, listening) for number, listening in enumerate(sockets)]
        self._command = command
        self._patience = patience
        self._manager = manager
        self._announce = announce
        self._living: set[Child] = set()
        self._announced = False
        self._lost: list[tuple[int, str]] = []  # crashes that no worker has put on record yet
        self._status = 0
        self._stopping = False
        self._stopped = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._asked_to_reload = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Supervise to the end. Returns the exit status: the worst that a worker has ended with on its drain.

        The first worker starts alone: what keeps it from starting would keep the others, and is said once.
        """
        signals.obey(
            {
                signal.SIGTERM: self.end,
                signal.SIGINT: self.end,
                signal.SIGQUIT: self.cut,
                signal.SIGHUP: self.reload,
                signal.SIGUSR2: self.restart,
            },
            {},
        )
        self._spawn(self._manager.beat())
        first = await self._start(self.slots[0])
        if first is None or not await first.started():
            if not self._stopping:
                status = 1 if first is None else await first.ended()
                if status != USERS_MISTAKE:  # which the worker has told
                    logger.error("the first worker did not start (status %d)", status)
                return status if status > 0 else 1
        else:
            self._settled(first)
            for slot in self.slots[1:]:
                self._spawn(self._fill(slot))
            await self._stopped.wait()
        await self._drained()
        for task in list(self._tasks):
            task.cancel()
        return self._status

    # Workers.

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, slot: Slot, *, successor: bool = False) -> Child | None:
        try:
            child = await start_child(slot.number, slot.listening, self._command)
        except OSError as error:
            logger.error("worker %d can't be started: %s", slot.number, error.strerror)
            return None
        if successor:
            slot.successor = child
        else:
            slot.current = child
        self._living.add(child)
        await self._figures.add(child.pid, child.figures)
        self._spawn(self._watch(slot, child))
        if self._stopping:
            child.drain()
        return child

    async def _watch(self, slot: Slot, child: Child) -> None:
        """See a worker to its end, and replace it where it was not told to end."""
        status = await child.ended()
        self._living.discard(child)
        self._spawn(self._figures.remove(child.pid))
        how = f"signal {-status}" if status < 0 else f"status {status}"
        if child.dismissed:
            if child.ready and status != 0:
                self._status = 1 if self._stopping else self._status
                logger.warning("worker %d (process %d) ended with %s", slot.number, child.pid, how)
            return
        logger.error("worker %d (process %d) ended unasked with %s", slot.number, child.pid, how)
        if child.ready and status != 0:  # 0: somebody else told it to end, and it wrote all of its records
            self._lost.append((child.pid, how))
        if child is not slot.current or slot.successor is not None or self._stopping:
            return
        slot.current = None
        self._manager.status(self._summary)
        await self._refill(slot, time.monotonic() - child.since)

    async def _refill(self, slot: Slot, ran: float) -> None:
        """Put a new worker into a slot, after the pause that the last one has earned."""
        seconds = slot.failed(ran)
        if seconds >= EMPTY_AFTER and any(other.ready for other in self.slots if other is not slot):
            slot.renew()
        if seconds:
            logger.warning("worker %d is started again in %.1f s", slot.number, seconds)
            await asyncio.sleep(seconds)
        if not self._stopping and slot.current is None:
            await self._fill(slot)

    async def _fill(self, slot: Slot) -> None:
        if self._stopping:
            return
        child = await self._start(slot)
        if child is None:
            self._spawn(self._refill(slot, 0.0))
        elif await child.started():
            self._settled(child)

    def _settled(self, child: Child) -> None:
        """Welcome a worker that is ready: it puts on record what was lost with others."""
        lost, self._lost = self._lost, []
        for pid, how in lost:
            child.report_lost(pid, how)
        if self._stopping:
            return
        if self._announced:
            self._manager.status(self._summary)
        elif all(slot.ready for slot in self.slots):
            self._announced = True
            self._announce(self.address)
            self._manager.ready(self._summary)

    @property
    def _summary(self) -> str:
        return f"{sum(slot.ready for slot in self.slots)} of {len(self.slots)} workers are ready"

    # What signals ask for.

    def end(self) -> None:
        """Drain every worker and end; asked a second time, cut what still runs."""
        if self._stopping:
            self.cut()
            return
        self._stopping = True
        self._manager.stopping("draining")
        for slot in self.slots:  # else clients would wait in a queue that nobody empties
            slot.listening.close()
        for child in self._living:
            child.drain()
        self._stopped.set()

    def cut(self) -> None:
        """End, and have every worker cut what still runs."""
        if not self._stopping:
            self.end()
        for child in self._living:
            child.cut()

    async def _drained(self) -> None:
        """Wait until no worker is left; kill those that can't end."""
        try:
            async with asyncio.timeout(self._patience + ENDING):
                await asyncio.gather(*(child.ended() for child in self._living))
        except TimeoutError:
            for child in list(self._living):
                logger.error("worker %d (process %d) does not end; it is killed", child.slot, child.pid)
                child.kill()
                await child.ended()
            self._status = 1
        await asyncio.sleep(0)  # _watch has the statuses

    def reload(self) -> None:
        """Have every worker load the policy again: once more, where that is under way, as the file may have changed."""
        self._asked_to_reload = True
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload(), name="reload")

    async def _reload(self) -> None:
        while self._asked_to_reload:
            self._asked_to_reload = False
            self._manager.reloading()
            children = [child for child in self._living if child.ready and not child.dismissed]
            taken = await asyncio.gather(*(child.reload(RELOAD_PATIENCE) for child in children))
            logger.info("%d of %d workers have a new policy in force", sum(taken), len(children))
            self._manager.reloaded(all(taken), self._summary)

    def restart(self) -> None:
        """Replace every worker, one after the other."""
        if self._rolling is None or self._rolling.done():
            self._rolling = asyncio.create_task(self._roll(), name="rolling restart")
        else:
            logger.warning("a restart is under way already")

    async def _roll(self) -> None:
        for slot in self.slots:
            if self._stopping:
                return
            successor = await self._start(slot, successor=True)
            ready = successor is not None and await successor.started()
            slot.successor = None
            if successor is None or not ready:
                logger.error("the new worker %d is not ready: the old one stays, the restart ends", slot.number)
                self._manager.status(f"a restart failed; {self._summary}")
                if slot.current is not None and slot.current.status is not None and not self._stopping:
                    slot.current = None  # it crashed meanwhile
                    await self._fill(slot)
                return
            old, slot.current = slot.current, successor
            self._settled(successor)
            if old is not None and old.status is None:
                old.drain()
                try:
                    async with asyncio.timeout(self._patience + ENDING):
                        await old.ended()
                except TimeoutError:
                    old.kill()
        logger.info("every worker was replaced")
