"""A real HTTP server for key sets that does what it is told: serve, fail, hang, redirect, send too much."""

import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class JwksServer:
    """Serves `document` with `status` and `fields` on 127.0.0.1, and counts the requests in `fetches`.

    documents: by path, instead of the one document; all else is 404. open: cleared, requests are
    held until it is set again. raw: bytes to send instead of a response.
    """

    def __init__(self, document: bytes = b"", *, tls: ssl.SSLContext | None = None) -> None:
        self.document = document
        self.status = 200
        self.fields: Mapping[str, str] = {}
        self.raw: bytes | None = None
        self.open = threading.Event()
        self.open.set()
        self.fetches = 0
        self.documents: dict[str, bytes] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.fetches += 1
                outer.open.wait(10)
                if outer.raw is not None:
                    self.wfile.write(outer.raw)
                    self.close_connection = True
                    return
                document = outer.document if outer.documents is None else outer.documents.get(self.path)
                self.send_response(404 if document is None else outer.status)
                body = document or b""
                for name, value in ({"Content-Length": str(len(body))} | dict(outer.fields)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: object) -> None:
                """A client that leaves early is what many tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "http" if tls is None else "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/jwks.json"

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
