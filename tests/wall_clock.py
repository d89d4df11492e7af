"""Another time of day for a process under test, and no other clock: Debian's libfaketime."""

from pathlib import Path


def time_of_day(offset: Path) -> dict[str, str]:
    """Return the environment of a process whose time of day is ours and the seconds that a file says, such as +3600.

    The file is read again each time. time.sleep fails in such a process (libfaketime 0.9.10); waiting does not.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "libfaketime is not installed: apt-get install faketime"
    offset.write_text("+0")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
