"""Which segments of a path are values (numbers, identifiers), and what a path looks like without them."""

import re
from typing import Final

from mitmgate.core.credentials import hide_in_path

VALUE: Final = "{}"
"""Stands for a segment that is a value."""

VALUED: Final = re.compile(
    r"[0-9]+|[0-9a-fA-F]{8,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-7][0-9A-HJKMNP-TV-Z]{25}"
    r"|(?=[\w-]*[0-9])(?=[\w-]*[A-Za-z])[\w-]{16,}|[^/]*[@%][^/]*"
)


def shape(path: str) -> str:
    """Return a path with VALUE in the place of its values, of long segments, and of credentials."""
    return hide_in_path("/".join(map(_segment, path.split("/"))), lambda hidden: VALUE)


def _segment(segment: str) -> str:
    return VALUE if VALUED.fullmatch(segment) is not None or len(segment) > 40 else segment
