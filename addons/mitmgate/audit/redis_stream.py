"""The Redis stream sink: batched XADD, and a spill file for the time that Redis is away.

At least once, and in order: a record that may not have arrived is sent again, behind none that came later. A consumer
tells a repeated record by its `id`. While the spill file holds anything, new records go to its end.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import Any

from redis import Connection, Redis, SSLConnection
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from mitmgate.audit.event import audit_recovered, refusals_moved
from mitmgate.audit.refusals import Share, room
from mitmgate.audit.settings import RedisStreamSink
from mitmgate.audit.sink import Emit, Health, SinkError
from mitmgate.audit.spill import Spill
from mitmgate.net.dialler import Dialler, peer_of
from mitmgate.net.resolver import Resolver
from mitmgate.net.tls_files import require_files
from mitmgate.usage import UserError

_PIPELINE = 500  # commands of one round trip
_CHUNK = 1 << 19  # bytes of the spill file that are sent at once
_SLICE = 0.5  # seconds that sending the spill may take before new records are looked at
_FIRST_RETRY = 0.25
_LAST_RETRY = 5.0

_USERINFO = re.compile(r"//[^/@\s]*@")


class StreamAppender:
    """Append records to a Redis stream. Every wait for Redis is bounded by the sink's `timeout`."""

    def __init__(self, settings: RedisStreamSink, health: Health, emit: Emit) -> None:
        """health: told when Redis goes and comes back. Raises UserError for a URL that is none."""
        self.name = f"redis_stream:{settings.stream}"
        self._settings = settings
        self._health = health
        self._emit = emit
        self._spill = None if settings.spill is None else Spill(settings.spill)
        self._missed = 0  # records that the spill file had to take
        self._retry = _FIRST_RETRY
        self._share = Share(room(settings.maxlen, settings.maxlen, small=10), _one)
        self._again = 0.0  # the monotonic time before which Redis is left alone
        # Of this thread alone: each use has an event loop of its own, which is gone when it returns.
        self._dialler = Dialler(Resolver(settings.nameservers, settings.max_stale))
        self._peer: str | None = None
        try:
            self._client = Redis.from_url(
                settings.url,
                dial=self._dial,
                socket_timeout=settings.timeout,
                socket_connect_timeout=settings.timeout,
                retry=Retry(NoBackoff(), 0),  # its own retries would be outside of our bound
                health_check_interval=0,
            )
        except ValueError as error:
            # Without the URL, and without the error's text: either may hold the password.
            raise UserError(f"the audit sink {self.name} has no usable redis URL") from error
        pool = self._client.connection_pool
        pool.connection_class = _DialledTls if issubclass(pool.connection_class, SSLConnection) else _Dialled

    def open(self) -> None:
        """Claim the spill file. Redis itself may be away."""
        if self._spill is None or self._spill.is_open:
            return
        try:
            torn = self._spill.open()
        except OSError as error:
            raise UserError(f"the spill file {self._settings.spill} can't be written: {error.strerror}") from error
        self._missed = self._spill.pending
        if torn:
            self._emit(audit_recovered(time(), self.name, torn_bytes=torn))

    def write(self, records: Sequence[bytes]) -> int:
        """Send records behind what is spilled, or spill them. Raises SinkError where neither can be done.

        The spill file may be full while Redis is back: Redis is then the way out, so it is tried first, however many
        records wait.
        """
        spill = self._spill
        if spill is None:
            sent, error = self._send(records)
            if not sent and error is not None:
                raise SinkError(error)
            return sent
        moved = 0
        if monotonic() >= self._again:
            moved = self._send_spilled(spill)
            if not spill.pending:
                sent, error = self._send(records)
                if error is None:
                    self._caught_up()
                    return sent
                self._put_off(error)
                return sent + self._put_by(spill, records[sent:], sent)
        return self._put_by(spill, records, moved)

    def idle(self) -> float | None:
        """Send what is spilled, when it is time to try."""
        spill = self._spill
        if spill is None or not spill.pending:
            return None
        now = monotonic()
        if now < self._again:
            return self._again - now
        self._send_spilled(spill)
        return max(0.0, self._again - monotonic()) if spill.pending else None

    def _send_spilled(self, spill: Spill) -> int:
        """Send what is spilled, for _SLICE seconds at most; return how many records went."""
        moved, until = 0, monotonic() + _SLICE
        while spill.pending:
            records = spill.read(_CHUNK)
            sent, error = self._send(records)
            spill.sent(records[:sent])
            moved += sent
            if error is not None:
                self._put_off(error)
                return moved
            if monotonic() > until:
                return moved
        if moved:
            self._caught_up()
        return moved

    def _caught_up(self) -> None:
        self._retry = _FIRST_RETRY
        self._health.recovered(self._missed)
        self._missed = 0

    def close(self) -> None:
        """Let Redis go; what is spilled stays for the next start."""
        self._client.close()
        if self._spill is not None:
            self._spill.close()

    def _put_by(self, spill: Spill, records: Sequence[bytes], sent: int) -> int:
        """Spill records. sent: what has gone just now; where the file is full, that is what can be said of it."""
        try:
            spill.append(records)
        except SinkError:
            if sent:
                return 0
            raise
        self._missed += len(records)
        self._health.spilled += len(records)
        return len(records)

    def _put_off(self, error: str) -> None:
        self._health.failed(error, spilling=True)
        self._again = monotonic() + self._retry
        self._retry = min(self._retry * 2, _LAST_RETRY)

    def _dial(self, host: str, port: int) -> socket.socket:
        async def dial() -> socket.socket:
            async with asyncio.timeout(self._settings.timeout):
                return await self._dialler.connect(host, port)

        connected = asyncio.run(dial())
        self._peer = peer_of(connected)
        return connected

    def _follow(self) -> None:
        """Close the connection where the server's name has other addresses by now."""
        host = self._client.connection_pool.connection_kwargs.get("host", "")
        if self._peer is None or not self._dialler.resolver.due(host):
            return
        with contextlib.suppress(OSError):
            asyncio.run(self._dialler.resolver.addresses(host))
            if not self._dialler.answers(host, self._peer):
                self._client.connection_pool.disconnect()
                self._peer = None

    def _send(self, records: Sequence[bytes]) -> tuple[int, str | None]:
        """Send as many records as Redis takes, in order; return how many, and what is wrong with the next.

        A transaction, so that no record gets in without the one before it. A connection that breaks leaves open
        whether the last one was carried out: its records count as not sent.
        """
        self._follow()
        done = 0
        while done < len(records):
            pipeline = self._client.pipeline(transaction=True)
            batch, stream = records[done : done + _PIPELINE], self._settings.stream
            moves = self._share.moves(batch)
            for record, moved in zip(batch, moves, strict=True):
                name = f"{stream}:refused" if moved else stream
                pipeline.xadd(name, {"event": record}, maxlen=self._settings.maxlen, approximate=True)
            try:
                pipeline.execute()
            except (RedisError, OSError) as error:
                return done, _told(error)
            if True in moves and not self._share.moved:
                self._emit(refusals_moved(time(), self.name, f"{stream}:refused"))
            self._share.count(batch)
            done += len(batch)
        return done, None


class _Dialled(Connection):
    """A connection whose server is resolved and dialled as everything else is."""

    def __init__(self, *args: Any, dial: Callable[[str, int], socket.socket], **kwargs: Any) -> None:
        self._dial = dial
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    def _connect(self) -> socket.socket:
        connected = self._dial(self.host, self.port)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.settimeout(self.socket_timeout)
        return connected


class _DialledTls(SSLConnection, _Dialled):
    """The same, for rediss://. redis-py reads the files that the URL names for each connection."""

    def _connect(self) -> socket.socket:
        require_files(self.ca_certs, self.certfile, self.keyfile)
        connected: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        return connected


def _one(record: bytes) -> int:
    """Measure a record of a stream, whose bound is a number of entries."""
    return 1


def _told(error: Exception) -> str:
    """Describe an error of the client, without credentials."""
    return _USERINFO.sub("//", f"{type(error).__name__}: {error}")
