"""What a recorded request showed in Authorization: a token of a recording, a real one, or none."""

import re

from cachetools import LRUCache

from mitmgate.core.headers import Fields
from mitmgate.core.refusal import Refusal
from mitmgate.core.token import read_token
from mitmgate.replay.resigned import MARK, read_resigned
from mitmgate.replay.traffic import Presented, Signature

_MARK = MARK.decode("ascii")
_ELSEWHERE = (b"cookie", b"sec-websocket-protocol")
_TOKEN = re.compile(re.escape(MARK) + rb"[A-Za-z0-9_.-]*")
_SCHEMES = (b"bearer", b"dpop")


class PresentedTokens:
    """Reads the tokens of a recording; each distinct one is verified once, as long as it is remembered."""

    def __init__(self, remembered: int = 16_384) -> None:
        """remembered: distinct tokens."""
        self._known: LRUCache[tuple[bytes, str], Presented | None] = LRUCache(remembered)

    def show(self, fields: list[tuple[bytes, bytes]], key: str | None) -> tuple[Fields, Presented | None] | None:
        """Return the fields as the chain is to see them, and the token of the recording that one of them held.

        key: the recording's public key. None: a token of the recording that is not intact.
        """
        presented: Presented | None = None
        for at, (name, content) in enumerate(fields):
            if MARK in content and name.lower() == b"authorization" and key is not None:
                scheme, _, rest = content.partition(b" ")
                token = rest.strip(b" ")
                if scheme.lower() not in _SCHEMES or not token.startswith(MARK):
                    continue
                found = self._read(token, key)
                if found is None:
                    return None
                fields[at] = name, content.replace(token, found.text)
                presented = found
            elif MARK in content and name.lower() in _ELSEWHERE and key is not None:
                for token in _TOKEN.findall(content):
                    found = self._read(token, key)
                    if found is None:
                        return None
                    fields[at] = name, fields[at][1].replace(token, found.text)
                    presented = presented or found
        return tuple(fields), presented

    def show_target(self, target: str, key: str | None) -> tuple[str, Presented | None] | None:
        """Return the target as the chain is to see it, and the token that stands where a ticket was; as `show`."""
        if key is None or _MARK not in target:
            return target, None
        found = _TOKEN.search(target.encode("latin-1"))
        token = None if found is None else self._read(found[0], key)
        if found is None or token is None:
            return None
        return target.replace(found[0].decode("ascii"), token.text.decode("ascii")), token

    def real(self, fields: list[tuple[bytes, bytes]], signature: Signature) -> Presented | None:
        """Take the real token of a saved request, whose verdict says what its signature was; None: it has none."""
        for name, content in fields:
            scheme, _, rest = content.partition(b" ")
            if name.lower() == b"authorization" and scheme.lower() in _SCHEMES:
                token = rest.strip(b" ")
                key = token, signature
                if key not in self._known:
                    self._known[key] = _presented(token, signature)
                return self._known[key]
        return None

    def _read(self, token: bytes, key: str) -> Presented | None:
        try:
            return self._known[token, key]
        except KeyError:
            found = self._known[token, key] = read_resigned(token, key)
            return found


def assumed(token: bytes) -> Presented:
    """Take a token whose signature nobody checks for signed, as `--assume-signed` does."""
    return _presented(token, "good")


def _presented(token: bytes, signature: Signature) -> Presented:
    read = read_token(token)
    if isinstance(read, Refusal):
        return Presented(token, signature, refusal=read)
    return Presented(token, signature, token=read)
