"""WebSocket: mitmproxy's layer, with bounds on what it keeps."""

import base64
import hashlib
import logging
from collections.abc import Iterator
from typing import Final

from mitmproxy.connection import ConnectionState
from mitmproxy.http import Request, Response
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.commands import Command
from mitmproxy.proxy.layers.websocket import WebsocketEndHook, WebsocketLayer

logger = logging.getLogger(__name__)

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Bytes of one message, which mitmproxy puts together before it sends it on."""
KEPT_MESSAGES: Final = 100
KEPT_BYTES: Final = 256 * 1024
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accepts(request: Request, response: Response) -> bool:
    """Tell whether a 101 is the answer to this very handshake (RFC 6455, section 4.1)."""
    key = request.headers.get("sec-websocket-key", "").encode("latin-1", "replace")
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
        try:
            yield from super().relay_messages(event)
        except Exception as error:  # wsproto raises on what the peer sends; mitmproxy would leave the sockets open
            logger.info("WebSocket connection ended: %r", error)
            yield from self._end()
            return
        self._forget()
        if any(sum(map(len, ws.frame_buf)) > MAX_MESSAGE for ws in (self.client_ws, self.server_ws)):
            yield from self._end()

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

    def _end(self) -> Iterator[Command]:
        for connection in (self.context.server, self.context.client):
            if connection.state is not ConnectionState.CLOSED:
                yield commands.CloseConnection(connection)
        yield WebsocketEndHook(self.flow)
        self.flow.live = False
        self._handle_event = self.done
