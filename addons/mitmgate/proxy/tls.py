"""TLS over memory: the protocol of a socket, and the transport of whatever speaks above it.

    socket → buffer_updated → OpenSSL → the inner protocol's buffer_updated
    socket ← transport.write ← OpenSSL ← write (called by the inner protocol)

asyncio's own TLS keeps 256 KiB for each connection, this about 28. pyOpenSSL, since the `ssl` module can neither refuse
a client without a common protocol (RFC 7301, section 3.2) nor name the authorities that it asks a certificate of.
"""

import asyncio
import contextlib
import ipaddress
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.dsa import DSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificates
from mypy_extensions import mypyc_attr
from OpenSSL import SSL
from OpenSSL._util import ffi
from OpenSSL._util import lib as openssl
from OpenSSL.crypto import X509, X509StoreContext, X509StoreContextError
from OpenSSL.crypto import Error as CryptoError

from mitmgate.core.rules import Endpoint, ListenTls, UpstreamTls
from mitmgate.policy.snapshot import Snapshot, SnapshotSource

logger = logging.getLogger(__name__)

READ_BYTES: Final = 64 * 1024
"""What is taken out of OpenSSL at once."""
UNUSABLE: Final = (SSL.Error, CryptoError, ValueError, TypeError)
"""What is raised for a text that is no certificate, or no key, or not the certificate's."""
LAST_WORDS: Final = 128
"""Times READ_BYTES: what is still read of a connection that its peer has reset."""
UNREAD: Final = 256 * 1024
"""Bytes that a peer leaves unread while it makes OpenSSL answer; then it is not read either."""
RECORD: Final = 16 * 1024
"""Plaintext of one record (RFC 8446, section 5.1): OpenSSL is given no more at once, so that it holds no copy."""


_SIGNS: Final = (DSAPrivateKey, EllipticCurvePrivateKey, Ed25519PrivateKey, Ed448PrivateKey, RSAPrivateKey)
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)
CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!MD5"
"""For TLS 1.2: forward secrecy and authenticated encryption, as HTTP/2 asks for (RFC 9113, section 9.2.2)."""
PROTOCOLS: Final = (b"h2", b"http/1.1")


def server_context(tls: ListenTls) -> SSL.Context:
    """Make the context for clients, which knows those of the names that some ask for (RFC 6066). Raises UNUSABLE."""
    context = _server_context(tls, tls.certificate, tls.key)
    named: dict[str, SSL.Context] = {}
    for further in tls.further:
        named.update(dict.fromkeys(further.names, _server_context(tls, further.certificate, further.key)))
    if named:

        def choose(connection: SSL.Connection) -> None:
            name = (connection.get_servername() or b"").decode("ascii", "replace").lower().removesuffix(".")
            chosen = named.get(name) or named.get(f"*.{name.partition('.')[2]}")
            if chosen is not None:
                connection.set_context(chosen)

        context.set_tlsext_servername_callback(choose)
    return context


def _server_context(tls: ListenTls, certificate: bytes, key: bytes) -> SSL.Context:
    context = _context(SSL.TLS_SERVER_METHOD)
    _use_certificate(context, certificate, key)
    context.set_alpn_select_callback(_choose_protocol)
    context.set_session_id(b"mitmgate")
    if tls.client_ca is None:
        context.set_verify(SSL.VERIFY_NONE)
    else:
        # A session says that a certificate was good once, and is renewed with each use: nobody would look at it again.
        context.set_options(SSL.OP_NO_TICKET)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        for authority in _trust(context, tls.client_ca):
            context.add_client_ca(authority)
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


def client_connection(endpoint: Endpoint, tls: UpstreamTls | None) -> SSL.Connection:
    """Make the client's side of a connection to an endpoint, whose certificate is always verified, by its SAN alone.

    Raises UNUSABLE.
    """
    tls = tls or UpstreamTls()
    connection = SSL.Connection(
        _client_context(tls.ca, tls.system, tls.certificate, tls.key, b"h2" if endpoint.http2 else b"http/1.1")
    )
    name = tls.server_name or endpoint.host
    # What pyOpenSSL has no method for: mitmproxy verifies names in the same way (its addons/tlsconfig.py).
    parameters = openssl.SSL_get0_param(connection._ssl)
    flags = openssl.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | openssl.X509_CHECK_FLAG_NEVER_CHECK_SUBJECT
    openssl.X509_VERIFY_PARAM_set_hostflags(parameters, flags)
    try:
        address = ipaddress.ip_address(name).packed
    except ValueError:
        encoded = name.encode("idna")
        connection.set_tlsext_host_name(encoded)
        set_name = openssl.X509_VERIFY_PARAM_set1_host(parameters, encoded, len(encoded))
    else:
        set_name = openssl.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))
    if set_name != 1:
        raise ValueError(f"no certificate can be for {name!r}")
    connection.set_connect_state()
    return connection


