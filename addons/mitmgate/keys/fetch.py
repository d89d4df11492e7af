"""One document over HTTP(S), bounded in size and time; redirects are not followed, certificates are verified.

h11 over asyncio's streams: the whole fetch can be cancelled at any moment and leaves no connection behind, which
tornado's client can't, and nothing of it blocks the loop, which urllib does.
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import h11

from mitmgate.core.rules import Introspection, KeySource
from mitmgate.net.cause import connect_cause
from mitmgate.net.dialler import Dialler

MAX_DOCUMENT = 1024 * 1024
MAX_ANSWER = 64 * 1024
"""Bytes of what an issuer says of a token."""
FETCH_TIMEOUT = 5.0
_MAX_HEAD = 32 * 1024
_ANY = KeySource("jwks_url")
_PORTS = {"http": 80, "https": 443}


class FetchError(Exception):
    """There is no document to be had; the caller keeps what it has and tries again later."""


class Question(NamedTuple):
    """A request, without what every one has."""

    method: str
    fields: Mapping[str, str]
    body: bytes = b""


Trust = tuple[bytes | None, bytes | None]
"""`ca` and `authorities` of core.rules."""


class NotThereError(FetchError):
    """The server answered, and not with a document."""


async def fetch_document(url: str, source: KeySource = _ANY, dialler: Dialler | None = None) -> bytes:
    """Return the body of a 200 response to GET; raises FetchError for everything else, within FETCH_TIMEOUT seconds.

    source: whose `ca` and `authorities` say by what the server is verified. dialler: connects; None: one for this
    fetch.
    """
    fields = {"Accept": "application/jwk-set+json, application/json"}
    trust = source.ca, source.authorities
    return await _fetch(url, Question("GET", fields), trust, MAX_DOCUMENT, FETCH_TIMEOUT, dialler)


async def ask_issuer(rule: Introspection, form: bytes, credential: str, dialler: Dialler | None = None) -> bytes:
    """Return the body of a 200 response to POST at an issuer; raises FetchError as `fetch_document` does.

    credential: the value of Authorization. Within `rule.timeout` seconds.
    """
    fields = {
        "Accept": "application/json",
        "Authorization": credential,
        "Content-Type": "application/x-www-form-urlencoded",
        "Content-Length": str(len(form)),
    }
    trust = rule.ca, rule.authorities
    return await _fetch(rule.url, Question("POST", fields, form), trust, MAX_ANSWER, rule.timeout, dialler)


async def _fetch(
    url: str, question: Question, trust: Trust, most: int, within: float, dialler: Dialler | None
) -> bytes:
    try:
        async with asyncio.timeout(within):
            return await _answer(urlsplit(url), question, trust, most, dialler or Dialler())
    except TimeoutError as error:
        raise FetchError(f"no complete answer within {within:g} seconds") from error
    except OSError as error:
        raise FetchError(f"{connect_cause(error)}: {error}") from error
    except (ValueError, h11.ProtocolError) as error:
        raise FetchError(str(error) or type(error).__name__) from error


async def _answer(url: SplitResult, question: Question, trust: Trust, most: int, dialler: Dialler) -> bytes:
    host = url.hostname or ""
    tls = _trust(*trust) if url.scheme == "https" else None
    connected = await dialler.connect(host, url.port or _PORTS[url.scheme])
    reader, writer = await asyncio.open_connection(sock=connected, ssl=tls, server_hostname=host if tls else None)
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        request = h11.Request(
            method=question.method,
            target=(url.path or "/") + (f"?{url.query}" if url.query else ""),
            headers=[
                ("Host", url.netloc.rpartition("@")[2]),
                *question.fields.items(),
                ("User-Agent", "mitmgate"),
                ("Connection", "close"),
            ],
        )
        writer.write(connection.send(request) or b"")
        if question.body:
            writer.write(connection.send(h11.Data(question.body)) or b"")
        connection.send(h11.EndOfMessage())
        return await _body(connection, reader, most)
    finally:
        writer.transport.abort()


async def _body(connection: h11.Connection, reader: asyncio.StreamReader, most: int) -> bytes:
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response) and event.status_code != 200:
            raise NotThereError(f"the server answered {event.status_code}")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > most:
                raise FetchError(f"the document has more than {most} bytes")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif not isinstance(event, h11.InformationalResponse | h11.Response):
            raise FetchError("the connection was closed")


@lru_cache(maxsize=8)
def _trust(ca: bytes | None, authorities: bytes | None) -> ssl.SSLContext:
    if ca is not None:
        return ssl.create_default_context(cadata=ca.decode("ascii"))
    if authorities is None:
        return ssl.create_default_context()
    context = ssl.create_default_context(cadata=authorities.decode("ascii"))
    context.load_verify_locations(capath=ssl.get_default_verify_paths().capath)
    return context
