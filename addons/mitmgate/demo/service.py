"""A small HTTP service that echoes as JSON what it received."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer

LOOPBACK = "127.0.0.1"
_CHUNK = 65536


class Echo(BaseHTTPRequestHandler):
    """Answer any method with what came: service, method, path, header fields, size of the body (bytes).

    A path that ends in /fail is answered with 500, so that a circuit can be seen opening.
    """

    protocol_version = "HTTP/1.1"
    server_version = "echo"
    sys_version = ""
    disable_nagle_algorithm = True  # head and body are two writes: Nagle's algorithm would hold the second back
    timeout = 300  # seconds an idle connection is kept
    server: "EchoService"

    def answer(self) -> None:
        """Read the body, then echo."""
        size = self._drain()
        status = 500 if self.path.partition("?")[0].endswith("/fail") else 200
        body = json.dumps(
            {
                "service": self.server.service,
                "method": self.command,
                "path": self.path,
                "headers": dict(self.headers.items()),
                "body_bytes": size,
            },
            indent=2,
        )
        wire = body.encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(wire)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(wire)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the gateway's audit file tells."""

    def _drain(self) -> int:
        """Read the whole body and return its size in bytes."""
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self._skip(int(self.headers.get("Content-Length", "0")))
        total = 0
        while length := int(self.rfile.readline(_CHUNK).split(b";")[0], 16):
            total += self._skip(length)
            self.rfile.readline(_CHUNK)
        while self.rfile.readline(_CHUNK).strip():
            pass  # trailers
        return total

    def _skip(self, length: int) -> int:
        left = length
        while left and (part := self.rfile.read(min(left, _CHUNK))):
            left -= len(part)
        return length - left


class EchoService(ThreadingHTTPServer):
    """An echo service on 127.0.0.1, served by daemon threads from `start` on."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, service: str, port: int, *, elsewhere: bool = True) -> None:
        """Bind at once: `port`, or where that is taken any free one (see `server_port`), unless it must be this one."""
        self.service = service
        try:
            super().__init__((LOOPBACK, port), Echo)
        except OSError:
            if not elsewhere:
                raise
            super().__init__((LOOPBACK, 0), Echo)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's full name, which may wait for DNS for seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.socket.getsockname()[1]

    def start(self) -> None:
        """Serve in a thread of its own."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a connection that broke: the gateway's audit file tells."""
