"""Stock origins: Node's http server and nginx, as processes of their own, whose logs say which requests there were.

What a request is, where it begins and where it ends, is what these say it is: neither shares a line of code with the
gateway. Both answer with X-Origin-Saw, the request id that they got.
"""

import json
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.live.harness_http import free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE

HERE = Path(__file__).resolve().parent
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"  # Debian has it where only root's PATH looks


@dataclass(frozen=True)
class Logged:
    """A request as an origin read it.

    complete: its body was read to the end. answered: the origin wrote its response to the end. sha256: of the body;
    length: its bytes; both None where the origin does not say (nginx).
    """

    origin: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    complete: bool
    answered: bool
    length: int | None = None
    sha256: str | None = None

    def all(self, name: str) -> list[str]:
        """Return every value of a header field, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def one(self, name: str) -> str | None:
        """Return the value of a header field; None where absent; all of them where it is repeated."""
        return ", ".join(self.all(name)) or None


class Origin:
    """A process with a log; use it as a context manager."""

    name = ""

    def __init__(self, directory: Path) -> None:
        """directory: for its log, and what it needs to run."""
        self.directory = directory
        self.log = directory / f"{self.name}.log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._at = 0
        self._fences = 0

    @property
    def url(self) -> str:
        """The endpoint as a policy names it."""
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """Wait until everything sent before the call is in the log, and return the lines since the last call."""
        self._fences += 1
        name = f"{self._fences}"
        assert request(self.port, "GET", f"/fence/{name}").status == 200
        found: list[dict[str, Any]] = []

        def fenced() -> bool:
            with self.log.open("rb") as file:
                file.seek(self._at)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._at += len(whole)
            found.extend(json.loads(line) for line in whole.splitlines())
            return any(self.is_fence(line, name) for line in found)

        wait_for(fenced, f"{self.name} to log a fence")
        return [line for line in found if not self.is_fence(line)]

    def is_fence(self, line: dict[str, Any], name: str | None = None) -> bool:
        """Tell whether a line is of the harness's own requests; name: of one of them."""
        raise NotImplementedError

    def requests(self) -> list[Logged]:
        """Return what was logged since the last call."""
        raise NotImplementedError

    def _start(self, command: list[str]) -> None:
        with (self.directory / f"{self.name}.err").open("wb") as err:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, start_new_session=True)

    def __enter__(self) -> Self:
        """Start it."""
        raise NotImplementedError

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop it."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
            if process.stdout is not None:
                process.stdout.close()


class NodeOrigin(Origin):
    """Node's http server, see origin.mjs for what it answers."""

    name = "node"

    def __init__(self, directory: Path) -> None:
        """directory: for its log."""
        super().__init__(directory)
        self._open: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        """Start it and learn its port."""
        self.log.touch()
        self._start(["node", str(HERE / "origin.mjs"), str(self.log)])
        assert self._process is not None
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def is_fence(self, line: dict[str, Any], name: str | None = None) -> bool:
        """Tell a fence."""
        return line["event"] == "fence" and name in {None, line["name"]}

    def requests(self) -> list[Logged]:
        """Return the requests that have ended, one way or the other, and what it could not read as a request."""
        found = []
        for line in self.lines():
            kind = line["event"]
            if kind == "request":
                self._open[line["number"]] = line
            elif kind == "end":
                found.append(_of_node(self._open.pop(line["number"]), line))
            elif kind == "broken":
                found.append(broken(self.name, line["code"], line["bytes"], line["parsed"]))
        found += [_of_node(line, None) for line in self._open.values()]
        self._open.clear()
        return found


_KNOWN = [
    "ACL",
    "ANNOUNCE",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "DESCRIBE",
    "FLUSH",
    "GET",
    "GET_PARAMETER",
    "HEAD",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "PAUSE",
    "PLAY",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "RECORD",
    "REDIRECT",
    "REPORT",
    "SEARCH",
    "SETUP",
    "SET_PARAMETER",
    "SOURCE",
    "SUBSCRIBE",
    "TEARDOWN",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
]
"""The methods of Node's parser (llhttp), those of RTSP among them."""


