"""What the kernel knows of a TCP connection, and asyncio does not tell (Linux' struct tcp_info, linux/tcp.h)."""

import asyncio
import socket
import sys
from enum import IntEnum
from typing import Any, Final

_ACKED: Final = slice(120, 128)
"""tcpi_bytes_acked."""


class TcpState(IntEnum):
    """States, as Linux numbers them (net/tcp_states.h)."""

    UNKNOWN = 0
    CLOSE = 7  # by a reset, too, of which asyncio learns when it next reads or writes
    CLOSE_WAIT = 8


def tcp_info(transport: asyncio.Transport | None) -> tuple[int, int | None]:
    """Return the state, and how many octets the other side has acknowledged; UNKNOWN and None where nobody says."""
    endpoint: Any = None if transport is None else transport.get_extra_info("socket")
    try:
        info = endpoint.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.stop)
    except (AttributeError, OSError):  # another system, or no connection any more
        return TcpState.UNKNOWN, None
    return info[0], int.from_bytes(info[_ACKED], sys.byteorder) or None
