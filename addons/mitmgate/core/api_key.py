"""API keys: credentials of machines that no issuer makes tokens for; their form, what is kept of them, who has one.

A key is `mgk_ID_SECRET` and a checksum, letters and digits else:

* `mgk_` is what scanners of source code and logs look for, and the checksum is what they sort out mistakes by, without
  asking anybody (a CRC-32: it tells typing errors, and proves nothing);
* ID, 59 random bits, is no secret: it names the key on lists, in the audit and in whatever file one has leaked to;
* SECRET has 256 bits of the system's randomness. What is kept is the SHA-256 of the whole key. A slow hash with a salt
  (argon2, bcrypt) makes guessing what people choose dear; nobody guesses 256 random bits, however fast the hash is, and
  it would let anybody who sends keys keep the gateway busy.

A list of keys is lines of JSON: one for each key, and one for each later change, which can only take away: a key is
revoked, or ends earlier. So the order of lines makes no difference, and no line that comes later gives a key back.
"""

import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final
from urllib.parse import unquote
from zlib import crc32

from mitmgate.core.jose import Json, parse_object
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal

ISSUER: Final = "api-key"
"""What stands for the issuer of such a principal, wherever an issuer's name stands; no issuer has this name."""
PREFIX: Final = "mgk_"
LONGEST: Final = 10 * 366 * 86_400.0
"""Seconds that a key may be good for."""
MOST: Final = 10_000
"""Keys of a list, revoked ones and those that are over included."""

LONGEST_LINE: Final = 1 << 14
"""Bytes of a line of a list."""

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID, _SECRET, _CHECK = 10, 43, 6  # characters: 62 ** 10 > 2 ** 59, 62 ** 43 > 2 ** 256, 62 ** 6 > 2 ** 32
_FORM: Final = re.compile(rb"mgk_([0-9A-Za-z]{10})_[0-9A-Za-z]{49}")
_FOUND: Final = re.compile(r"mgk_[0-9A-Za-z]{10}_[0-9A-Za-z]{49}")
_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z]{10}")
_MAX_TEXT: Final = 255
_MAX_ITEMS: Final = 64
_NOBODY: Final = bytes(32)

MALFORMED: Final = Refusal(Reason.API_KEY_MALFORMED, "The API key is not of the form that keys have.")
UNKNOWN: Final = Refusal(Reason.API_KEY_UNKNOWN, "The API key is not known.")
REVOKED: Final = Refusal(Reason.API_KEY_REVOKED, "The API key was revoked.")
EXPIRED: Final = Refusal(Reason.API_KEY_EXPIRED, "The API key has expired.")
UNAVAILABLE: Final = Refusal(Reason.API_KEYS_UNAVAILABLE, "Which API keys are good is not known.")
MISSING: Final = Refusal(Reason.CREDENTIAL_MISSING, "This request needs an API key.")
NO_TOKEN: Final = Refusal(Reason.TOKEN_MALFORMED, "An API key is no access token.")
SEVERAL: Final = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds several API keys.")
IN_TARGET: Final = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds an API key in its target.")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key. Times are Unix seconds; revoked: since when, None: it is not.

    digest: SHA-256 of the key. claims: those of the principal's that were given. by: who has made it, for the record.
    before: the id of the key that it takes the place of. ended_by: who has revoked it.
    """

    id: str
    digest: bytes = field(repr=False)
    principal: Principal
    claims: Mapping[str, Json]
    created: float
    expires: float
    revoked: float | None = None
    by: str = ""
    before: str = ""
    ended_by: str = ""


def _text(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def make() -> str:
    """Make a new key, of the system's randomness."""
    identifier = "".join([secrets.choice(_ALPHABET) for _ in range(_ID)])
    body = f"{PREFIX}{identifier}_{_text(secrets.randbits(256), _SECRET)}"
    return body + _text(crc32(body.encode("ascii")), _CHECK)


def id_of(value: bytes) -> str | None:
    """Return the id of a key; None for what is none: also where the checksum is another."""
    found = _FORM.fullmatch(value)
    if found is None or value[-_CHECK:] != _text(crc32(value[:-_CHECK]), _CHECK).encode("ascii"):
        return None
    return found[1].decode("ascii")


def in_text(text: str) -> bool:
    """Tell whether a text holds what looks like a key."""
    return PREFIX in text and _FOUND.search(text) is not None


def hidden(text: str, digits: str) -> str | None:
    """Return what stands for a text with a key where it is hidden: of its form, so that it is seen where none may be.

    digits: as many. It is no key: nobody knows what would have this digest. None: the text has none, percent-encoded
    or not.
    """
    if not in_text(text) and not ("%" in text and in_text(unquote(text))):
        return None
    return f"{PREFIX}{digits[:_ID]}_{digits[15:]}"


def check(value: bytes, keys: Mapping[str, ApiKey], now: float) -> Principal | Refusal:
    """Find out whose key this is. keys: by id. now: Unix seconds.

    A key is found by its id, and compared by its digest, in constant time, with nobody's where the id is not known: the
    time tells nothing of what is kept. Why a key is good no longer is told to who has it, and to nobody else.
    """
    identifier = id_of(value)
    if identifier is None:
        return MALFORMED
    key = keys.get(identifier)
    same = hmac.compare_digest(sha256(value).digest(), _NOBODY if key is None else key.digest)
    if key is None or not same:
        return UNKNOWN
    if key.revoked is not None:
        return REVOKED
    return key.principal if now < key.expires else EXPIRED