@lru_cache(maxsize=64)
def _client_context(
    ca: bytes | None, system: bytes | None, certificate: bytes | None, key: bytes | None, protocol: bytes
) -> SSL.Context:
    """Make the context of all endpoints with these texts: by what they say, so that a rotated file makes another."""
    context = _context(SSL.TLS_CLIENT_METHOD)
    if ca is not None:
        _trust(context, ca)
    else:
        paths = ssl.get_default_verify_paths()
        if system is not None:
            _trust(context, system)
        if paths.capath is not None:
            context.load_verify_locations(None, paths.capath)
    if certificate is not None and key is not None:
        _use_certificate(context, certificate, key)
    context.set_alpn_protos([protocol])
    context.set_verify(SSL.VERIFY_PEER)
    return context


def _use_certificate(context: SSL.Context, certificates: bytes, key: bytes) -> None:
    """Present a certificate, followed by those that lead to its authority."""
    own, *chain = load_pem_x509_certificates(certificates)
    context.use_certificate(own)
    for certificate in chain:
        context.add_extra_chain_cert(certificate)
    own_key = load_pem_private_key(key, None)
    if not isinstance(own_key, _SIGNS):
        raise ValueError("the key is of no kind that signs")  # noqa: TRY004  # a text that can't be used
    context.use_privatekey(own_key)
    context.check_privatekey()


def _trust(context: SSL.Context, authorities: bytes) -> list[Certificate]:
    store = context.get_cert_store()
    if store is None:
        raise ValueError("the context has no store")
    found = load_pem_x509_certificates(authorities)
    for authority in found:
        store.add_cert(X509.from_cryptography(authority))
    return found


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """Choose in our order; a client that offers neither is refused (RFC 7301, section 3.2)."""
    for protocol in PROTOCOLS:
        if protocol in offered:
            return protocol
    raise SSL.Error("no common protocol")


class ListenerContexts:
    """The context for new connections: made of the policy's files, anew with every reload for renewed certificates.

    Where the listener speaks TLS at all, and with which files, is settled by the first policy: the socket outlives it.
    A file that can't be read at a reload leaves the whole policy in force that was.
    """

    def __init__(self, source: SnapshotSource) -> None:
        """source: the policy in force."""
        self._source = source
        self._snapshot: Snapshot | None = None
        self._tls: ListenTls | None = None  # what the context was made of
        self._named: Any = None  # what the first policy says of it
        self._context: SSL.Context | None = None

    @property
    def client_ca(self) -> bytes | None:
        """The authorities of clients' certificates that the context in force was made of."""
        return None if self._tls is None else self._tls.client_ca

    def context(self) -> SSL.Context | None:
        """Return the context in force; None: the listener speaks no TLS. Raises where the first one can't be made."""
        snapshot = self._source.snapshot
        if snapshot is self._snapshot:
            return self._context
        first = self._snapshot is None
        if first:
            self._named = snapshot.policy.listen.tls
        tls = snapshot.listen_tls
        if first and self._named is not None and tls is None:
            raise ValueError("the policy wants TLS with clients, and its files were not read")
        if tls is not None and tls != self._tls and snapshot.policy.listen.tls == self._named:
            try:
                self._context = server_context(tls)
            except UNUSABLE:
                if first:
                    raise
                logger.exception("the certificate can't be used; the old one stays in use")
            else:
                self._tls = tls
        self._snapshot = snapshot
        return self._context


class HandshakeError(Exception):
    """There is no TLS connection. Its text is for a log. code: OpenSSL's, of the verification of the certificate."""

    def __init__(self, why: str, code: int = 0) -> None:
        """code: 0: the certificate was not what failed."""
        super().__init__(why)
        self.code = code


