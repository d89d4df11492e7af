"""An address whose connections are never made: its queue is full, and Linux drops what comes."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def black_hole(address: str, port: int = 0) -> Iterator[int]:
    """Drop every SYN to `address`; yields the port."""
    with ExitStack() as stack:
        bound = stack.enter_context(socket.socket())
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        bound.listen(0)
        while True:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(bound.getsockname())
            if not select.select([], [filler], [], 0.2)[1]:
                break  # its SYN was dropped: so is every later one, as nobody accepts
        yield bound.getsockname()[1]