def made(
    key: str,
    subject: str,
    now: float,
    expires: float,
    *,
    roles: tuple[str, ...] = (),
    scopes: tuple[str, ...] = (),
    claims: Mapping[str, Json] | None = None,
    by: str = "",
    before: str = "",
) -> bytes:
    """Write the line of a new key, of which the line tells nothing. Raises ValueError for what no list may hold."""
    members: dict[str, Json] = {
        "id": id_of(key.encode("ascii")) or "",
        "sha256": sha256(key.encode("ascii")).hexdigest(),
        "principal": subject,
        "created": now,
        "expires": expires,
    }
    given: dict[str, Json] = {"roles": list(roles), "scopes": list(scopes), "claims": dict(claims or {})}
    given |= {"by": by[:_MAX_TEXT], "before": before}
    line = _written(members | {name: value for name, value in given.items() if value})
    if len(line) > LONGEST_LINE:
        raise ValueError(f"what is kept of a key has at most {LONGEST_LINE} bytes")
    read([line])
    return line


def changed(identifier: str, *, revoked: float | None = None, expires: float | None = None, by: str = "") -> bytes:
    """Write the line that ends a key: now, or at a time (Unix seconds)."""
    members: dict[str, Json] = {"id": identifier}
    given: dict[str, Json] = {"revoked": revoked, "expires": expires, "by": by[:_MAX_TEXT] or None}
    return _written(members | {name: value for name, value in given.items() if value is not None})


def _written(members: Mapping[str, Json]) -> bytes:
    return json.dumps(members, separators=(",", ":"), allow_nan=False).encode("ascii")


def read(lines: Iterable[bytes]) -> dict[str, ApiKey]:
    """Read a list. Raises ValueError: what can't be read may be that a key was revoked."""
    keys: dict[str, ApiKey] = {}
    changes: list[Mapping[str, Json]] = []
    for number, line in enumerate(lines, 1):
        members = parse_object(line)
        identifier = None if members is None else members.get("id")
        if members is None or not isinstance(identifier, str) or _IDENTIFIER.fullmatch(identifier) is None:
            raise ValueError(f"line {number} is no JSON object with the id of a key")
        if "sha256" not in members:
            changes.append(members)
            continue
        if identifier in keys:
            raise ValueError(f"line {number} has the key {identifier} again")
        if len(keys) == MOST:
            raise ValueError(f"there are more than {MOST} keys")
        try:
            keys[identifier] = _key(identifier, members)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    for change in changes:
        identifier = str(change["id"])
        key = keys.get(identifier)
        revoked, expires = (_time(change, name) if name in change else None for name in ("revoked", "expires"))
        if key is None or (revoked is None and expires is None):
            raise ValueError(f"there is a change of {identifier} that changes nothing")
        if expires is not None and expires < key.expires:
            key = replace(key, expires=expires, principal=replace(key.principal, expires=expires))
        if revoked is not None and (key.revoked is None or revoked < key.revoked):
            key = replace(key, revoked=revoked, ended_by=str(change.get("by", "")))
        keys[identifier] = key
    return keys


def _key(identifier: str, members: Mapping[str, Json]) -> ApiKey:
    digest, claims = members["sha256"], members.get("claims", {})
    if not isinstance(digest, str) or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise ValueError("sha256 is no digest")
    if not isinstance(claims, dict) or claims.keys() & {"sub", "key_id"}:
        raise ValueError("claims is no object without sub and key_id")
    subject, created, expires = _word(members.get("principal")), _time(members, "created"), _time(members, "expires")
    if expires > created + LONGEST:
        raise ValueError("a key is good for ten years at the most")
    roles, scopes = (_words(members, name) for name in ("roles", "scopes"))
    if any(" " in scope for scope in scopes):
        raise ValueError("a scope has no spaces")
    by, before = (str(members.get(name, "")) for name in ("by", "before"))
    principal = Principal(
        subject=subject,
        issuer=ISSUER,
        roles=roles,
        scopes=frozenset(scopes),
        claims={**claims, "sub": subject, "key_id": identifier},
        expires=expires,
        token_id=identifier,
        issued=created,
    )
    return ApiKey(identifier, bytes.fromhex(digest), principal, claims, created, expires, None, by, before)


def _word(value: Json) -> str:
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _MAX_TEXT
        or not value.isprintable()
        or value != value.strip()
    ):
        raise ValueError(f"a principal, a role and a scope have 1 to {_MAX_TEXT} printable characters")
    return value


def _words(members: Mapping[str, Json], name: str) -> tuple[str, ...]:
    values = members.get(name, [])
    if not isinstance(values, list) or len(values) > _MAX_ITEMS:
        raise ValueError(f"{name} is a list of {_MAX_ITEMS} at the most")
    return tuple(map(_word, values))


def _time(members: Mapping[str, Json], name: str) -> float:
    value = members.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise ValueError(f"{name} is no time in Unix seconds")
    return float(value)
