"""A real introspection endpoint (RFC 7662) that does as it is told: answer, lie, fail, hang, send too much."""

import json
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus

CLIENT = "gateway:1"
SECRET = "the client's secret & more"


class IntrospectionServer:
    """Answers with `said[token]`, for others that they are not active; `asked` are the tokens, in order.

    open: cleared, requests are held until it is set again. body, status, fields: instead of an answer.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.said: dict[str, Any] = {}
        self.asked: list[str] = []
        self.strangers = 0
        self.status = 200
        self.body: bytes | None = None
        self.fields: Mapping[str, str] = {}
        self.open = threading.Event()
        self.open.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode(), strict_parsing=True)
                scheme, _, credential = self.headers["Authorization"].partition(" ")
                user, _, secret = b64decode(credential).decode().partition(":")
                known = (scheme, unquote_plus(user), unquote_plus(secret)) == ("Basic", CLIENT, SECRET)
                (token,) = form["token"]
                outer.asked.append(token)
                outer.strangers += not known
                outer.open.wait(30)
                body = (
                    json.dumps(outer.said.get(token, {"active": False})).encode() if outer.body is None else outer.body
                )
                self.send_response(outer.status if known else 401)
                for name, value in ({"Content-Length": str(len(body))} | dict(outer.fields)).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *arguments: object) -> None:
                """A client that leaves early is what many tests are about."""

        self._server = Server(("127.0.0.1", port), Handler)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "http" if tls is None else "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/introspect"

    def active(self, token: str, **members: Any) -> str:
        """Make a token active; a member given as None is left out."""
        now = int(time.time())
        made = {"active": True, "sub": "alice", "iat": now, "exp": now + 600, **members}
        self.said[token] = {name: value for name, value in made.items() if value is not None}
        return token

    def normal(self) -> None:
        """Answer as such a server should again."""
        self.status, self.body, self.fields = 200, None, {}
        self.open.set()

    def close(self) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
