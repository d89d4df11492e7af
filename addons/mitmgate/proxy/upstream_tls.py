"""TLS with an upstream on asyncio's transports; as strict as proxy/tls.py with clients."""

import asyncio
import ssl
from functools import lru_cache

from mitmgate.core.rules import Endpoint, UpstreamTls
from mitmgate.proxy.tls import CIPHERS


@lru_cache(maxsize=64)
def upstream_context(tls: UpstreamTls | None) -> ssl.SSLContext:
    """Make the context for an upstream: it is always verified. Raises ssl.SSLError or OSError for a bad file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name, unless told otherwise
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS.decode("ascii"))
    context.hostname_checks_common_name = False
    if tls is not None and tls.ca is not None:
        context.load_verify_locations(tls.ca)
    else:
        context.set_default_verify_paths()
    if tls is not None and tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def server_name(endpoint: Endpoint, tls: UpstreamTls | None) -> str:
    """Return the name that the endpoint's certificate must be for."""
    return (None if tls is None else tls.server_name) or endpoint.host


def ended_in_order(transport: asyncio.Transport) -> bool:
    """Tell whether what the peer sends has ended as it should: over TLS, with its close_notify."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return True
    try:
        return tls.read(1) == b""
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False
