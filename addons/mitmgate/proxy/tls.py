"""TLS over memory: the protocol of a socket, and the transport of whatever speaks above it.

    socket → buffer_updated → OpenSSL → the inner protocol's buffer_updated
    socket ← transport.write ← OpenSSL ← write (called by the inner protocol)

asyncio's own TLS keeps 256 KiB for each connection, this about 28. pyOpenSSL, since the `ssl` module can neither refuse
a client without a common protocol (RFC 7301, section 3.2) nor name the authorities that it asks a certificate of.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from OpenSSL import SSL

from mitmgate.policy.snapshot import Snapshot, SnapshotSource

logger = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
"""What is taken out of OpenSSL at once."""
UNREAD: Final = 256 * 1024
"""Bytes that a peer leaves unread while it makes OpenSSL answer; then it is not read either."""
RECORD: Final = 16 * 1024
"""Plaintext of one record (RFC 8446, section 5.1): OpenSSL is given no more at once, so that it holds no copy."""


CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!MD5"
"""For TLS 1.2: forward secrecy and authenticated encryption, as HTTP/2 asks for (RFC 9113, section 9.2.2)."""
PROTOCOLS: Final = (b"h2", b"http/1.1")


@dataclass(frozen=True, slots=True)
class ListenTls:
    """How clients are spoken to. Paths are absolute. client_ca: None where no certificate is asked for."""

    certificate: str
    key: str
    client_ca: str | None
    client_required: bool


def server_context(tls: ListenTls) -> SSL.Context:
    """Make the context for clients. Raises SSL.Error or OSError where a file is not what it should be."""
    context = _context(SSL.TLS_SERVER_METHOD)
    context.use_certificate_chain_file(tls.certificate)
    context.use_privatekey_file(tls.key)
    context.check_privatekey()
    context.set_alpn_select_callback(_choose_protocol)
    context.set_session_id(b"mitmgate")
    if tls.client_ca is None:
        context.set_verify(SSL.VERIFY_NONE)
    else:
        context.load_verify_locations(tls.client_ca)
        context.load_client_ca(tls.client_ca.encode())
        required = SSL.VERIFY_FAIL_IF_NO_PEER_CERT if tls.client_required else 0
        context.set_verify(SSL.VERIFY_PEER | required)
    return context


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(CIPHERS)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    return context


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Choose in our order; a client that offers neither is refused (RFC 7301, section 3.2)."""
    for protocol in PROTOCOLS:
        if protocol in offered:
            return protocol
    raise SSL.Error("no common protocol")


class ListenerContexts:
    """The context for new connections: made of the policy's files, anew with every reload for renewed certificates.

    Where the listener speaks TLS at all, and with which files, is settled by the first policy: the socket outlives it.
    A file that can't be read at a reload leaves the old context in force.
    """

    def __init__(self, source: SnapshotSource) -> None:
        """source: the policy in force."""
        self._source = source
        self._snapshot: Snapshot | None = None
        self._tls: ListenTls | None = None
        self._context: SSL.Context | None = None

    def context(self) -> SSL.Context | None:
        """Return the context in force; None: the listener speaks no TLS. Raises where the first one can't be made."""
        snapshot = self._source.snapshot
        if snapshot is self._snapshot:
            return self._context
        if self._snapshot is None:
            self._tls = _listen_tls(snapshot)
        if self._tls is not None:
            try:
                self._context = server_context(self._tls)
            except (SSL.Error, OSError):
                if self._context is None:
                    raise
                logger.exception("the certificate could not be read again; the old one stays in use")
        self._snapshot = snapshot
        return self._context


