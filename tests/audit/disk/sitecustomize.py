"""A bad disk for a gateway, on any machine: Python imports this module first where its folder is on the path.

MITMGATE_TEST_FSYNC: seconds that each fsync takes longer. MITMGATE_TEST_WRITE: seconds that each write to a file whose
name ends with MITMGATE_TEST_FILE takes longer. MITMGATE_TEST_ROOM: bytes that such a file may have, as long as the file
MITMGATE_TEST_FULL is there: further writes find the disk full.
"""

import errno
import os
import time
from pathlib import Path

_name = os.environ.get("MITMGATE_TEST_FILE", "")
_fsync, _write = os.fsync, os.write


def _is_it(descriptor: int) -> bool:
    try:
        return bool(_name) and os.readlink(f"/proc/self/fd/{descriptor}").endswith(_name)
    except OSError:
        return False


def _slow_fsync(descriptor: int) -> None:
    time.sleep(float(os.environ.get("MITMGATE_TEST_FSYNC", "0")))
    _fsync(descriptor)


def _bad_write(descriptor: int, data: bytes) -> int:
    if _is_it(descriptor):
        time.sleep(float(os.environ.get("MITMGATE_TEST_WRITE", "0")))
        full = os.environ.get("MITMGATE_TEST_FULL")
        if full and Path(full).exists():
            room = int(os.environ["MITMGATE_TEST_ROOM"]) - os.fstat(descriptor).st_size
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return _write(descriptor, data[:room])
    return _write(descriptor, data)


os.fsync, os.write = _slow_fsync, _bad_write  # type: ignore[assignment]  # what the gateway gives them
