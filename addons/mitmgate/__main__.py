"""`python -m mitmgate`: the command line as a process of its own."""

import sys

from mitmgate.cli import main
from mitmgate.host.default_addons import put_off


def run() -> int:
    """Run the command that the process was started with, and return its exit status."""
    put_off()
    return main()


if __name__ == "__main__":
    sys.exit(run())
