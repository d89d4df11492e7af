"""A stock Node server as an origin: what it takes for requests, by its own log."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.live.harness_http import request, wait_for
from tests.live.harness_upstream import PATIENCE

_SERVER = """
const say = (line) => process.stdout.write(JSON.stringify(line) + "\\n");
const server = require("http").createServer((request, response) => {
  let length = 0;
  const log = (complete) => say({
    method: request.method, target: request.url, fields: request.headers, length, complete,
  });
  request.on("data", (part) => { length += part.length; });
  request.on("end", () => { log(true); response.end("node says hello"); });
  request.on("error", () => {});
  request.on("close", () => { if (!request.complete) log(false); });
});
server.on("clientError", (error, socket) => {
  if (error.code !== "ECONNRESET") say({ error: error.code, raw: String(error.rawPacket) });
  socket.destroy();
});
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
"""


class NodeOrigin:
    """The server as a process of its own; use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        node = shutil.which("node")
        assert node, "node is not installed"
        self._script = directory / "origin.js"
        self._script.write_text(_SERVER)
        self._command = [node, str(self._script)]
        self._lines: list[dict[str, Any]] = []
        self._fences = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        wait_for(lambda: bool(self._lines), "node to listen")
        self.port = int(self._lines[0]["port"])
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._reading.join(PATIENCE)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.append(json.loads(line))

    def log(self) -> list[dict[str, Any]]:
        """Return what node has logged: requests, whole and broken off ones, and bytes that it took for none."""
        self._fences += 1
        target = f"/fence/{self._fences}"
        assert request(self.port, "GET", target).status == 200
        wait_for(lambda: any(line.get("target") == target for line in self._lines), "node's log")
        return [line for line in self._lines[1:] if not line.get("target", "").startswith("/fence/")]
