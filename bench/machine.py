"""The machine in words: what figures can't be read without."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bench.rig import Cores


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how it was measured."""

    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    mitmproxy: str
    load_average: float
    placement: str

    @property
    def words(self) -> str:
        """Say it in one sentence."""
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB; {self.system}; Python {self.python}, "
            f"mitmproxy {self.mitmproxy}; {self.placement}; load average before: {self.load_average:.1f}"
        )

    @property
    def quiet(self) -> bool:
        """Say whether hardly anything else ran when the measurement began."""
        return self.load_average < 0.5


def this_machine(cores: Cores) -> Machine:
    """Describe this machine, now."""
    processor = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal:")), 0)
    placement = f"what is measured on core {cores.subject[0]}, load, upstream and Redis on {_names(cores.load)}"
    return Machine(
        processor=processor,
        cores=os.cpu_count() or 0,
        memory_gib=total / (1 << 20),
        system=f"{platform.system()} {platform.release().partition('-')[0]}, loopback",
        python=platform.python_version(),
        mitmproxy=version("mitmproxy"),
        load_average=os.getloadavg()[0],
        placement=placement,
    )


def _names(cores: tuple[int, ...]) -> str:
    return ("core " if len(cores) == 1 else "cores ") + ", ".join(str(core) for core in cores)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
