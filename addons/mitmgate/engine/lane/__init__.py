"""The fast lane of `serve`: HTTP/1.1 in plain text on asyncio's protocols, in place of mitmproxy's layers.

    LaneClient (a client's connection) → Transit (one request and its response) → LaneUpstream (an endpoint's)

The same reader, writer, flows, hooks and chain as on the layers: what differs is how bytes move. mitmproxy's layers are
generators of commands, and cost about 300 µs a request whatever is decided; here a callback calls the next one.

What the lane does not speak is handed over to the layers before anything is decided: a request that asks for a
WebSocket, with its connection. TLS with clients, and HTTP/2, are the layers' from the first byte. tests/protocol holds
both to one behaviour, and mitmweb is always on the layers.
"""
