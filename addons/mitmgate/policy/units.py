"""Durations, sizes and shares as a policy writes them: 250ms, 2s, 5m, 1h; 100B, 512KiB, 10MiB; 50%."""

import re

DURATION = r"^[0-9]{1,9}(ms|s|m|h)$"
SIZE = r"^[0-9]{1,12}(B|KiB|MiB|GiB)$"
SHARE = r"^([0-9]|[1-9][0-9]|100)%$"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_NUMBER = re.compile(r"([0-9]+)\s*([A-Za-z]*)")
_LONGEST = 10 * 365 * 86400.0
_LARGEST = 1 << 40


class UnitError(ValueError):
    """Text that is no duration, size or share. hint: how it would be written."""

    def __init__(self, message: str, hint: str) -> None:
        """Keep the hint apart from the message."""
        super().__init__(message)
        self.hint = hint


def parse_duration(text: str) -> float:
    """Return seconds. Raises UnitError for anything but a whole number and one of ms, s, m, h."""
    if re.fullmatch(DURATION, text) is None:
        raise UnitError("must be a duration", _suggest(text, {"": "s", "sec": "s", "min": "m", "d": "h"}, "s"))
    number, unit = _split(text)
    # Milliseconds are divided, not multiplied: 100ms is the same float as 0.1.
    seconds = number / 1000 if unit == "ms" else number * _SECONDS[unit]
    if seconds > _LONGEST:
        raise UnitError("must be at most ten years", "")
    return seconds


def parse_size(text: str) -> int:
    """Return bytes. Raises UnitError for anything but a whole number and one of B, KiB, MiB, GiB."""
    if re.fullmatch(SIZE, text) is None:
        powers = {"": "B", "k": "KiB", "kb": "KiB", "kib": "KiB", "m": "MiB", "mb": "MiB", "mib": "MiB"}
        raise UnitError("must be a size", _suggest(text, {**powers, "g": "GiB", "gb": "GiB", "b": "B"}, "KiB"))
    number, unit = _split(text)
    if number * _BYTES[unit] > _LARGEST:
        raise UnitError("must be at most 1024GiB", "")
    return number * _BYTES[unit]


def parse_share(text: str) -> float:
    """Return a part of one. Raises UnitError for anything but a whole number from 0 to 100 and %; 0 needs none."""
    if text == "0":
        return 0.0
    if re.fullmatch(SHARE, text) is None:
        meant = re.fullmatch(r"([0-9]|[1-9][0-9]|100) ?%?", text)
        fraction = re.fullmatch(r"0?\.([0-9]{1,2})", text)
        if meant is None and fraction is None:
            raise UnitError("must be a share", "write a percentage, like 50%")
        number = meant.group(1) if meant is not None else f"{float(text) * 100:.0f}"
        raise UnitError("must be a share", f"write {number}%")
    return int(text[:-1]) / 100


def _split(text: str) -> tuple[int, str]:
    digits = text.rstrip("BGKMhims")
    return int(digits), text[len(digits) :]


def _suggest(text: str, units: dict[str, str], usual: str) -> str:
    """Return the hint: the same number with the unit that was probably meant, or an example."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return f"write a whole number and a unit, like 30{usual}"
    number, unit = int(match.group(1)[:12]), match.group(2).lower()
    if unit == "d":
        number *= 24
    return f"write {number}{units.get(unit, usual)}"
