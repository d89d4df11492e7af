"""The writing half of a client's connection: responses, and the end of the connection."""

import asyncio
import socket
import struct
from enum import Enum, auto
from math import inf
from typing import Final

from mitmproxy.connection import Client
from mitmproxy.http import Response

from mitmgate.core.http1 import Bounds, RequestHead, RequestReader, chunk, response_head
from mitmgate.core.http1.framing import CLOSE, UNSENDABLE, frame_response
from mitmgate.core.http1.known import KnownFields
from mitmgate.engine.lane.deadline import FLUSH_SECONDS, LINGER_SECONDS, Deadline
from mitmgate.engine.lane.transit import Transit
from mitmgate.proxy.websocket import Relay

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Phase(Enum):
    """What is done with bytes that come."""

    READING = auto()
    LINGERING = auto()
    TUNNEL = auto()
    CLOSED = auto()


class Hold:
    """Why a client's socket is not read; several can hold at once."""

    TRANSIT: Final = 1  # the current request can't take more of its body
    PIPELINE: Final = 2  # enough of the next requests is there
    STALLED: Final = 4  # the client does not read its answers


class Answering(asyncio.BufferedProtocol):
    """Writes responses, and ends connections so that answers arrive. What reads requests is in client.py."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bounds: Bounds, known: KnownFields) -> None:
        """bounds: of the policy in force when the client connected. known: fields that need not be parsed again."""
        self._loop = loop
        self._bounds = bounds
        self._reader = RequestReader(bounds, known)
        self._deadline = Deadline(loop, self._expired)
        self._transport: asyncio.Transport | None = None
        self._phase = Phase.READING
        self._head: RequestHead | None = None
        self._responding = False  # a final head was sent for the current request
        self._close = False  # the connection ends with the current response
        self._chunked = False
        self._until_close = False
        self._bodiless = False
        self._gone = False  # the client sends nothing more
        self._holds = 0
        self._relay: Relay | None = None
        self.congested = False
        self.client: Client
        self.transit: Transit | None = None

    @property
    def _last(self) -> bool:
        """Whether the connection ends with this response."""
        raise NotImplementedError

    def _expired(self) -> None:
        """Take the passing of the deadline."""
        raise NotImplementedError

    def _hold(self, reason: int) -> None:
        if not self._holds and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._holds |= reason

    def _release(self, reason: int) -> None:
        if self._holds & reason:
            self._holds &= ~reason
            if not self._holds and self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def ask_for_body(self) -> None:
        """Send the 100 that the client waits for."""
        if self._transport is not None:
            self._transport.write(CONTINUE)

    def send_head(self, response: Response, length: int | None, body: bytes | None, *, close: bool = False) -> None:
        """Send a response's head. length: of its body; None: not known. body: the whole body; None: it follows."""
        head, transport = self._head, self._transport
        if head is None or transport is None:
            return
        status = response.data.status_code
        self._responding = True
        if self._last:
            self._close = True
        fields, self._chunked, self._until_close, self._bodiless = frame_response(
            status, response.data.headers.fields, length, head.method, head.version
        )
        if close or self._until_close or self._gone or not (head.keep_alive and self._reader.complete):
            self._close = True
        if self._close:
            fields += CLOSE
        raw = response_head(status, fields)
        if raw is None:  # an addon put a line end into a field: nothing of it leaves
            self._close = True
            raw, self._bodiless, self._chunked = UNSENDABLE, True, False
        transport.write(raw + body if body and not self._bodiless else raw)

    def send_body(self, data: bytes) -> None:
        """Send a part of the body."""
        if data and not self._bodiless and self._transport is not None:
            self._transport.write(chunk(data) if self._chunked else data)

    # A WebSocket's frames.

    @property
    def room(self) -> float:
        """HTTP/1.1 has no windows."""
        return inf

    @property
    def pipe(self) -> "Answering":
        """The client's side of a WebSocket."""
        return self

    def switch(self, response: Response, relay: Relay) -> None:
        """Send a 101, and give what comes from now on to a relay."""
        raw = response_head(101, response.data.headers.fields)
        if raw is None or self._transport is None:
            raise ValueError("the 101 can't be sent")
        self._responding = True
        self._phase = Phase.TUNNEL
        self._relay = relay
        self._deadline.clear()
        self._transport.write(raw)
        self._release(Hold.PIPELINE)
        if early := self._reader.take_pending():
            relay.client_data(early)

    def send_frames(self, data: bytes) -> None:
        """Send bytes of frames."""
        if self._transport is not None:
            self._transport.write(data)

    def hold_frames(self, held: bool) -> None:
        """Stop, or go on, reading."""
        if held:
            self._hold(Hold.TRANSIT)
        else:
            self._release(Hold.TRANSIT)

    def end_frames(self) -> None:
        """Close the connection so that what was sent can be read: what still comes is thrown away for a moment."""
        self._relay = None
        transport = self._transport
        if self._gone or transport is None or transport.is_closing():
            self._end()
            return
        self._holds = 0
        transport.resume_reading()
        self._phase = Phase.LINGERING
        self._deadline.set(LINGER_SECONDS)
        try:
            transport.write_eof()
        except OSError:  # the client has gone, and asyncio has yet to tell
            self._end()

    def break_off(self) -> None:
        """End the connection inside a response, so that the client can't take it for complete."""
        transport = self._transport
        self.transit = None
        if self._responding and self._until_close and transport is not None:
            endpoint = transport.get_extra_info("socket")
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.end()
        else:
            self._end()

    def end(self) -> None:
        """End the connection, now; what the current request came to is recorded when the socket is closed."""
        self._phase = Phase.CLOSED
        self._deadline.close()
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        if self._phase is Phase.CLOSED:
            return
        self._phase = Phase.CLOSED
        self._deadline.close()
        transport = self._transport
        if transport is None:
            return
        transport.close()
        if transport.get_write_buffer_size():
            self._loop.call_later(FLUSH_SECONDS, transport.abort)
