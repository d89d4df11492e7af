"""Python's garbage collector, set for a long-running server: on, but not looking at what never dies."""

import gc
from typing import Final

YOUNG: Final = 20_000
"""New objects between two collections. Flows, streams and contexts refer to one another, so there must be some;
Python's 2000 is one every few requests, and a full one, which stops everything, every second under load."""


def settle() -> None:
    """Set aside what the start has made (libraries, options, the policy), and collect in larger steps.

    Called once, when the host accepts connections. A reload's old policy is let go by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 10, 10)
