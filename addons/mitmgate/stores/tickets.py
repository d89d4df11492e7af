"""Tickets: a token as a text that is good once, for a short time, where only a URL can be given.

A ticket is the token itself, sealed (AES-256-GCM) with a secret that all processes share: whoever opens it verifies the
token like any other, so that it ends with the token, its key and its revocation. The counter store remembers which
were used, as it does with DPoP proofs.
"""

import os
import re
import struct
from base64 import urlsafe_b64encode
from collections.abc import Awaitable
from hashlib import sha256
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mitmgate.core.jose import decode_base64url
from mitmgate.core.proof import AHEAD, REPLAYED
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.rules import Proofs, Tickets
from mitmgate.stores.proofs import UsedProofs

_INVALID: Final = Refusal(Reason.TICKET_INVALID, "The ticket is none of this gateway, or its time is over.")
_USED: Final = Refusal(Reason.TICKET_USED, "The ticket was used before.")
_UNKNOWN: Final = Refusal(Reason.STORE_UNAVAILABLE, "Whether the ticket was used before can't be told.")

_NONCE: Final = 12  # octets, random in each ticket
_MILLISECONDS: Final = struct.Struct(">Q")
_PURPOSE: Final = b"mitmgate ticket"
_PARTS: Final = re.compile(rb"[A-Za-z0-9_-]{48,}")  # 36 octets beside the token itself


class _Used(NamedTuple):
    """What is remembered of a ticket, as of a proof. issued: Unix seconds."""

    id: str
    issued: float
    thumbprint: str = "ticket"


def issue(rule: Tickets, token: bytes, now: float) -> str:
    """Seal a token at `now` (Unix seconds)."""
    nonce = os.urandom(_NONCE)
    sealed = _cipher(rule).encrypt(nonce, _MILLISECONDS.pack(int(now * 1000)) + token, _PURPOSE)
    return urlsafe_b64encode(nonce + sealed).rstrip(b"=").decode("ascii")


def holds_ticket(rule: Tickets, text: bytes) -> bool:
    """Tell whether a text holds a ticket of this gateway, used or not, as a whole or between other characters."""
    return any(_unsealed(rule, part) is not None for part in _PARTS.findall(text))


def _unsealed(rule: Tickets, text: bytes) -> tuple[bytes, bytes] | None:
    """Return the nonce of a ticket and what it seals; None: it is none."""
    sealed = decode_base64url(text)
    if sealed is None or len(sealed) <= _NONCE:
        return None
    try:
        return sealed[:_NONCE], _cipher(rule).decrypt(sealed[:_NONCE], sealed[_NONCE:], _PURPOSE)
    except InvalidTag:
        return None


class TicketCheck:
    """Opens tickets, each once."""

    def __init__(self, used: UsedProofs, *, offline: bool = False) -> None:
        """used: remembers those that were. offline: a ticket of a recording is what stands for its token."""
        self._used = used
        self._offline = offline

    def open(
        self, rule: Tickets, proofs: Proofs, text: bytes, now: float, at: float
    ) -> bytes | Refusal | Awaitable[bytes | Refusal]:
        """Return the token of a ticket, which is used up then. now: Unix seconds. at: of a clock that nobody sets.

        proofs: its `on_store_failure` says what decides while the store can't be asked.
        """
        if self._offline:
            return text
        unsealed = _unsealed(rule, text)
        if unsealed is None:
            return _INVALID
        nonce, opened = unsealed
        issued, token = _MILLISECONDS.unpack_from(opened)[0] / 1000, opened[_MILLISECONDS.size :]
        if not issued - AHEAD <= now < issued + rule.lifetime:
            return _INVALID
        # Proofs may be made with a clock that is ahead; tickets are made by gateways that share the store.
        used = self._used.use(_Used(nonce.hex(), issued + AHEAD), proofs, now, at)
        return _opened(used, token) if used is None or isinstance(used, Refusal) else _later(used, token)


async def _later(pending: Awaitable[Refusal | None], token: bytes) -> bytes | Refusal:
    return _opened(await pending, token)


def _opened(refusal: Refusal | None, token: bytes) -> bytes | Refusal:
    if refusal is None:
        return token
    return _USED if refusal is REPLAYED else _UNKNOWN


def _cipher(rule: Tickets) -> AESGCM:
    return AESGCM(sha256(_PURPOSE + b"\0" + rule.secret).digest())
