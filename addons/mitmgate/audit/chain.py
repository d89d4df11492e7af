"""The hash chain: each record carries its number, its predecessor's mark and its own, so that none can be changed.

Theory of operation. A chained record is a line `{…,"seq":N,"prev":"…","mac":"…"}`. mac is HMAC-SHA256 (RFC 2104), or
SHA-256 without a key, over every byte of the line before `,"mac"`; those include prev, the mac of the record before.
Changing, inserting, removing or swapping records breaks the chain where it was done. What it can't show is a cut tail:
so the head, a small file beside the log, says which record is the last, and which is the oldest that rotation has kept,
under a mac of its own. Whoever holds the key is not detected; a second sink is the answer to that. Whoever puts an old
log and its old head back together is not detected by these two alone: so the process log, which should be kept
elsewhere, says now and then with which record the log ends (`verification.MARK`).
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from mitmgate.policy.interpolation import without_newline
from mitmgate.usage import UserError

GENESIS = "0" * 64
"""The `prev` of record 1."""

_MAC = b',"mac":"'
_END = b'"}'
_TAIL = len(_MAC) + 64 + len(_END)


def key_from_env(name: str, value: str | None) -> bytes:
    """Return the chain's key out of the value of the environment variable `name`; UserError where it is not set.

    A newline at its end is not part of it, as in a policy.
    """
    if not value:
        raise UserError(f"the environment variable {name}, the audit chain's key, is not set")
    return without_newline(value).encode("utf-8", "surrogateescape")


class Link(NamedTuple):
    """A place in the chain: a record's number and mac."""

    seq: int
    mac: str


START = Link(0, GENESIS)


class ChainedRecord(NamedTuple):
    """What a line says of its place in the chain, not checked yet. covered: the bytes that its mac covers."""

    seq: int
    prev: str
    mac: str
    covered: bytes


def mark(key: bytes | None, covered: bytes) -> str:
    """Compute a mac as hex digits."""
    return hashlib.sha256(covered).hexdigest() if key is None else hmac.digest(key, covered, "sha256").hex()


def matches(keys: Sequence[bytes | None], covered: bytes, mac: str) -> bool:
    """Tell whether one of the keys makes this mac."""
    given = mac.encode("utf-8", "replace")
    return any(hmac.compare_digest(mark(key, covered).encode("ascii"), given) for key in keys)


def link(key: bytes | None, previous: Link, records: Sequence[bytes]) -> tuple[list[bytes], Link]:
    """Chain records, objects with at least one member, to the one before; return them and the last one's link."""
    seq, mac = previous
    start = hashlib.sha256() if key is None else hmac.new(key, digestmod="sha256")  # copying costs less than making
    lines = []
    for record in records:
        seq += 1
        covered = record[:-1] + f',"seq":{seq},"prev":"{mac}"'.encode()
        marked = start.copy()
        marked.update(covered)
        mac = marked.hexdigest()
        lines.append(covered + f',"mac":"{mac}"}}'.encode())
    return lines, Link(seq, mac)


def _sealed(covered: bytes, mac: str) -> bytes:
    return b"%b%b%b%b" % (covered, _MAC, mac.encode("ascii"), _END)


def _unsealed(line: bytes) -> tuple[bytes, dict[str, object]] | None:
    covered, tail = line[:-_TAIL], line[-_TAIL:]
    if not (tail.startswith(_MAC) and tail.endswith(_END)):
        return None
    try:
        members = orjson.loads(line)
    except ValueError:
        return None
    return (covered, members) if isinstance(members, dict) else None


def sealed(covered: bytes, key: bytes) -> bytes:
    """Seal an object that lacks its end with a mac as its last member."""
    return _sealed(covered, mark(key, covered))


def unsealed(line: bytes, keys: Sequence[bytes | None]) -> dict[str, object] | None:
    """Read what `sealed` has made; None where none of the keys made it."""
    found = _unsealed(line)
    return found[1] if found is not None and matches(keys, found[0], str(found[1]["mac"])) else None


def read(line: bytes) -> ChainedRecord | None:
    """Read a line without its end; None where it is no chained record."""
    found = read_event(line)
    return None if found is None else found[0]


def read_event(line: bytes) -> tuple[ChainedRecord, dict[str, object]] | None:
    """Read a line without its end, and the event's members; None where it is no chained record."""
    unsealed = _unsealed(line)
    if unsealed is None:
        return None
    covered, members = unsealed
    seq, prev, mac = members.get("seq"), members.get("prev"), members.get("mac")
    if not (isinstance(seq, int) and isinstance(prev, str) and isinstance(mac, str)):
        return None
    return ChainedRecord(seq, prev, mac, covered), members


@dataclass(frozen=True, slots=True)
class Head:
    """What the log has to hold: every record from `first`, whose predecessor's mac is `first_prev`, up to `last`."""

    last: Link
    first: int
    first_prev: str

    def dump(self, key: bytes | None) -> bytes:
        """Write the head, under a mac of its own."""
        members = {
            "last": self.last.seq,
            "last_mac": self.last.mac,
            "first": self.first,
            "first_prev": self.first_prev,
            "keyed": key is not None,
        }
        covered = orjson.dumps(members)[:-1]
        return _sealed(covered, mark(key, covered)) + b"\n"


EMPTY = Head(START, 1, GENESIS)


def read_head(path: str, keys: Sequence[bytes | None]) -> Head | None:
    """Read a head file; None where there is none. Raises ValueError where no key made its mac, or it is none at all."""
    try:
        with open(path, "rb") as file:
            line = file.read(4096).rstrip(b"\n")
    except FileNotFoundError:
        return None
    unsealed = _unsealed(line)
    if unsealed is None:
        raise ValueError("it is not a head file")
    covered, members = unsealed
    if not matches(keys, covered, str(members["mac"])):
        raise ValueError("its mac does not match: it was changed, or made with another key")
    last, last_mac = members.get("last"), members.get("last_mac")
    first, first_prev = members.get("first"), members.get("first_prev")
    if isinstance(last, int) and isinstance(last_mac, str) and isinstance(first, int) and isinstance(first_prev, str):
        return Head(Link(last, last_mac), first, first_prev)
    raise ValueError("it is not a head file")


def is_keyed(path: str) -> bool:
    """Tell whether a head file says that a key made it; nothing is checked."""
    try:
        with open(path, "rb") as file:
            unsealed = _unsealed(file.read(4096).rstrip(b"\n"))
    except OSError:
        return False
    return unsealed is not None and unsealed[1].get("keyed") is True


def write_head(path: str, head: Head, key: bytes | None) -> None:
    """Replace the head file at once: a reader sees the old head or the new one. Raises OSError."""
    temporary = f"{path}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, head.dump(key))
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
