"""TLS files that the URL of a Redis server names, and that its client library opens by their path."""

import errno
import os


def require_files(*paths: str | None) -> None:
    """Raise FileNotFoundError for a path that is no regular file: reading a pipe has no end. None: not named."""
    for path in paths:
        if path is not None and not os.path.isfile(path):
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
