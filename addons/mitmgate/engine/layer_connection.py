"""A client connection: the layer that routes events between client, streams and upstreams, and keeps the deadlines."""

import logging
from collections.abc import Callable, Iterable
from typing import Final

from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import DropStream, HttpLayer, HTTPMode, HttpStream, RegisterHttpConnection, SendHttp
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders

from mitmgate.core.http1 import Bounds
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.descriptors import is_shortage_text
from mitmgate.engine.layer_events import ClientGone, Cut, GetUpstream, GetUpstreamCompleted, Reached, Retire
from mitmgate.engine.layer_http1_client import UpstreamConnection
from mitmgate.engine.layer_http1_server import Http1Server
from mitmgate.engine.layer_http2 import GatewayHttp2Server
from mitmgate.engine.layer_leaving import unlink
from mitmgate.engine.layer_stream import GatewayStream
from mitmgate.engine.layer_stream_ending import Surroundings
from mitmgate.engine.layer_timers import Expired, Timers
from mitmgate.engine.layer_tls import UpstreamTlsLayer
from mitmgate.engine.layer_wire import Wire
from mitmgate.stages.exchange import Exchange

logger = logging.getLogger(__name__)

QUEUE: Final = 64 * 1024
"""Bytes that may wait for a stream that waits, or pipelined behind one; then the sockets are not read."""
FRESH_SECONDS: Final = 1.0
"""An idle upstream connection that is older is not used for a request that can't be repeated: it may be stale."""


