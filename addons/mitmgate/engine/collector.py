"""Python's garbage collector, set for a long-running server: on, but not looking at what never dies."""

import gc
from typing import Final

YOUNG: Final = (700, 10)
"""Python's own steps for new objects: what a connection leaves behind in cycles is found soon."""
OLD: Final = 50
"""Collections of the middle generation for one of everything; Python has 10. A crowd that stays connected grows the
heap, and looking through all of it again and again took a fifth of an ordinary client's throughput in mitmweb."""


def settle() -> None:
    """Set aside what the start has made (libraries, options, the policy).

    Called once, when the host accepts connections. A reload's old policy is let go by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, OLD)
