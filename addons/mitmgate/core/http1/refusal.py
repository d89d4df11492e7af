"""Why bytes are not a message that the gateway reads, and what they seem to have asked for."""

import re
from typing import Final, NamedTuple

from mitmgate.core.cause import Cause
from mitmgate.core.headers import Fields
from mitmgate.core.reason import Reason


class Refusal(NamedTuple):
    """A reason and a sentence for the client, with the parts of the head that could be read.

    After a refusal nothing that follows on the connection can be trusted to be where it seems: it must be closed.
    cause: of a response's.
    """

    reason: Reason
    detail: str
    method: bytes = b""
    target: bytes = b""
    fields: Fields = ()
    cause: Cause | None = None


SHOWN: Final = 512
"""Bytes of a line that can't be parsed which go on record."""

_METHOD: Final = re.compile(rb"[A-Za-z]{1,32}")
_VERSION: Final = re.compile(rb"[ \t]+HTTP/[0-9.]{1,8}[ \t\r]*$")
_UNSEEN: Final = re.compile(rb"[\x00-\x20\x7f\\]")


def shown(target: bytes) -> bytes:
    """Make what stands for a target that is none: visible bytes, SHOWN of them, and a word on how many there were."""
    text = _UNSEEN.sub(_escape, target[:SHOWN])
    return text if len(target) <= SHOWN else b"%b[cut:%d-bytes]" % (text, len(target))


def asked(line: bytes) -> tuple[bytes, bytes]:
    """Take a request line apart that can't be parsed: what may be its method, and the rest without its version.

    For the record alone: nothing is decided by it. Empty where there is nothing to be said.
    """
    line = line[: 4 * SHOWN].split(b"\n", 1)[0].strip(b" \t\r")
    method, _, rest = line.partition(b" ")
    if _METHOD.fullmatch(method) is None:
        method, rest = b"", line
    return method, shown(_VERSION.sub(b"", rest).strip(b" \t"))


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\x%02x" % found[0][0]