class GatewayLayer(HttpLayer):
    """The HTTP layer of a client connection, in place of mitmproxy's.

    It never opens an upstream connection but for a stream whose request was admitted.
    """

    def __init__(
        self,
        context: Context,
        bounds: Bounds,
        wire: Wire,
        fail_over: Callable[[Exchange, Reason], Endpoint | None],
        exhausted: bool = False,
    ) -> None:
        """exhausted: the client is one too many."""
        super().__init__(context, HTTPMode.transparent)
        self._bounds = bounds
        self._wire = wire
        self._exhausted = exhausted
        self._timers = Timers()
        self._surroundings = Surroundings(bounds, self._timers, wire, fail_over)
        self._upstreams: dict[Server, UpstreamConnection] = {}
        self._broken = False
        self._client_closed = False
        self._waiting: dict[Server, GetUpstream] = {}
        self._front: Http1Server | GatewayHttp2Server | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._broken:
            return
        try:
            yield from self._route(event)
        except Exception:
            logger.exception("a connection is closed because of a defect")
            yield from self._break_off()
            return
        self._swing_gates()
        wakeup = self._timers.wakeup()
        if wakeup is not None:
            yield wakeup

    def _break_off(self) -> CommandGenerator[None]:
        """Close everything: mitmproxy would log the exception, and leave the sockets open and the client waiting."""
        self._broken = True
        for stream in self.streams.values():
            hook = stream.crashed() if isinstance(stream, GatewayStream) else None
            if hook is not None:
                hook.blocking = False
                yield hook
        for connection in list(self.connections):
            yield commands.CloseConnection(connection)

    def _route(self, event: events.Event) -> CommandGenerator[None]:
        if isinstance(event, events.ConnectionEvent):
            if isinstance(event, events.ConnectionClosed) and event.connection is self.context.client:
                self._client_closed = True
            handler = self.connections.get(event.connection)
            if handler is not None:
                yield from self.event_to_child(handler, event)
            if event.connection is not self.context.client:
                self._forget(event.connection)
        elif isinstance(event, events.CommandCompleted):
            if self._timers.owns(event.command):
                yield from self._expire()
            elif (child := self.command_sources.pop(event.command, None)) is not None:
                yield from self.event_to_child(child, event)
        elif isinstance(event, events.Start):
            context = self.context.fork()
            if self.context.client.alpn == b"h2":
                self._front = GatewayHttp2Server(context, self._bounds, self._timers, self._exhausted)
            else:
                self._front = Http1Server(context, self._bounds, self._timers, self._wire, self._exhausted)
            self.connections[self.context.client] = self._front
            yield from self.event_to_child(self._front, event)
        else:
            yield from self._from_outside(event)

    def _from_outside(self, event: events.Event) -> CommandGenerator[None]:
        """Take what no socket has sent: the gateway's own events, and messages that somebody injects in mitmweb."""
        if isinstance(event, Retire) and self._front is not None:
            yield from self._dispatch(self._front, self._front.retire())
        elif isinstance(event, ClientGone):
            if self._front is not None and not self._client_closed:
                yield from self.event_to_child(self._front, events.ConnectionClosed(self.context.client))
            waiting, self._waiting = self._waiting, {}
            for command in waiting.values():
                yield from self._reply(command, Reached(None, Reason.CLIENT_CLOSED))
            self._timers.active.clear()
        elif isinstance(event, Cut | events.MessageInjected):
            for stream in list(self.streams.values()):
                if isinstance(event, Cut):
                    meant = isinstance(stream, GatewayStream) and stream.exchange is event.exchange
                else:
                    meant = stream.flow is event.flow
                if meant:
                    yield from self.event_to_child(stream, event)

    @property
    def lasting(self) -> list[Exchange]:
        """The exchanges that outlive their decision: streamed responses and WebSockets."""
        streams = [stream for stream in self.streams.values() if isinstance(stream, GatewayStream) and stream.lasts]
        return [stream.exchange for stream in streams if stream.exchange is not None]

    def _expire(self) -> CommandGenerator[None]:
        for timer in self._timers.expire():
            owner = timer.owner
            if owner is None:
                continue
            if timer.action is not None:
                yield from self._dispatch(owner, timer.action(owner))
            else:
                yield from self.event_to_child(owner, Expired(timer, timer.generation))

    def _swing_gates(self) -> None:
        """Stop reading while a stream that waits has enough queued, or too much is pipelined."""
        front, wire = self._front, self._wire
        if front is None:
            return
        queued = front.pending
        for stream in self.streams.values():
            if isinstance(stream, GatewayStream):
                waiting = stream.queued
                queued += waiting
                if stream.upstream is not None:
                    wire.swing(stream.upstream, waiting + front.buffered(stream.stream_id) < QUEUE)
        wire.swing(self.context.client, queued < QUEUE)

    def _forget(self, connection: Connection) -> None:
        """Let go of an upstream connection that is closed; where a stream still waits for it, that is told first."""
        if not isinstance(connection, Server) or connection in self._waiting:
            return
        if connection.state is ConnectionState.CLOSED:
            self._upstreams.pop(connection, None)
            closed = self.connections.pop(connection, None)
            if closed is not None:
                unlink(closed)

    def event_to_child(self, child: Layer | HttpStream, event: events.Event) -> CommandGenerator[None]:
        """Hand an event down and carry out what comes back."""
        yield from self._dispatch(child, child.handle_event(event))

    def _dispatch(self, child: Layer, issued: Iterable[commands.Command]) -> CommandGenerator[None]:
        for command in issued:
            if isinstance(command, ReceiveHttp):
                event = command.event
                if isinstance(event, RequestHeaders):
                    yield from self.make_stream(event.stream_id)
                stream = self.streams.get(event.stream_id)
                if stream is not None:  # else: bytes of a request that was answered
                    yield from self.event_to_child(stream, event)
                continue
            if command.blocking or isinstance(command, commands.RequestWakeup):
                self.command_sources[command] = child
            if isinstance(command, SendHttp):
                peer = self.connections.get(command.connection)
                if peer is not None:
                    yield from self.event_to_child(peer, command.event)
            elif isinstance(command, DropStream):
                dropped = self.streams.pop(command.stream_id, None)
                if dropped is not None:
                    unlink(dropped)
            elif isinstance(command, GetUpstream):
                yield from self._get_upstream(command)
            elif isinstance(command, RegisterHttpConnection):
                yield from self.register_connection(command)
            else:
                yield command

    def make_stream(self, stream_id: int) -> CommandGenerator[None]:
        """Make the stream of a request."""
        stream = GatewayStream(self.context.fork(), stream_id, self._surroundings)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def _get_upstream(self, command: GetUpstream) -> CommandGenerator[None]:
        """Use an idle connection to the endpoint, or open one."""
        if not command.fresh:
            newest = self._timers.clock() - FRESH_SECONDS
            for server, upstream in self._upstreams.items():
                if (
                    upstream.endpoint == command.endpoint
                    and upstream.tls == command.tls
                    and upstream.idle
                    and (command.idempotent or upstream.client.idle_since > newest)
                ):
                    yield from self._reply(command, Reached(server, None))
                    return
        context = self.context.fork()
        endpoint = command.endpoint
        context.server = server = Server(address=(endpoint.host, endpoint.port))
        opened = UpstreamConnection(context, endpoint, command.tls, self._bounds, self._timers, self._wire)
        top: Layer = opened
        if endpoint.scheme == "https":
            context.layers.remove(opened)
            secured = UpstreamTlsLayer(context, command.tls, endpoint.host)
            context.layers.append(opened)
            secured.child_layer = opened
            top = secured
        self._upstreams[server] = opened
        self.connections[server] = top
        self._waiting[server] = command
        opened.within(command.connect_timeout)
        yield from self.event_to_child(top, events.Start())

    def register_connection(self, command: RegisterHttpConnection) -> CommandGenerator[None]:
        """Tell the stream that waits what became of its connection."""
        server = command.connection
        waiting = self._waiting.pop(server, None) if isinstance(server, Server) else None
        if waiting is None or not isinstance(server, Server):
            return
        if command.err is None:
            yield from self._reply(waiting, Reached(server, None))
            return
        opened = self._upstreams.pop(server, None)
        self.connections.pop(server, None)
        reason = Reason.UPSTREAM_UNREACHABLE
        if opened is not None and opened.timed_out:
            reason = Reason.UPSTREAM_TIMEOUT
        elif is_shortage_text(command.err):
            reason = Reason.DESCRIPTORS_EXHAUSTED
        yield from self._reply(waiting, Reached(None, reason))

    def _reply(self, command: GetUpstream, reached: Reached) -> CommandGenerator[None]:
        child = self.command_sources.pop(command, None)
        if child is not None:
            yield from self.event_to_child(child, GetUpstreamCompleted(command, reached))
