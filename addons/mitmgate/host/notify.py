"""What a gateway process tells the one that started it: ready, reloading, stopping, alive. To systemd by sd_notify(3).

The protocol is one datagram of lines NAME=VALUE to the socket that NOTIFY_SOCKET names, a path or, with "@" in front,
an abstract address (sd_notify(3), "Description" and "Notes").
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from typing import Final, Protocol

logger = logging.getLogger(__name__)

_NAMES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Watching(Protocol):
    """Whoever started the process, and wants to know how it fares."""

    def ready(self, status: str) -> None:
        """Say that requests are accepted. status: a line for people."""
        ...

    def reloading(self) -> None:
        """Say that the policy is being loaded again."""
        ...

    def reloaded(self, taken: bool, status: str) -> None:
        """Say that it was. taken: the new policy is in force; else the old one stays."""
        ...

    def stopping(self, status: str) -> None:
        """Say that the process is on its way to its end."""
        ...

    async def beat(self) -> None:
        """Say again and again that the event loop turns; never returns."""
        ...


class ServiceManager:
    """systemd, or nobody: what nobody wants to hear is not said."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        """environ: where systemd puts the socket's address and the watchdog's interval."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        meant = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        microseconds = environ.get("WATCHDOG_USEC", "") if meant else ""
        self.interval = int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) > 0 else None
        """Seconds between two signs of life: half of what systemd waits for (sd_watchdog_enabled(3)); None: none."""

    def ready(self, status: str) -> None:
        """Say that requests are accepted."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the policy is being loaded again; systemd wants to know since when (Type=notify-reload)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def reloaded(self, taken: bool, status: str) -> None:
        """Say that it was, whatever came of it: the process is ready as before."""
        self._send("READY=1", f"STATUS={status}")

    def stopping(self, status: str) -> None:
        """Say that the process is on its way to its end."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say a line for people."""
        self._send(f"STATUS={status}")

    async def beat(self) -> None:
        """Feed the watchdog while the event loop turns; never returns."""
        while True:
            if self.interval is not None:
                self._send("WATCHDOG=1")
            await asyncio.sleep(self.interval or 3600.0)

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
                sending.setblocking(False)
                sending.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), self._address)
        except OSError as error:
            logger.warning("the service manager could not be told: %s", error)


def service_manager(environ: MutableMapping[str, str] = os.environ) -> ServiceManager:
    """Find who wants to be told, and take it out of the environment: a child process must not speak for us."""
    found = ServiceManager(environ, os.getpid())
    for name in _NAMES:
        environ.pop(name, None)
    return found


def _address(text: str) -> str | None:
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None
