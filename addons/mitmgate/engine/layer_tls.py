"""TLS on both sides: what the policy says of certificates, and nothing that mitmproxy would make up.

mitmproxy's `tlsconfig` addon answers clients with certificates of its own authority. These layers don't ask it: the
connection objects are made here, from the policy.
"""

import contextlib
import ipaddress
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers.tls import ServerTLSLayer, TLSLayer
from mitmproxy.proxy.tunnel import TunnelState
from OpenSSL import SSL

from mitmgate.core.rules import UpstreamTls
from mitmgate.descriptors import Seldom
from mitmgate.policy.snapshot import Snapshot, SnapshotSource

logger = logging.getLogger(__name__)
_failures = Seldom(logger)

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


@lru_cache(maxsize=64)
def client_context(tls: UpstreamTls | None) -> SSL.Context:
    """Make the context for an upstream: it is always verified."""
    context = _context(SSL.TLS_CLIENT_METHOD)
    if tls is not None and tls.ca is not None:
        context.load_verify_locations(tls.ca)
    else:
        context.set_default_verify_paths()
    context.set_verify(SSL.VERIFY_PEER)
    if tls is not None and tls.certificate is not None:
        context.use_certificate_chain_file(tls.certificate)
        context.use_privatekey_file(tls.key or tls.certificate)
        context.check_privatekey()
    context.set_alpn_protos([b"http/1.1"])
    return context


def _context(method: int) -> SSL.Context:
    context = SSL.Context(method)
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


class Listener:
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


class _PolicyTls(TLSLayer):
    """What both sides share: alerts that reach the peer, and a goodbye before the end."""

    def on_handshake_error(self, err: str) -> CommandGenerator[None]:
        """Send the alert that OpenSSL has ready, then close."""
        _failures.log(logging.INFO, "TLS handshake failed: %s", err)
        if self.tls is not None:
            yield from self.tls_interact()
        yield from super().on_handshake_error(err)

    def send_close(self, command: commands.CloseConnection) -> CommandGenerator[None]:
        """Say close_notify before the TCP connection ends (RFC 8446, section 6.1)."""
        if self.tls is not None and self.tunnel_state is TunnelState.OPEN:
            with contextlib.suppress(SSL.Error):
                self.tls.shutdown()
            yield from self.tls_interact()
        yield from super().send_close(command)


class ClientTls(_PolicyTls):
    """TLS with a client, within a deadline."""

    def __init__(self, context: Context, tls: SSL.Context, deadline: float) -> None:
        """tls: from `server_context`. deadline: seconds that the handshake may take."""
        super().__init__(context, context.client)
        self._tls_context = tls
        self._deadline = deadline
        self._wakeup: commands.RequestWakeup | None = None

    def start_handshake(self) -> CommandGenerator[None]:
        """Wait for the client to speak."""
        self.tls = SSL.Connection(self._tls_context)
        self.tls.set_accept_state()
        yield from ()

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.Wakeup) and event.command is self._wakeup:
            if self.tunnel_state is TunnelState.ESTABLISHING:
                self.tunnel_state = TunnelState.CLOSED
                yield commands.CloseConnection(self.conn)
            return
        yield from super()._handle_event(event)
        if isinstance(event, events.Start):
            self._wakeup = commands.RequestWakeup(self._deadline)
            yield self._wakeup

    def receive_handshake_data(self, data: bytes) -> CommandGenerator[tuple[bool, str | None]]:
        """Note the server name once it is known."""
        done, error = yield from super().receive_handshake_data(data)
        if done:
            name = self.tls.get_servername()
            self.conn.sni = None if name is None else name.decode("ascii", "replace")
        return done, error


class UpstreamTlsLayer(_PolicyTls, ServerTLSLayer):
    """TLS with an upstream, whose certificate must be valid for its name."""

    def __init__(self, context: Context, tls: UpstreamTls | None, host: str) -> None:
        """host: the endpoint's, which the certificate is for unless the policy names another."""
        super().__init__(context)
        self._policy = tls
        self._name = (None if tls is None else tls.server_name) or host
        self.conn.sni = self._name

    def start_tls(self) -> CommandGenerator[None]:
        """Make the connection object; mitmproxy would ask its addons for one."""
        try:
            connection = SSL.Connection(client_context(self._policy))
            _expect_name(connection, self._name)
        except (SSL.Error, OSError) as error:
            logger.error("TLS towards an upstream can't be set up: %r", error)
            yield commands.CloseConnection(self.conn)
            return
        connection.set_connect_state()
        self.tls = connection
        yield from ()

    def receive_close(self) -> CommandGenerator[None]:
        """Note an end of the connection without close_notify, before whoever reads from it learns of the end."""
        if not self.tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN and self.conn.error is None:
            self.conn.error = "The TLS connection was cut off."
        yield from super().receive_close()


def _expect_name(connection: SSL.Connection, name: str) -> None:
    """Have OpenSSL check the certificate's name or address; pyOpenSSL has no word for it."""
    library: Any = vars(SSL)["_lib"]
    parameters = library.SSL_get0_param(vars(connection)["_ssl"])
    library.X509_VERIFY_PARAM_set_hostflags(parameters, library.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
    try:
        address = ipaddress.ip_address(name).packed
    except ValueError:
        host = name.encode("idna")
        connection.set_tlsext_host_name(host)
        done = library.X509_VERIFY_PARAM_set1_host(parameters, host, len(host))
    else:  # RFC 6066, section 3: an address is no server name
        done = library.X509_VERIFY_PARAM_set1_ip(parameters, address, len(address))
    if done != 1:
        raise SSL.Error(f"no certificate can be for {name}")