def _listen_tls(snapshot: Snapshot) -> ListenTls | None:
    tls = snapshot.policy.listen.tls
    if tls is None:
        return None
    authority = None if tls.client_ca is None else snapshot.resolve(tls.client_ca)
    required = tls.client_certificate != "optional"
    return ListenTls(snapshot.resolve(tls.certificate), snapshot.resolve(tls.key), authority, required)


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """One TLS connection, of either side.

    The inner protocol is made when the handshake is complete: only then is it known what will be spoken. It must be a
    BufferedProtocol, and take what is read out of the buffer at once: all connections share one.
    """

    def __init__(
        self,
        tls: SSL.Connection,
        buffer: memoryview,
        deadline: float,
        established: Callable[["TlsTransport"], asyncio.BufferedProtocol],
        failed: Callable[[str], None] | None = None,
    ) -> None:
        """tls: on memory, its side set. deadline: seconds for the handshake. established: makes the inner protocol.

        failed: told once, in words for a log, where there will be no inner protocol.
        """
        super().__init__()
        self.tls = tls
        self._buffer = buffer
        self._established = established
        self._failed = failed
        self._inner: asyncio.BufferedProtocol | None = None
        self._raw: asyncio.Transport | None = None
        self._closing = False
        self._paused = False
        self._choked = False  # the peer does not take what OpenSSL answers by itself
        self._ended = False  # the peer said close_notify, or closed the connection
        self._again: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(deadline, self._expired)

    # The protocol of the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream transport is wanted")
        self._raw = transport
        self._shake_hands()

    def abandon(self, transport: asyncio.Transport) -> None:
        """Close a connection instead of beginning the handshake."""
        self._stop_timer()
        self._closing = True
        transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the shared buffer."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes of the TLS stream."""
        if self._raw is None or self._ended:
            return
        self.tls.bio_write(self._buffer[:nbytes])
        if self._inner is None:
            self._shake_hands()
        else:
            self._read()

    def eof_received(self) -> bool:
        """Take the end of what the peer sends. Without close_notify the inner protocol's framing says what it means."""
        if self._inner is None:
            self._fail("the peer closed the connection inside the handshake")
            return False
        return self._end_of_input()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the socket, and let go of everything."""
        self._stop_timer()
        if self._again is not None:
            self._again.cancel()
        inner, self._inner, self._raw = self._inner, None, None
        failed, self._failed = self._failed, None
        self._closing = self._ended = True
        if inner is not None:
            inner.connection_lost(exc)
        elif failed is not None:
            failed("the connection ended inside the handshake")
        self._established = _nothing_more

    def pause_writing(self) -> None:
        """Tell the inner protocol that the peer reads too slowly."""
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Tell the inner protocol to go on writing."""
        self._choke(False)
        if self._inner is not None:
            self._inner.resume_writing()

    # The handshake.

    def _shake_hands(self) -> None:
        try:
            self.tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return
        except SSL.Error as error:
            self._flush()  # the alert that OpenSSL has ready
            self._fail(describe(error))
            return
        self._flush()
        self._stop_timer()
        self._failed = None
        self._inner = inner = self._established(self)
        self._established = _nothing_more
        inner.connection_made(self)
        self._read()

    def _fail(self, why: str) -> None:
        failed, self._failed = self._failed, None
        self._stop_timer()
        self._closing = True
        if self._raw is not None:
            self._raw.close()
        if failed is not None:
            failed(why)

    def _expired(self) -> None:
        self._timer = None
        if self._inner is None:
            self._fail("the handshake took too long")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Reading.

    def _read(self) -> None:
        """Hand over what OpenSSL has decrypted, until it has no more or the inner protocol wants none."""
        self._again = None
        while self._inner is not None and not self._paused and not self._ended:
            inner = self._inner
            target = inner.get_buffer(READ_BYTES)
            try:
                count = self.tls.recv_into(target)
            except SSL.WantReadError:
                self._flush()  # the answers to key updates, which a peer may ask for without reading any
                self._choke(self.get_write_buffer_size() > UNREAD)
                return
            except SSL.ZeroReturnError:
                if not self._end_of_input():
                    self.close()
                return
            except SSL.Error as error:
                logger.debug("a TLS connection is broken off: %s", describe(error))
                self._flush()
                self.abort()
                return
            inner.buffer_updated(count)

    def _end_of_input(self) -> bool:
        if self._ended or self._inner is None:
            return False
        self._ended = True
        return bool(self._inner.eof_received())

    # The transport of the inner protocol.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send."""
        if self._closing or self._raw is None:
            return
        try:
            if len(data) <= RECORD:
                self.tls.send(data)
            else:
                view = memoryview(data)
                for start in range(0, len(view), RECORD):
                    self.tls.send(view[start : start + RECORD])
                    if start % READ_BYTES == READ_BYTES - RECORD:
                        self._flush()  # OpenSSL keeps for good as much memory as it has once held
        except SSL.Error as error:
            logger.debug("a TLS connection is broken off: %s", describe(error))
            self.abort()
            return
        self._flush()

    def _flush(self) -> None:
        raw = self._raw
        if raw is None:
            return
        with contextlib.suppress(SSL.WantReadError):
            while True:
                raw.write(self.tls.bio_read(READ_BYTES * 4))

    def close(self) -> None:
        """Say goodbye (RFC 8446, section 6.1), send what is left, and close."""
        if self._closing:
            return
        self._closing = True
        self._goodbye()
        if self._raw is not None:
            self._raw.close()

    def write_eof(self) -> None:
        """Send nothing more; what the peer still sends is read."""
        if self._closing or self._raw is None:
            return
        self._goodbye()
        if self._raw.can_write_eof():
            self._raw.write_eof()

    def can_write_eof(self) -> bool:
        """Tell that a side of a TLS connection can be closed alone."""
        return True

    def _goodbye(self) -> None:
        with contextlib.suppress(SSL.Error):
            self.tls.shutdown()
        self._flush()

    def abort(self) -> None:
        """Close now; what is not sent yet is lost."""
        self._closing = True
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        """Tell whether the connection ends."""
        return self._closing or self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        """Hand over nothing more for now, and let the peer feel it."""
        self._paused = True
        if self._raw is not None and not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Go on, with what OpenSSL still has first: not in the caller's middle."""
        if not self._paused:
            return
        self._paused = False
        if self._raw is not None and not self._raw.is_closing() and not self._choked:
            self._raw.resume_reading()
        if self._again is None:
            self._again = asyncio.get_running_loop().call_soon(self._read)

    def _choke(self, choked: bool) -> None:
        """Read nothing of a peer that makes us answer and takes no answer."""
        if choked is not self._choked:
            self._choked = choked
            if self._raw is not None and not self._raw.is_closing() and not self._paused:
                if choked:
                    self._raw.pause_reading()
                else:
                    self._raw.resume_reading()

    def is_reading(self) -> bool:
        """Tell whether what comes is handed over."""
        return not self._paused and not self._closing

    def get_write_buffer_size(self) -> int:
        """Return the bytes that wait for the socket."""
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the inner protocol is told to pause."""
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the socket."""
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Put another protocol in the inner one's place."""
        if not isinstance(protocol, asyncio.BufferedProtocol):
            raise TypeError("a buffered protocol is wanted")
        self._inner = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the inner protocol."""
        if self._inner is None:
            raise RuntimeError("the handshake is not complete")
        return self._inner


def describe(error: SSL.Error) -> str:
    """Say what OpenSSL has said, in its own words."""
    if isinstance(error, SSL.SysCallError):
        return "the peer closed the connection"
    reasons = error.args[0] if error.args else ()
    if isinstance(reasons, list) and reasons:
        return "; ".join(str(reason[-1]) for reason in reasons)
    return str(error) or type(error).__name__


def _nothing_more(_: TlsTransport) -> asyncio.BufferedProtocol:
    raise RuntimeError("the connection has ended")
