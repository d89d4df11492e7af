"""WebSocket: mitmproxy's layer, with bounds on what it keeps."""

import base64
import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Final

from mitmproxy.http import Response
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.commands import Command
from mitmproxy.proxy.layers.websocket import WebsocketEndHook, WebsocketLayer
from wsproto.connection import ConnectionState as WebsocketState
from wsproto.events import CloseConnection
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from mitmgate.core.reason import Reason
from mitmgate.core.request import Forward
from mitmgate.engine.layer_events import Cut
from mitmgate.engine.layer_timers import Expired
from mitmgate.stages.exchange import exchange_of

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of one message, which mitmproxy puts together before it sends it on."""
KEPT_MESSAGES: Final = 100
KEPT_BYTES: Final = 256 * 1024
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accepts(forward: Forward, response: Response) -> bool:
    """Tell whether a 101 is the answer to this very handshake (RFC 6455, section 4.1)."""
    key = next((value for name, value in forward.fields if name.lower() == b"sec-websocket-key"), b"")
    expected = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest()).decode("ascii")
    connection = {token.strip().lower() for token in response.headers.get("connection", "").split(",")}
    return (
        response.headers.get("upgrade", "").lower() == "websocket"
        and "upgrade" in connection
        and response.headers.get("sec-websocket-accept", "") == expected
    )


class BoundedWebsocketLayer(WebsocketLayer):
    """Relay messages; keep the last of them, and end a connection that breaks a bound or the protocol."""

    def relay_messages(self, event: events.Event) -> Iterator[Command]:
        """Relay, then forget what need not be kept."""
        if isinstance(event, Expired | Cut):
            exchange = exchange_of(self.flow)
            reason = event.reason if isinstance(event, Cut) else Reason.TOKEN_EXPIRED
            if exchange is not None:
                exchange.failure = reason
            ends = reason is Reason.GATEWAY_STOPPING
            yield from self._end(CloseReason.GOING_AWAY if ends else CloseReason.POLICY_VIOLATION)
            return
        try:
            yield from super().relay_messages(event)
        except Exception as error:  # wsproto raises on what the peer sends; mitmproxy would leave the sockets open
            logger.info("WebSocket connection ended: %r", error)
            yield from self._end(CloseReason.PROTOCOL_ERROR)
            return
        self._forget()
        if any(sum(map(len, ws.frame_buf)) > MAX_MESSAGE for ws in (self.client_ws, self.server_ws)):
            yield from self._end(CloseReason.MESSAGE_TOO_BIG)

    def _forget(self) -> None:
        data = self.flow.websocket
        if data is None or not data.messages:
            return
        messages = data.messages
        if len(messages) > KEPT_MESSAGES:
            del messages[: len(messages) - KEPT_MESSAGES]
        size = sum(len(message.content) for message in messages)
        while size > KEPT_BYTES and len(messages) > 1:
            size -= len(messages.pop(0).content)

    def _end(self, code: CloseReason) -> Iterator[Command]:
        """Close both sides, with a frame that says why where one can still be sent (RFC 6455, section 7.4.1)."""
        for ws in (self.server_ws, self.client_ws):
            if ws.state is WebsocketState.OPEN:
                with contextlib.suppress(ProtocolError):
                    yield ws.send2(CloseConnection(code))
            yield commands.CloseConnection(ws.conn)
        data = self.flow.websocket
        if data is not None:
            data.timestamp_end = time.time()
            data.closed_by_client = False
            data.close_code = int(code)
        self._handle_event = self.done
        yield WebsocketEndHook(self.flow)
        self.flow.live = False
