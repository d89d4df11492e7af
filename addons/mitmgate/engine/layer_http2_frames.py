"""h2's connection as a gateway's front needs it: what one client may cost and hold is bounded.

h2 ends a connection for what is wrong with one message, takes any number of frames, keeps whatever settings a client
makes up, and leaves what can't be sent yet to its user. Here

* a message's flaws are left to whoever reads the message, because they are its stream's alone (RFC 9113, 8.1.1);
* frames that are no request are paid from an allowance, which grows with time, requests and bytes;
* settings that mean nothing to a server are ignored (6.5.2), and the table for response fields stays small;
* bytes beyond the client's windows wait here, counted.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, RequestReceived, StreamEnded, TrailersReceived
from h2.exceptions import DenialOfServiceError, ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes
from h2.stream import H2Stream, StreamInputs, StreamState
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame

STREAMS: Final = 64
"""Requests that a client may have open at once on one connection."""
WINDOW: Final = 256 * 1024
"""Bytes that a client may send ahead on a stream."""
FRAME: Final = 16384
"""The largest frame, either way: HTTP/2's smallest limit."""

ALLOWANCE: Final = 1000.0
"""Frames beside requests that a client may send at once. One costs 5 to 12 µs."""
ALLOWANCE_RATE: Final = 100.0
"""Frames that it may send each second beyond that, for ever."""
_EARNED_BY_REQUEST: Final = 10.0
_EARNED_BY_BYTE: Final = 1 / 1024  # of a response: some clients give leave for the next 4 KiB at a time
_REFUSED_STREAM: Final = 20.0
_CONTENT: Final = 256  # bytes of a DATA or CONTINUATION frame that is worth its cost; smaller ones are paid for
_CONTROL: Final = 64  # bytes that a control frame has for its price

_TABLE: Final = 4096  # bytes of the table for response fields: HTTP/2's default; hpack searches it from end to end
_SETTINGS: Final = frozenset(
    {
        SettingCodes.HEADER_TABLE_SIZE,
        SettingCodes.ENABLE_PUSH,
        SettingCodes.MAX_CONCURRENT_STREAMS,
        SettingCodes.INITIAL_WINDOW_SIZE,
        SettingCodes.MAX_FRAME_SIZE,
        SettingCodes.MAX_HEADER_LIST_SIZE,
    }
)
_HEAD_FRAMES: Final = frozenset({1, 9})  # HEADERS and CONTINUATION


class ExcessiveFramesError(ProtocolError):
    """The client has used up its allowance (CVE-2019-9511 to 9518 are the kind)."""

    error_code = ErrorCodes.ENHANCE_YOUR_CALM


class Allowance:
    """What is left of the frames that a client may send beside its requests."""

    __slots__ = ("_at", "_clock", "_left")

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: monotonic seconds."""
        self._clock = clock
        self._left = ALLOWANCE
        self._at = clock()

    def spend(self, frames: float) -> None:
        """Take frames off; raises ExcessiveFramesError where there are none."""
        self._left -= frames
        if self._left < 0:
            now = self._clock()
            self.earn((now - self._at) * ALLOWANCE_RATE)
            self._at = now
            if self._left < 0:
                raise ExcessiveFramesError("too many frames that are no requests")

    def earn(self, frames: float) -> None:
        """Put frames back."""
        self._left = min(ALLOWANCE, self._left + frames)


class _Frames(FrameBuffer):
    """Takes frames off the bytes that come; every frame passes here, of whatever kind."""

    def __init__(self, allowance: Allowance) -> None:
        super().__init__(server=True)
        self._allowance = allowance
        self.heads = 0  # header sections so far that are complete

    @property
    def in_head(self) -> bool:
        """Whether a header section has begun and is not complete."""
        data = self._data
        return bool(self._headers_buffer) or (len(data) > 3 and data[3] in _HEAD_FRAMES)

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        if isinstance(f, DataFrame | ContinuationFrame):
            self._allowance.spend(max(0.0, 1 - len(f.data) / _CONTENT))
        elif isinstance(f, SettingsFrame):
            self._allowance.spend(1 + len(f.settings))
        elif f is not None and not isinstance(f, HeadersFrame):
            self._allowance.spend(1 + f.body_len / _CONTROL)
        whole = super()._update_header_buffer(f)
        if isinstance(whole, HeadersFrame):
            self.heads += 1
        return whole


class _Stream(H2Stream):
    """A stream that tells what it got. h2's own would end the connection for a length, or for trailers that go on."""

    def receive_headers(
        self, headers: Iterable[tuple[bytes, bytes]], end_stream: bool, header_encoding: bool | str | None
    ) -> tuple[list[Frame], list[Event]]:
        """Take a head, or trailers."""
        machine = self.state_machine
        event: Event
        if machine.headers_received and machine.state in {StreamState.OPEN, StreamState.HALF_CLOSED_LOCAL}:
            event = TrailersReceived(stream_id=self.stream_id)
        else:  # a head; on a stream that is closed this raises
            (event,) = machine.process_input(StreamInputs.RECV_HEADERS)
        events = [event]
        if isinstance(event, RequestReceived | TrailersReceived):
            event.headers = list(headers)
            if end_stream:
                (ended,) = machine.process_input(StreamInputs.RECV_END_STREAM)
                if isinstance(ended, StreamEnded):
                    event.stream_ended = ended
                events.append(ended)
        return [], events


