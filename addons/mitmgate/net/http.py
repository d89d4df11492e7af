"""One request over HTTP(S) to a service of the operator's, bounded in size; certificates are verified.

h11 over asyncio's streams: an exchange can be cancelled at any moment and leaves no connection behind, which tornado's
client can't, and nothing of it blocks the loop, which urllib does. Redirects are not followed: a 3xx is an answer.
"""

import asyncio
import errno
import ssl
from functools import lru_cache
from itertools import count
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import h11

from mitmgate.core.headers import Fields
from mitmgate.net.cause import connect_cause
from mitmgate.net.dialler import Dialler

MAX_HEAD: Final = 32 * 1024
"""Bytes of the head of an answer."""
_EVENTS_A_TURN: Final = 64
"""Events of h11 behind which the loop gets a turn: what has come already is read without waiting for anything."""
_OURS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PORTS: Final = {"http": 80, "https": 443}


class HttpError(Exception):
    """There is no whole answer to be had."""


class UnusableError(HttpError):
    """The other side is not to blame, or said what is no answer: trying later would not help.

    A request that can't be written, an answer that is malformed or too large, no descriptors or memory of our own.
    """


class Answer(NamedTuple):
    """What a server answered. body: empty unless it is a 200: nobody reads another one."""

    status: int
    fields: Fields
    body: bytes


async def ask(
    url: str,
    method: str,
    target: str,
    fields: Fields,
    body: bytes = b"",
    *,
    dialler: Dialler,
    within: float,
    most: int,
    ca: bytes | None = None,
    authorities: bytes | None = None,
) -> Answer:
    """Send a request, and return the answer; raises HttpError, after `within` seconds at the latest.

    url: whose scheme, host and port are connected to. fields: Host among them; framing and Connection are written here.
    most: bytes of the body of a 200. ca: PEM of the only authorities that the server is verified by; None: the
    system's. authorities: see UpstreamTls.system.
    """
    try:
        async with asyncio.timeout(within):
            return await _ask(url, method, target, fields, body, dialler, most, ca, authorities)
    except TimeoutError as error:
        raise HttpError(f"no complete answer within {within:g} seconds") from error
    except OSError as error:
        kind = UnusableError if error.errno in _OURS else HttpError
        raise kind(f"{connect_cause(error)}: {error}") from error
    except (ValueError, h11.ProtocolError) as error:
        raise UnusableError(str(error) or type(error).__name__) from error


async def _ask(
    url: str,
    method: str,
    target: str,
    fields: Fields,
    body: bytes,
    dialler: Dialler,
    most: int,
    ca: bytes | None,
    authorities: bytes | None,
) -> Answer:
    parts = urlsplit(url)
    host = parts.hostname or ""
    tls = _trust(ca, authorities) if parts.scheme == "https" else None
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    framing = [] if method == "GET" and not body else [(b"Content-Length", b"%d" % len(body))]
    request = h11.Request(method=method, target=target, headers=[*fields, *framing, (b"Connection", b"close")])
    written = (connection.send(request) or b"") + (connection.send(h11.Data(data=body)) or b"")
    connection.send(h11.EndOfMessage())
    connected = await dialler.connect(host, parts.port or _PORTS[parts.scheme])
    reader, writer = await asyncio.open_connection(sock=connected, ssl=tls, server_hostname=host if tls else None)
    try:
        writer.write(written)
        return await _answer(connection, reader, most)
    finally:
        writer.transport.abort()


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader, most: int) -> Answer:
    head: h11.Response | None = None
    body = bytearray()
    for number in count(1):
        if number % _EVENTS_A_TURN == 0:
            await asyncio.sleep(0)  # others run, and the timeout is looked at
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            head = event
            if head.status_code != 200:
                return Answer(head.status_code, tuple(head.headers), b"")
        elif isinstance(event, h11.Data) and head is not None:
            body += event.data
            if len(body) > most:
                raise UnusableError(f"the answer has more than {most} bytes")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Answer(head.status_code, tuple(head.headers), bytes(body))
        elif not isinstance(event, h11.InformationalResponse):
            break
    raise HttpError("the connection was closed")


@lru_cache(maxsize=16)
def _trust(ca: bytes | None, authorities: bytes | None) -> ssl.SSLContext:
    if ca is not None:
        return ssl.create_default_context(cadata=ca.decode("ascii"))
    if authorities is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cadata=authorities.decode("ascii"))
    context.load_verify_locations(capath=ssl.get_default_verify_paths().capath)
    return context
