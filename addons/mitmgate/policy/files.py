"""The files that a policy names: read once, bounded, and stamped so that a watcher sees when they change."""

from pathlib import Path

from mitmgate.policy.problem import Stamp

MAX_BYTES = 1 << 20


class UnreadableError(Exception):
    """A file that can't be read; the message is for the policy's author."""


def stamp(path: Path) -> Stamp:
    """Return what changes when a file does, also when an editor renames a new one over it; None: no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class Files:
    """Reads files relative to one directory. stamps: every file that was asked for, as it was before it was read."""

    def __init__(self, directory: Path) -> None:
        """Start with nothing read."""
        self.directory = directory
        self.stamps: dict[Path, Stamp] = {}

    def read(self, name: str) -> bytes:
        """Return a file's content; raises UnreadableError with the reason."""
        path = self.directory / name
        # Stamped first: what changes while it is read is seen as a change afterwards.
        self.stamps.setdefault(path, stamp(path))
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise UnreadableError(f"can't be read: {reason.lower()}") from error
        if len(content) > MAX_BYTES:
            raise UnreadableError(f"is larger than {MAX_BYTES} bytes")
        return content
