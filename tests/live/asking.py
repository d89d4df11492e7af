"""nginx and Caddy before a service, with the configurations of docs/forward-auth.md: they ask `serve --decide`."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.live.harness import ROOT
from tests.live.harness_http import free_port, raw_request, status_of, wait_for
from tests.live.harness_upstream import PATIENCE

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"  # Debian has it where only root's PATH looks
_AROUND = """daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.err warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 100m;
    {more}
{servers}
}}
"""


def printed(language: str) -> str:
    """Return the one block of a language that the page has."""
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "forward-auth.md").read_text(), re.DOTALL)
    assert len(found) == 1, len(found)
    return str(found[0])


class AskingProxy:
    """A proxy as a process of its own; use it as a context manager.

    gateway, service: the ports that the page's 8080 and 9001 stand for. edit: replaces texts of the page's
    configuration, each of which must be there.
    """

    def __init__(self, kind: str, gateway: int, service: int, *, edit: dict[str, str] | None = None) -> None:
        self.kind = kind
        self.port = free_port()
        self._directory = Path(tempfile.mkdtemp(prefix=f"{kind}-"))
        text = printed("nginx" if kind == "nginx" else "caddyfile")
        more = ""
        for old, new in (edit or {}).items():
            if not old:
                more = new
                continue
            assert old in text, old
            text = text.replace(old, new)
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{gateway}").replace("127.0.0.1:9001", f"127.0.0.1:{service}")
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}").replace("127.0.0.1:8001", f":{self.port}")
        if kind == "nginx":
            text = _AROUND.format(directory=self._directory, more=more, servers=text)
            file = self._directory / "nginx.conf"
            self._command = [NGINX, "-p", str(self._directory), "-e", str(self._directory / "err"), "-c", str(file)]
        else:
            file = self._directory / "Caddyfile"
            text = "{\n    admin off\n    auto_https off\n    default_bind 127.0.0.1\n}\n" + text
            self._command = ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]
        file.write_text(text)
        self._log = self._directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it answers."""
        environment = {**os.environ, "HOME": str(self._directory)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)
        wait_for(self._answers, f"{self.kind} to answer")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        try:
            return status_of(raw_request(self.port, b"GET /starting HTTP/1.1\r\nHost: api.example\r\n\r\n")) > 0
        except ConnectionRefusedError:
            return False

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE)
        shutil.rmtree(self._directory, ignore_errors=True)
