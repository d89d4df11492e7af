"""Tokens of a recording: what a token said, signed again by a key that lives as long as the recorder.

A recording must hold no usable credential, and still say what every token said. So each is replaced by one that
nobody but replay accepts:

* `crit` names an extension (RFC 7515, section 4.1.11) that no verifier of access tokens understands, so that a
  conforming one refuses it whatever its policy is; this gateway's does it before it looks at anything else;
* `typ` is "mitmgate-replay+jwt", and `kid` names a key that no issuer has published;
* the private key is never written: who has the recording can read its tokens, and make no further ones.

The extension holds what replay needs of the original: algorithm, key id, type and length, what was found out about
its signature, and, where it was no token at all, why.
"""

import base64
import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mitmgate.core.jose import Json, decode_base64url, parse_object
from mitmgate.core.refusal import Refusal
from mitmgate.core.token import UnverifiedToken
from mitmgate.replay.decision import reason_of
from mitmgate.replay.traffic import Presented, Signature

TYPE: Final = "mitmgate-replay+jwt"
EXTENSION: Final = "mitmgate-replay"
_LARGEST = 1 << 20


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _json(members: Mapping[str, object]) -> bytes:
    return json.dumps(members, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


MARK: Final = _encoded(_json({"typ": TYPE})[:-1])[:-1]
"""How every such token begins; nothing else does."""


class ReplayKey:
    """The key of one recording. It is never written anywhere."""

    __slots__ = ("_key", "public")

    public: str
    """The public part: 32 bytes in base64url, as recordings carry it."""

    def __init__(self) -> None:
        """Make a new key."""
        self._key = Ed25519PrivateKey.generate()
        self.public = _encoded(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode("ascii")

    def resign(
        self, token: UnverifiedToken | Refusal, size: int, signature: Signature, claims: dict[str, Json]
    ) -> bytes:
        """Sign a token again. size: bytes of the original. claims: its claims, with the listed ones hashed."""
        note: dict[str, Json] = {"size": size, "signature": signature}
        if isinstance(token, Refusal):
            note |= {"refusal": token.reason.code, "detail": token.detail}
        else:
            note |= {"alg": token.algorithm, "kid": token.key_id, "typ": token.type}
        header = {
            "typ": TYPE,
            "alg": "EdDSA",
            "kid": f"{EXTENSION}-{self.public[:16]}",
            "crit": [EXTENSION],
            EXTENSION: note,
        }
        signed = _encoded(_json(header)) + b"." + _encoded(_json(claims))
        return signed + b"." + _encoded(self._key.sign(signed))


def read_resigned(text: bytes, public: str) -> Presented | None:
    """Read a token that `ReplayKey.resign` made; None where it is not intact, or not of that key."""
    parts = text.split(b".")
    if len(parts) != 3:
        return None
    header_json, claims_json, signature = map(decode_base64url, parts)
    key = decode_base64url(public.encode("ascii", "replace"))
    if header_json is None or claims_json is None or signature is None or key is None:
        return None
    header, claims = parse_object(header_json), parse_object(claims_json)
    if header is None or claims is None or header.get("typ") != TYPE:
        return None
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, parts[0] + b"." + parts[1])
    except (InvalidSignature, ValueError):
        return None
    note = header.get(EXTENSION)
    return _presented(text, note, claims) if isinstance(note, dict) else None


def _presented(text: bytes, note: Mapping[str, Json], claims: dict[str, Json]) -> Presented | None:
    size, found = note.get("size"), note.get("signature")
    signature: Signature | None = next((known for known in get_args(Signature) if known == found), None)
    if not isinstance(size, int) or not 0 <= size <= _LARGEST or signature is None:
        return None
    place = placeholder(text, size)
    if "refusal" in note:
        try:
            reason = reason_of(note["refusal"])
        except ValueError:
            return None
        return Presented(place, signature, refusal=Refusal(reason, str(note.get("detail", ""))))
    algorithm, key_id, kind, issuer = note.get("alg"), note.get("kid"), note.get("typ"), claims.get("iss")
    if not isinstance(algorithm, str) or not isinstance(issuer, str):
        return None
    token = UnverifiedToken(
        algorithm=algorithm,
        key_id=key_id if isinstance(key_id, str) else None,
        type=kind if isinstance(kind, str) else None,
        issuer=issuer,
        signing_input=b"",
        signature=b"",
        unverified_claims=claims,
    )
    return Presented(place, signature, token=token)


def placeholder(text: bytes, size: int) -> bytes:
    """Make `size` bytes that stand for a token: the same for the same token, and no credential."""
    digest = blake2b(text).hexdigest().encode("ascii")
    return (digest * (size // len(digest) + 1))[:size]
