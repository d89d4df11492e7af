"""One document over HTTP(S), bounded in size and time; redirects are not followed, certificates are verified."""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from mitmgate.core.rules import Introspection, KeySource
from mitmgate.net.dialler import Dialler
from mitmgate.net.http import HttpError, ask

MAX_DOCUMENT = 1024 * 1024
MAX_ANSWER = 64 * 1024
"""Bytes of what an issuer says of a token."""
FETCH_TIMEOUT = 5.0
_ANY = KeySource("jwks_url")


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
    }
    trust = rule.ca, rule.authorities
    return await _fetch(rule.url, Question("POST", fields, form), trust, MAX_ANSWER, rule.timeout, dialler)


async def _fetch(
    url: str, question: Question, trust: Trust, most: int, within: float, dialler: Dialler | None
) -> bytes:
    try:
        parts = urlsplit(url)
        answer = await ask(
            url,
            question.method,
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            (
                (b"Host", parts.netloc.rpartition("@")[2].encode("ascii")),
                *((name.encode("ascii"), text.encode("latin-1")) for name, text in question.fields.items()),
                (b"User-Agent", b"mitmgate"),
            ),
            question.body,
            dialler=dialler or Dialler(),
            within=within,
            most=most,
            ca=trust[0],
            authorities=trust[1],
        )
    except (HttpError, ValueError) as error:
        raise FetchError(str(error)) from error
    if answer.status != 200:
        raise NotThereError(f"the server answered {answer.status}")
    return answer.body
