"""A command's output file: written whole, or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from mitmgate.usage import UserError


@contextmanager
def output(path: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file that takes its name only when all is written; what had the name before stays until then.

    mode: its permissions, before the umask. A pipe, a terminal or another device is written at once. Raises UserError
    where it can't be written.
    """
    try:
        target = os.path.realpath(path)
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            with open(target, "wb") as file:
                yield file
            return
        folder, name = os.path.split(target)
        part = os.path.join(folder, f".{name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.replace(part, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(part)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: str, error: OSError) -> UserError:
    return UserError(f"{path}: can't be written: {(error.strerror or str(error)).lower()}")
