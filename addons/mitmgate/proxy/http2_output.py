"""What both ends of HTTP/2 share: libnghttp2's words on their way to the socket, as fast as that takes them."""

import asyncio
from collections.abc import Callable
from typing import Final

import ngh2

from mitmgate.core.headers import Fields
from mitmgate.core.http1 import Bounds
from mitmgate.core.http1.names import LOWER
from mitmgate.core.http2 import trailers_flaw

OUTPUT: Final = 64 * 1024
"""Bytes that are serialised at once, so that a socket that does not drain is noticed."""


class Http2Output(asyncio.BufferedProtocol):
    """A connection that libnghttp2 speaks on: what is to be said is written in the loop's next turn, all at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bounds: Bounds) -> None:
        """Begin without a transport. bounds: of the policy in force when it was opened."""
        self.loop = loop
        self._bounds = bounds
        self._transport: asyncio.Transport | None = None
        self._h2: ngh2.Connection | None = None
        self._flushing: asyncio.Handle | None = None
        self._congested = False  # the socket does not drain
        self._closing = False  # nothing more is said

    def say(self, action: Callable[[ngh2.Connection], object]) -> None:
        """Have libnghttp2 say something; nothing where the connection, or the stream, is not there any more."""
        h2 = self._h2
        if h2 is None or self._closing:
            return
        try:
            action(h2)
        except (ngh2.StreamProtocolError, ngh2.ConnectionClosingError, ngh2.ConnectionStateError):
            return
        self._flush_soon()

    def queued(self, stream_id: int) -> int:
        """Bytes of a stream's body that libnghttp2 still has."""
        try:
            return 0 if self._h2 is None else self._h2.queued_body_size(stream_id)
        except ngh2.NGH2Error:
            return 0

    def end_stream(self, stream_id: int, trailers: Fields) -> None:
        """Say that a body has ended, with its trailers where they can be said (RFC 9113, section 8.1)."""
        section = [(LOWER[name], value) for name, value in trailers]
        if section and trailers_flaw(section, self._bounds) is None:
            self.say(lambda h2: h2.send_trailers(stream_id, section))
        else:
            self.say(lambda h2: h2.end_stream(stream_id))

    def pause_writing(self) -> None:
        """Serialise no more: the socket does not drain."""
        self._congested = True

    def resume_writing(self) -> None:
        """Go on."""
        self._congested = False
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flushing is None and not self._closing:
            self._flushing = self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write, and go on with what waited for that."""
        raise NotImplementedError

    def _write(self, h2: ngh2.Connection) -> int:
        """Write as far as windows and the socket allow. Returns how many bytes."""
        transport = self._transport
        written = 0
        while transport is not None and not self._congested:
            data = h2.data_to_send(OUTPUT)
            if not data:
                break
            written += len(data)
            transport.write(data)
        return written
