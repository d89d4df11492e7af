"""How layers leave: at once, and not when the garbage collector finds them.

mitmproxy's layers refer to one another (each stands in the list of its own context), and the buffers, streams and
timers of a connection hang on them. A connection that is denied in the middle of its body may have much in them.
"""

from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http import HttpLayer

from mitmgate.engine.layer_stream import GatewayStream


def unlink(layer: Layer) -> None:
    """Take a layer out of the cycles that mitmproxy makes, so that it goes with the last reference to it."""
    layer.context.layers.clear()
    vars(layer).pop("_handle_event", None)  # a method of its own, once it was switched
    layer._paused = None  # a generator that waits for what never comes, such as a dial that was cancelled


def dismantle(top: HttpLayer) -> bool:
    """Let go of every layer of a client connection, when all its sockets are closed.

    False, and nothing is done, where a stream still waits for a hook: it has an audit event to come.
    """
    if any(stream.flow.live for stream in top.streams.values() if isinstance(stream, GatewayStream)):
        return False
    websockets = [stream.child_layer for stream in top.streams.values() if stream.child_layer is not None]
    for layer in (*top.connections.values(), *top.streams.values(), *websockets, top):
        unlink(layer)
    top.command_sources.clear()
    return True
