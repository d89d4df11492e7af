"""`python -m mitmgate`: the command line."""

import sys

from mitmgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
