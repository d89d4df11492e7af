"""What every measurement stands on: cores, a directory, the upstream, Redis; and how a subject is started on it."""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import policy
from bench.load import Ask, Sample, Witness, pace, saturate
from bench.processes import Process, free_port, started
from mitmgate.usage import UserError

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where. shared: more than one worker has to share its second core with the load."""

    subject: tuple[int, ...]
    pair: tuple[int, ...]
    load: tuple[int, ...]
    shared: bool

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """Divide the cores that this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise UserError("two cores are needed: one for the gateway, one for the load")
        if len(cores) == 2:
            return cls((cores[0],), tuple(cores), (cores[1],), shared=True)
        return cls((cores[0],), tuple(cores[:2]), tuple(cores[2:]), shared=False)


class Rig:
    """A directory of its own, the services that subjects need, and the two kinds of load."""

    def __init__(self, directory: Path, cores: Cores, stack: ExitStack) -> None:
        """stack: ends what was started here."""
        self.directory = directory
        self.cores = cores
        self._stack = stack
        self._numbers = itertools.count(1)
        self._redis: Process | None = None
        self.upstream = self._service("upstream", lambda port: [sys.executable, str(HERE / "upstream.py"), port])

    def _service(self, name: str, command: Callable[[str], list[str]]) -> Process:
        port = free_port()
        log = self.directory / f"{name}.log"
        return self._stack.enter_context(started(command(str(port)), port, self.cores.load, log, {}))

    @property
    def redis(self) -> Process:
        """A Redis server without persistence, started when it is first needed."""
        if self._redis is None:
            if shutil.which("redis-server") is None:
                raise UserError("redis-server is missing (Debian, Ubuntu: apt install redis-server)")
            plain = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", str(self.directory)]
            self._redis = self._service("redis", lambda port: ["redis-server", "--port", port, *plain])
        return self._redis

    @property
    def redis_url(self) -> str:
        """Its address, for a policy."""
        return f"redis://127.0.0.1:{self.redis.port}/0"

    @contextmanager
    def running(
        self, command: Callable[[Path, int], list[str]], cores: Collection[int] = (), says: str = ""
    ) -> Iterator[Process]:
        """Run a subject until the block ends. command: makes its words from a directory of its own and a port.

        says: what it must have said before it is measured, beside accepting connections.
        """
        directory = self.directory / f"subject-{next(self._numbers)}"
        directory.mkdir()
        port = free_port()
        environ = {policy.SECRET_NAME: policy.SECRET}
        words, log = command(directory, port), directory / "words.log"
        with started(words, port, cores or self.cores.subject, log, environ, says) as process:
            yield process

    def _beside(self) -> Witness:
        return Witness(self.upstream, self._redis)

    def saturate(self, target: Process, ask: Ask, seconds: int) -> Sample:
        """Measure at saturation."""
        return saturate(target, ask, seconds, self.cores.load, self.directory, self._beside())

    def pace(self, target: Process, ask: Ask, rate: float, seconds: int) -> Sample:
        """Measure at a fixed rate."""
        return pace(target, ask, rate, seconds, self.cores.load, self._beside())


@contextmanager
def rig() -> Iterator[Rig]:
    """Set up, and clean up at the end of the block."""
    cores = Cores.of_this_machine()
    with tempfile.TemporaryDirectory(prefix="mitmgate-bench-") as made, ExitStack() as stack:
        yield Rig(Path(made), cores, stack)


@contextmanager
def beside(cores: Cores) -> Iterator[None]:
    """Keep this process, a part of the load, off the measured core until the block ends."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores.load)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