class _Waiting:
    """What a stream has to send that the client has not given leave for. ended: END_STREAM is to follow."""

    __slots__ = ("ended", "parts", "size")

    def __init__(self) -> None:
        self.parts: deque[memoryview] = deque()
        self.size = 0
        self.ended = False


class FrontConnection(H2Connection):
    """HTTP/2 towards a client."""

    MAX_CLOSED_STREAMS = 1024  # h2 remembers 65,536 of them, for the sort of error that a late frame is

    def __init__(self, head: int, clock: Callable[[], float] = time.monotonic) -> None:
        """head: bytes of the largest header section that can be read at all. clock: monotonic seconds."""
        super().__init__(
            H2Configuration(
                client_side=False,
                header_encoding=False,
                validate_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_inbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        settings = self.local_settings
        settings.max_concurrent_streams = STREAMS
        settings.initial_window_size = WINDOW
        settings.max_frame_size = FRAME
        settings.max_header_list_size = head
        settings.enable_connect_protocol = 0
        settings.acknowledge()
        self.max_inbound_frame_size = FRAME
        self.decoder.max_header_list_size = head
        self._allowance = Allowance(clock)
        self.frames = self.incoming_buffer = _Frames(self._allowance)
        self._waiting: dict[int, _Waiting] = {}
        self.refused: set[int] = set()  # streams that were one too many, and were reset; the reader takes them out
        self.held = 0  # bytes that wait for the client's leave
        self.sent = 0  # bytes of bodies that the client has taken so far

    def initiate_connection(self) -> None:
        """Greet the client. The connection's window never closes: each stream's does."""
        super().initiate_connection()
        self.increment_flow_control_window(2**31 - 1 - self.inbound_flow_control_window)

    def clear(self) -> None:
        """Let go of everything: h2's connection refers to itself, and would wait for the garbage collector."""
        self._waiting.clear()
        self.held = 0
        self.streams.clear()
        self._frame_dispatch_table.clear()

    # Reading.

    def read(self, data: bytes) -> tuple[list[Event], ProtocolError | None]:
        """Take bytes; returns what they say, and what is wrong with them, so that nothing after it can be read."""
        events: list[Event] = []
        try:
            self.frames.add_data(data)
            self.frames.max_frame_size = self.max_inbound_frame_size
            for frame in self.frames:
                events += self._receive_frame(frame)
        except ProtocolError as error:
            return events, error
        except (HyperframeError, ValueError, IndexError) as error:  # hyperframe's and hpack's, on odd frames
            return events, ProtocolError(str(error))
        return events, None

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        try:
            fields = self.decoder.decode(frame.data, raw=True)
        except OversizedHeaderListError as error:
            raise DenialOfServiceError(str(error)) from error
        except (HPACKError, IndexError, TypeError) as error:
            raise ProtocolError(str(error)) from error
        events = self.state_machine.process_input(ConnectionInputs.RECV_HEADERS)
        stream = self.streams.get(frame.stream_id)
        if stream is not None:
            self._allowance.spend(1)
            frames, more = stream.receive_headers(fields, "END_STREAM" in frame.flags, False)
            return frames, events + more
        full = self.open_inbound_streams >= STREAMS
        stream = self._begin_new_stream(frame.stream_id, AllowedStreamIDs.ODD)
        frames, more = stream.receive_headers(fields, "END_STREAM" in frame.flags, False)
        if full:  # RFC 9113, section 5.1.2: a client that has not read our SETTINGS yet may mean well
            self._allowance.spend(_REFUSED_STREAM)
            self.refused.add(frame.stream_id)
            frames += stream.reset_stream(ErrorCodes.REFUSED_STREAM)
        else:
            self._allowance.earn(_EARNED_BY_REQUEST)
        return frames, events + more

    def _begin_new_stream(self, stream_id: int, allowed_ids: AllowedStreamIDs) -> H2Stream:
        made = super()._begin_new_stream(stream_id, allowed_ids)
        made.__class__ = _Stream  # h2 has no way to say what a stream is made of
        return made

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[Event]]:
        known = {code: value for code, value in frame.settings.items() if code in _SETTINGS}
        if SettingCodes.HEADER_TABLE_SIZE in known:
            known[SettingCodes.HEADER_TABLE_SIZE] = min(_TABLE, known[SettingCodes.HEADER_TABLE_SIZE])
        frame.settings = known
        return super()._receive_settings_frame(frame)

    # Writing.

    def writable(self, stream_id: int) -> bool:
        """Tell whether a response may go on: its end was neither sent nor put."""
        stream = self.streams.get(stream_id)
        if (
            stream is None
            or stream.state_machine.state not in {StreamState.OPEN, StreamState.HALF_CLOSED_REMOTE}
            or self.state_machine.state is ConnectionState.CLOSED
        ):
            return False
        waiting = self._waiting.get(stream_id)
        return waiting is None or not waiting.ended

    def waits(self, stream_id: int) -> bool:
        """Tell whether a part of a response, or its end, waits for the client's leave."""
        return stream_id in self._waiting

    def buffered(self, stream_id: int) -> int:
        """Bytes of a stream that wait for the client's leave."""
        waiting = self._waiting.get(stream_id)
        return 0 if waiting is None else waiting.size

    def room(self, stream_id: int) -> int:
        """Bytes that the client would take of a stream now."""
        stream = self.streams.get(stream_id)
        if stream is None:
            return 0
        return min(self.outbound_flow_control_window, stream.outbound_flow_control_window)

    def put(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of a body, now or when the client gives leave. end: it is the last. The stream is writable."""
        waiting = self._waiting.get(stream_id)
        if waiting is None:
            waiting = self._waiting[stream_id] = _Waiting()
        if data:
            waiting.parts.append(memoryview(data))
            waiting.size += len(data)
            self.held += len(data)
        waiting.ended |= end
        while self._send_one(stream_id, waiting):
            pass

    def flush(self) -> None:
        """Send what the client has now given leave for, a frame of each stream in turn."""
        turns = list(self._waiting.items())
        while turns:
            turns = [(stream_id, waiting) for stream_id, waiting in turns if self._send_one(stream_id, waiting)]

    def _send_one(self, stream_id: int, waiting: _Waiting) -> bool:
        """Send a frame of a stream; tells whether there may be another."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.closed or self.state_machine.state is ConnectionState.CLOSED:
            self.drop(stream_id)
            return False
        size = 0
        piece = memoryview(b"")
        if waiting.parts:
            size = min(self.room(stream_id), FRAME, len(waiting.parts[0]))
            if size <= 0:
                return False
            part = waiting.parts.popleft()
            piece = part[:size]
            if size < len(part):
                waiting.parts.appendleft(part[size:])
            waiting.size -= size
            self.held -= size
            self.sent += size
            self._allowance.earn(size * _EARNED_BY_BYTE)
        end = waiting.ended and not waiting.parts
        if size or end:
            self.send_data(stream_id, piece, end_stream=end)
        if not waiting.parts:
            del self._waiting[stream_id]
            return False
        return True

    def drop(self, stream_id: int) -> None:
        """Forget what a stream has to send."""
        waiting = self._waiting.pop(stream_id, None)
        if waiting is not None:
            self.held -= waiting.size

    def abort(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a stream, where it is still there to be reset."""
        self.drop(stream_id)
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.closed and self.state_machine.state is not ConnectionState.CLOSED:
            self.reset_stream(stream_id, code)
