"""Field names in lower case, looked up rather than made.

Names repeat from message to message. What is remembered is a function of the name alone, and bounded: names that
everybody sends are known from the start, others are remembered while there is room and they are short, so that a
client that makes names up costs itself a little time, and neither others nor memory.
"""

from typing import Final

from mitmgate.core.http1.head import KNOWN

_MOST: Final = 4096
_LONGEST: Final = 64


class _Lowered(dict[bytes, bytes]):
    """Each name's lower-case form; a look-up makes what is missing."""

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        if len(self) < _MOST and len(name) <= _LONGEST:
            self[name] = lower
        return lower


LOWER: Final = _Lowered(KNOWN)
"""Lower-case forms, by name: `LOWER[name] == name.lower()`."""
