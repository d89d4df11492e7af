"""What goes on record of bytes that are no message: what they seem to have asked for."""

import re
from typing import Final

from mitmgate.core.credentials import hide_in_text

SHOWN: Final = 512
"""Bytes of a line that can't be parsed which go on record."""

_LOOKED_AT: Final = 4 * SHOWN
_METHOD: Final = re.compile(rb"[A-Za-z]{1,32}")
_VERSION: Final = re.compile(rb"[ \t]+HTTP/[0-9.]{1,8}[ \t\r]*$")
_UNSEEN: Final = re.compile(rb"[\x00-\x20\x7f\\]")
FORM: Final = re.compile(rb"/|\*|[A-Za-z][A-Za-z0-9+.-]{0,15}://")
"""How a request target begins (RFC 9112, section 3.2), but for that of a CONNECT."""
_COLON: Final = re.compile(rb":(?!//)")
_CUT: Final = b"[cut]"


def shown(target: bytes) -> bytes:
    """Make what stands for a target that is refused: visible bytes, SHOWN of them, and how many there were.

    It holds no credential: what core.credentials recognises is hidden. Of what is no target in form (`Authorization
    hunter2`, `AUTH PLAIN …`) nothing is said but that it was there.
    """
    return _trace(target) if not target or FORM.match(target) else _CUT


def asked(line: bytes) -> tuple[bytes, bytes]:
    """Take a request line apart that can't be parsed: what may be its method, and the rest without its version.

    For the record alone: nothing is decided by it. Empty where there is nothing to be said.
    """
    line = line[:_LOOKED_AT].split(b"\n", 1)[0].strip(b" \t\r")
    method, _, rest = line.partition(b" ")
    if _METHOD.fullmatch(method) is None:
        return b"", _trace(_VERSION.sub(b"", line))
    rest = _VERSION.sub(b"", rest).strip(b" \t")
    return method, shown_authority(rest) if method == b"CONNECT" else shown(rest)


def shown_authority(authority: bytes) -> bytes:
    """Make what stands for the target of a CONNECT: its host."""
    return _trace(authority.rpartition(b"@")[2])


def _trace(text: bytes) -> bytes:
    """Make what stands for a line, or a target that is none in full.

    What follows the colon of a header field is left out, whatever it is: a field was sent in a request line's place.
    """
    trace = hide_in_text(text[:_LOOKED_AT].decode("latin-1"), _hidden).encode("latin-1")
    if FORM.match(trace) is None or len(trace.split(None, 1)) > 1:
        colon = _COLON.search(trace)
        if colon is not None:
            trace = trace[: colon.end()] + _CUT
    trace = _UNSEEN.sub(_escape, trace[:SHOWN])
    return trace if len(text) <= SHOWN else b"%b[cut:%d-bytes]" % (trace, len(text))


def _hidden(_: str) -> str:
    return "[redacted]"


def _escape(found: re.Match[bytes]) -> bytes:
    return b"\\x%02x" % found[0][0]
