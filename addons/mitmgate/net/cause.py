"""The cause of a connection that could not be made, told from what sockets, lookups and OpenSSL say."""

import errno
import socket
import ssl
from typing import Final

from mitmgate.core.cause import Cause
from mitmgate.net.resolver import LookupTimeoutError

_CERTIFICATE: Final = {
    9: Cause.CERTIFICATE_NOT_YET_VALID,
    10: Cause.CERTIFICATE_EXPIRED,
    18: Cause.CERTIFICATE_SELF_SIGNED,
    2: Cause.CERTIFICATE_UNKNOWN_AUTHORITY,  # the issuer of one in the chain is not there
    19: Cause.CERTIFICATE_UNKNOWN_AUTHORITY,  # the chain is whole, and its root is not trusted
    20: Cause.CERTIFICATE_UNKNOWN_AUTHORITY,
    21: Cause.CERTIFICATE_UNKNOWN_AUTHORITY,
    62: Cause.CERTIFICATE_WRONG_NAME,
    64: Cause.CERTIFICATE_WRONG_NAME,  # an address instead of a name
}
"""By OpenSSL's codes: X509_STORE_CTX_get_error(3)."""
_UNREACHABLE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EACCES, errno.EPERM}
)
"""The last two: a firewall of this machine."""


def certificate_cause(code: int) -> Cause:
    """Return the cause of a failed verification. code: OpenSSL's; 0: the certificate was not what failed."""
    return _CERTIFICATE.get(code, Cause.CERTIFICATE_INVALID) if code else Cause.TLS_FAILED


def connect_cause(error: OSError) -> Cause:
    """Return the cause of an error before the end of the handshake."""
    match error:
        case LookupTimeoutError():
            return Cause.LOOKUP_TIMEOUT
        case socket.gaierror():
            return Cause.NAME_UNKNOWN if error.errno == socket.EAI_NONAME else Cause.LOOKUP_FAILED
        case ssl.SSLCertVerificationError():
            return certificate_cause(error.verify_code)
        case ssl.SSLError():
            return Cause.TLS_FAILED
        case ConnectionRefusedError():
            return Cause.CONNECT_REFUSED
        case TimeoutError():
            return Cause.CONNECT_TIMEOUT
    return Cause.CONNECT_UNREACHABLE if error.errno in _UNREACHABLE else Cause.CONNECT_FAILED