@mypyc_attr(allow_interpreted_subclasses=True)
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
        self._stays = False  # and the inner protocol has still something to send
        self.ended_in_order = False  # it said close_notify
        self.flaw = ""  # why what came is not TLS, or the peer wants no more of it
        self._again: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(deadline, self._expired)

    def admitted_by(self, context: SSL.Context) -> bool:
        """Tell whether a server's context, which may be another by now, would take the peer's certificate, or none."""
        certificate, store = self.tls.get_peer_certificate(), context.get_cert_store()
        if certificate is None:
            return not context.get_verify_mode() & SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        if store is None:
            return False
        try:
            X509StoreContext(store, certificate, self.tls.get_peer_cert_chain() or []).verify_certificate()
        except X509StoreContextError:
            return False
        return True

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
        self._stop_timer()
        self._failed = None
        self._inner = inner = self._established(self)
        self._established = _nothing_more
        inner.connection_made(self)
        self._read()
        self._flush()  # the last of the handshake, where the inner protocol had nothing to send along with it

    def _fail(self, why: str) -> None:
        """End, where there is no inner protocol yet."""
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
            try:
                count = self._decrypt(memoryview(inner.get_buffer(READ_BYTES)))
            except SSL.ZeroReturnError:
                self.ended_in_order = True
                if not self._end_of_input():
                    self.close()
                return
            except SSL.Error as error:
                self.flaw = describe(error)
                logger.debug("a TLS connection is broken off: %s", self.flaw)
                self._flush()
                self.abort()
                return
            if count == 0:
                self._flush()  # the answers to key updates, which a peer may ask for without reading any
                self._choke(self.get_write_buffer_size() > UNREAD)
                return
            inner.buffer_updated(count)

    def _decrypt(self, target: memoryview) -> int:
        """Read into a buffer; 0: there is no more. As pyOpenSSL's `recv_into`, without the copy and WantReadError.

        Raises SSL.Error.
        """
        tls = self.tls._ssl
        count: int = openssl.SSL_read(tls, ffi.from_buffer(target, require_writable=True), len(target))
        if count <= 0:
            if openssl.SSL_get_error(tls, count) != openssl.SSL_ERROR_WANT_READ:
                self.tls._raise_ssl_error(tls, count)
            return 0
        return count

    def _end_of_input(self) -> bool:
        """Tell the inner protocol, once: close_notify and the end of the socket are two ends. Returns what it says."""
        if self._inner is None:
            return False
        if not self._ended:
            self._ended = True
            self._stays = bool(self._inner.eof_received())
        return self._stays

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
        """Send what OpenSSL has ready, as pyOpenSSL's `bio_read` takes it out, without WantReadError at the end."""
        raw, ready = self._raw, READ_BYTES
        while raw is not None and ready == READ_BYTES and not raw.is_closing():
            taken = _allocate("char[]", READ_BYTES)
            ready = openssl.BIO_read(self.tls._from_ssl, taken, READ_BYTES)
            if ready > 0:
                raw.write(ffi.buffer(taken, ready)[:])

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


class ClientSide(TlsTransport):
    """A TLS connection that we have opened. `established` is awaited for the handshake."""

    def __init__(self, tls: SSL.Connection, buffer: memoryview, within: float, inner: asyncio.BufferedProtocol) -> None:
        """tls: see client_connection. within: seconds for everything up to the end of the handshake."""
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be nobody's by then

        def established(_: TlsTransport) -> asyncio.BufferedProtocol:
            if not self._done.done():
                self._done.set_result(None)
            return inner

        super().__init__(tls, buffer, within, established, self._refused)

    async def established(self) -> None:
        """Wait for the end of the handshake. Raises HandshakeError; cancelled, it closes the connection."""
        try:
            await self._done
        except BaseException:
            self.abort()
            raise

    def _refused(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(HandshakeError(why, openssl.SSL_get_verify_result(self.tls._ssl)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the socket; of one that was reset, what still lies in it comes first.

        A service that answers before it has read a whole request, and closes, resets the connection: writing to it
        fails, and the answer still lies in the socket, which asyncio is about to close.
        """
        if exc is not None and self._raw is not None and self._inner is not None and not self._ended:
            self._paused = False
            for data in last_words(self._raw):
                self.tls.bio_write(data)
                self._read()
        super().connection_lost(exc)


def last_words(transport: asyncio.Transport) -> Iterator[bytes]:
    """Read what lies ready on a socket that its peer has reset."""
    with contextlib.suppress(OSError):
        for _ in range(LAST_WORDS):
            data = os.read(transport.get_extra_info("socket").fileno(), READ_BYTES)
            if not data:
                return
            yield data


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
