"""The service behind the gateways: answers with 200 and a few bytes, as fast as asyncio can, or as its path says.

`python upstream.py PORT`. A target that holds `/bytes/N` is answered with N bytes, `/echo` with the head that was
received as JSON, `/reset` with half an answer and a reset, `/vanish` with a reset alone; any other with a few bytes.
"""

import asyncio
import json
import re
import socket
import struct
import sys
from typing import cast

BODY = b'{"ok":true}'
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
END = b"\r\n\r\n"
BLOCK = memoryview(bytes(1 << 24))
_SPECIAL = re.compile(rb"/(bytes|echo|reset|vanish)\b")
_BYTES = re.compile(rb"/bytes/(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Service(asyncio.Protocol):
    """One connection: plain GETs are answered by counting their ends, anything else is read as HTTP says."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self.rest = bytearray()
        self.left = 0  # bytes of a body, or of a chunk, that are still to come
        self.chunked = False
        self.answer: bytes | None = None  # the head of the request whose body is being read

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        if (
            not self.rest
            and self.answer is None
            and data.startswith(b"GET ")
            and data.endswith(END)
            and _SPECIAL.search(data, 0, data.find(b"\r")) is None
        ):
            self.transport.write(ANSWER * data.count(END))
            return
        self.rest += data
        while self._step():
            pass

    def _step(self) -> bool:
        """Take one head, one piece of a body, or one chunk's size off what has come; False: more must come."""
        if self.answer is None:
            return self._head()
        if self.left:
            taken = min(self.left, len(self.rest))
            del self.rest[:taken]
            self.left -= taken
            return taken > 0
        if not self.chunked:
            self._reply(self.answer)
            self.answer = None
            return True
        line, separator, _ = self.rest.partition(b"\r\n")
        if not separator:
            return False
        size = int(line.split(b";")[0], 16)
        if size == 0:
            if len(self.rest) < len(line) + 4:
                return False
            del self.rest[: len(line) + 4]
            self.chunked = False
            return True
        del self.rest[: len(line) + 2]
        self.left = size + 2
        return True

    def _head(self) -> bool:
        head, separator, _ = self.rest.partition(END)
        if not separator:
            return False
        del self.rest[: len(head) + len(END)]
        self.answer = bytes(head)
        length = _LENGTH.search(head)
        self.left = int(length[1]) if length else 0
        self.chunked = _CHUNKED.search(head) is not None
        return True

    def _reply(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1]
        size = _BYTES.search(target)
        if size is not None:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + size[1] + b"\r\n\r\n")
            self.transport.write(BLOCK[: int(size[1])])
        elif b"/echo" in target:
            lines = head.decode("latin-1").split("\r\n")
            seen = {"request": lines[0], "headers": [line.split(": ", 1) for line in lines[1:]]}
            body = json.dumps(seen).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        elif b"/reset" in target:
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
            self._reset()
        elif b"/vanish" in target:
            self._reset()
        else:
            self.transport.write(ANSWER)

    def _reset(self) -> None:
        link = self.transport.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
