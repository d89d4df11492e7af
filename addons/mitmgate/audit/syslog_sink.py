"""The syslog sink: RFC 5424 messages whose text is an event's JSON, to a Unix socket, over UDP or over TCP.

What a syslog server has taken it does not say. A Unix socket, as journald and rsyslog have it, loses nothing while it
is there: a full one is waited for. Over TCP (RFC 6587, octet counting) what was on its way when the connection broke is
lost; over UDP (RFC 5426) anything may be, without anyone noticing. So a chained file stays the record, and this is how
it is seen elsewhere.
"""

import asyncio
import errno
import os
import select
import socket
from collections.abc import Sequence
from time import monotonic
from typing import Final

import orjson

from mitmgate.audit.settings import SyslogSink
from mitmgate.audit.sink import SinkError
from mitmgate.net.dialler import Dialler, Info
from mitmgate.net.resolver import Resolver

FACILITIES: Final = {
    **{"user": 1, "daemon": 3, "auth": 4, "syslog": 5, "authpriv": 10, "audit": 13, "alert": 14},
    **{f"local{number}": 16 + number for number in range(8)},
}
"""RFC 5424, section 6.2.1."""
_NOTICE: Final = 5
_WARNING: Final = 4
_LONGEST: Final = 60_000  # bytes of a message in one datagram
_KEPT: Final = ("time", "event", "id", "worker", "v", "request_id", "status", "outcome", "decision", "reason", "policy")


class SyslogAppender:
    """Send records to a syslog server. Every wait is bounded by the sink's `timeout`."""

    def __init__(self, settings: SyslogSink) -> None:
        """Nothing connects before the first record."""
        where = settings.path or f"{settings.host}:{settings.port}"
        self.name = f"syslog:{settings.transport}:{where}"
        self._settings = settings
        self._socket: socket.socket | None = None
        self._rest = b""  # of a message that a stream has taken in part: nothing may come before it
        self._stream = settings.transport == "tcp"
        # Of this thread alone: each use has an event loop of its own, which is gone when it returns.
        self._dialler = Dialler(Resolver(settings.nameservers, settings.max_stale))
        host = "".join(character for character in socket.gethostname() if 33 <= ord(character) <= 126)[:255] or "-"
        self._middle = f"{host} {settings.app_name} {os.getpid()}".encode("ascii")
        self._facility = 8 * FACILITIES[settings.facility]

    def open(self) -> None:
        """Do nothing: the server may be away."""

    def write(self, records: Sequence[bytes]) -> int:
        """Send as many records as the server takes. Raises SinkError where it takes none."""
        sent = 0
        try:
            if self._socket is not None and self._stream and _left(self._socket):
                self._drop()
            if self._socket is None:
                self._connect()
            for record in records:
                self._send(record)
                sent += 1
        except OSError as error:
            # A stream whose server hangs is kept: each further connection would take, and lose, as much again.
            if not (self._stream and isinstance(error, TimeoutError)):
                self._drop()  # a message that was sent in part ends with its connection, and is sent again
            if not sent:
                raise SinkError(f"{self.name} takes nothing: {error.strerror or error}") from error
        return sent

    def idle(self) -> float | None:
        """Wait for the next record."""
        return None

    def close(self) -> None:
        """Close the connection; what was sent is still delivered."""
        self._drop()

    def _send(self, record: bytes) -> None:
        connected = self._socket
        if connected is None:
            raise OSError("not connected")
        if self._rest:  # of this record, which is given again
            self._finish(connected)
            return
        message = self._message(record)
        if self._stream:
            self._rest = b"%d %b" % (len(message), message)
            self._finish(connected)
            return
        if len(message) > _LONGEST:
            message = self._message(_short(record))
        try:
            connected.send(message)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            connected.send(self._message(_short(record)))

    def _finish(self, connected: socket.socket) -> None:
        """Send the rest of a message. Raises OSError."""
        until = monotonic() + self._settings.timeout
        while self._rest:
            if monotonic() > until:
                raise TimeoutError("timed out")
            self._rest = self._rest[connected.send(self._rest) :]

    def _message(self, record: bytes) -> bytes:
        """Write a message (RFC 5424, section 6). MSGID: the event's kind; a refusal is a warning."""
        event = orjson.loads(record)
        severity = _WARNING if event.get("decision") == "deny" or event.get("outcome") == "failed" else _NOTICE
        time, kind = str(event.get("time", "-")), str(event.get("event", "-"))[:32]
        header = f"<{self._facility + severity}>1 {time} ".encode("ascii", "replace")
        return b"%b%b %b - %b" % (header, self._middle, kind.encode("ascii", "replace"), record)

    def _connect(self) -> None:
        """Connect. Raises OSError."""
        self._drop()
        settings = self._settings
        if settings.transport == "unix":
            self._socket = _unix(settings.path, settings.timeout)
            self._stream = self._socket.type == socket.SOCK_STREAM
        elif settings.transport == "tcp":
            self._socket = asyncio.run(self._dial())
        else:
            family, _, _, _, address = asyncio.run(self._look_up())
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            self._socket.connect(address)
        self._socket.settimeout(settings.timeout)

    async def _dial(self) -> socket.socket:
        async with asyncio.timeout(self._settings.timeout):
            return await self._dialler.connect(self._settings.host, self._settings.port)

    async def _look_up(self) -> Info:
        async with asyncio.timeout(self._settings.timeout):
            return (await self._dialler.look_up(self._settings.host, self._settings.port))[0]

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._rest = b""


def _left(connected: socket.socket) -> bool:
    """Tell whether the server has closed the connection: what is sent then would be lost without an error."""
    look = select.poll()
    look.register(connected, select.POLLIN)
    return bool(look.poll(0)) and connected.recv(4096) == b""


def _unix(path: str, timeout: float) -> socket.socket:
    """Connect to a Unix socket, of datagrams as /dev/log is, or else of a stream. Raises OSError."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        made = socket.socket(socket.AF_UNIX, kind)
        made.settimeout(timeout)
        try:
            made.connect(path)
        except OSError as error:
            made.close()
            if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM:
                raise
        else:
            return made
    raise OSError(errno.EPROTOTYPE, "it is neither a datagram nor a stream socket")


def _short(record: bytes) -> bytes:
    """Say what a datagram has room for of a record that is too long for one."""
    event = orjson.loads(record)
    return orjson.dumps({name: event[name] for name in _KEPT if name in event} | {"cut": len(record)})
