"""`python -m mitmgate`: the command line as a process of its own."""

import sys

from mitmgate.cli import import_command, main
from mitmgate.collector import importing
from mitmgate.host.imports import put_off, structlog_alone


def run() -> int:
    """Run the command that the process was started with, and return its exit status."""
    put_off()
    with importing():
        if sys.argv[1:2] == ["serve"]:
            structlog_alone()
        import_command(sys.argv[1:])
    return main()


if __name__ == "__main__":
    sys.exit(run())
