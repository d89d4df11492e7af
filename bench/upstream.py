"""The service behind the gateways: answers every request with 200 and a few bytes, as fast as asyncio can.

`python upstream.py PORT`
"""

import asyncio
import sys
from typing import cast

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n" + b'{"ok":true}'
END = b"\r\n\r\n"


class Service(asyncio.Protocol):
    """One connection. Requests have no bodies, so each empty line is one."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)
        self.rest = b""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        data = self.rest + data
        count = data.count(END)
        self.rest = data[data.rfind(END) + len(END) :] if count else data
        self.transport.write(ANSWER * count)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
