"""Memory of a long-running server: the collector does not look at what never dies, the C library gives back."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

YOUNG: Final = (700, 10)
"""Python's own steps for new objects: what a connection leaves behind in cycles is found soon."""
OLD: Final = 50
"""Collections of the middle generation for one of everything; Python has 10. A crowd that stays connected grows the
heap, and looking through all of it again and again took a fifth of an ordinary client's throughput in mitmweb."""

M_ARENA_MAX: Final = -8
"""glibc's number for it (malloc.h): heaps that it makes for threads, each of which keeps what was once in it."""

_LIBRARY: Final = ctypes.CDLL(None)


@contextmanager
def importing() -> Iterator[None]:
    """Set aside what is made within: a hundred thousand objects of modules, of which one in a hundred is garbage.

    Looking through them as they come, and once more when the host accepts connections, took an eighth of a start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def settle() -> None:
    """Set aside what the start has made (options, the policy, a library that was imported late).

    Called once, when the host accepts connections. A reload's old policy is let go by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, OLD)
    _call("mallopt", M_ARENA_MAX, 1)


def give_back() -> None:
    """Have the C library give the system what is free inside its heap: buffers of connections that have ended."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    function = getattr(_LIBRARY, name, None)  # glibc's; other C libraries have one heap, and give back by themselves
    if function is not None:
        function(*arguments)