def broken(origin: str, code: str, data: str, parsed: int) -> Logged:
    """Read what Node's parser refused: a head with a method that it does not know is a request all the same.

    data: what was read together with it, from the rest of an earlier body on. parsed: where in it the parser stopped,
    which is at the first octet that no method has there.
    """
    for start in range(max(0, parsed - 20), parsed + 1):
        if _begins_method(data[start:parsed]) and not _begins_method(data[start : parsed + 1]):
            data = data[start:]
            break
    first, *lines = data.partition("\r\n\r\n")[0].split("\r\n")
    parts = first.split(" ")
    if code == "HPE_INVALID_METHOD" and len(parts) == 3 and parts[2] == "HTTP/1.1":
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        return Logged(origin, parts[0], parts[1], headers, False, False)
    return Logged(origin, f"({code})", repr(data), (), False, False)


def _begins_method(text: str) -> bool:
    return any(method.startswith(text) for method in _KNOWN)


def _of_node(line: dict[str, Any], end: dict[str, Any] | None) -> Logged:
    raw = line["headers"]
    headers = tuple(zip(raw[::2], raw[1::2], strict=True))
    if end is None:
        return Logged("node", line["method"], line["url"], headers, False, False)
    whole = end["complete"]
    return Logged(
        "node",
        line["method"],
        line["url"],
        headers,
        whole,
        end["answered"],
        end["length"],
        end["sha256"] if whole else None,
    )


NGINX_FIELDS = (
    "host",
    "x-request-id",
    "x-user-id",
    "x-user-role",
    "content-length",
    "transfer-encoding",
    "authorization",
)
NGINX_CONFIGURATION = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/nginx.err warn;
events {{}}
http {{
    log_format line escape=json '{{"request": "$request", "method": "$request_method", "url": "$request_uri", '
        '"status": $status, "complete": "$request_completion", {fields}}}';
    access_log {directory}/nginx.log line;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 100m;
        add_header X-Origin-Saw $http_x_request_id always;
        add_header X-Origin-User $http_x_user_id always;
        location / {{ proxy_pass http://unix:{directory}/inner; }}  # reads the body before it answers
        location /nginx/always/early {{ return 200 "$request_uri"; }}  # answers before it reads the body
        location /fence/ {{ return 200; }}
    }}
    server {{
        listen unix:{directory}/inner;
        access_log off;
        location / {{ return 200 "$request_uri"; }}
    }}
}}
"""


class NginxOrigin(Origin):
    """One nginx process with a configuration of its own."""

    name = "nginx"

    def __init__(self, directory: Path) -> None:
        """directory: for its configuration and log; another where its path is long: a socket has 108 bytes for it."""
        super().__init__(Path(tempfile.mkdtemp(prefix="nginx-", dir=directory if len(str(directory)) < 80 else None)))
        self.log = self.directory / "nginx.log"

    def __enter__(self) -> Self:
        """Start it, and wait until it listens."""
        self.port = free_port()
        fields = ", ".join(f'"{name}": "$http_{name.replace("-", "_")}"' for name in NGINX_FIELDS)
        configuration = self.directory / "nginx.conf"
        text = NGINX_CONFIGURATION.format(directory=self.directory, port=self.port, fields=fields)
        configuration.write_text(text)
        self.log.touch()
        self._start(
            [NGINX, "-p", str(self.directory), "-e", str(self.directory / "nginx.err"), "-c", str(configuration)]
        )
        wait_for((self.directory / "inner").exists, "nginx to listen")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop it, and remove what it needed."""
        super().__exit__(kind, value, tb)
        shutil.rmtree(self.directory, ignore_errors=True)

    def is_fence(self, line: dict[str, Any], name: str | None = None) -> bool:
        """Tell a fence."""
        url: str = line["url"]
        return url == f"/fence/{name}" if name is not None else url.startswith("/fence/")

    def requests(self) -> list[Logged]:
        """Return the requests that have ended, and what it could not read as a request, which it logs as 400."""
        return [
            Logged(
                self.name,
                line["method"] or "(broken)",
                line["url"] or repr(line["request"]),
                tuple((name, line[name]) for name in NGINX_FIELDS if line[name]),
                line["status"] not in {400, 408, 499},
                line["complete"] == "OK" and line["status"] != 499,
            )
            for line in self.lines()
        ]
