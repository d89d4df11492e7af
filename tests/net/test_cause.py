"""Causes of connections that are not made, told from errors."""

import errno
import socket
import ssl

import pytest

from mitmgate.core.cause import UNCONNECTED, Cause
from mitmgate.net.cause import certificate_cause, connect_cause
from mitmgate.net.resolver import LookupTimeoutError


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.EINVAL, "Invalid argument"), Cause.CONNECT_FAILED),
        (OSError(errno.ECONNREFUSED, "refused"), Cause.CONNECT_REFUSED),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Cause.CONNECT_UNREACHABLE),
        (OSError(errno.EPERM, "a firewall"), Cause.CONNECT_UNREACHABLE),
        (OSError(errno.ETIMEDOUT, "the kernel gave up"), Cause.CONNECT_TIMEOUT),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), Cause.NAME_UNKNOWN),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), Cause.LOOKUP_FAILED),
        (LookupTimeoutError(socket.EAI_AGAIN, "no answer in time"), Cause.LOOKUP_TIMEOUT),
        (ssl.SSLError(1, "wrong version number"), Cause.TLS_FAILED),
    ],
)
def test_cause_of_an_error(error: OSError, cause: Cause) -> None:
    assert connect_cause(error) is cause


def test_a_code_that_nobody_knows_is_an_invalid_certificate() -> None:
    assert certificate_cause(0) is Cause.TLS_FAILED
    assert certificate_cause(79) is Cause.CERTIFICATE_INVALID


def test_what_comes_before_a_connection() -> None:
    assert Cause.CERTIFICATE_INVALID in UNCONNECTED
    assert not {Cause.REQUEST_NOT_TAKEN, Cause.RESPONSE_TIMEOUT, Cause.CLOSED, Cause.RESET} & UNCONNECTED
