"""Values that are made on every request: frozen for the type checker, which reads every line that could change one.

A frozen dataclass sets each member through `object.__setattr__`, five times as slow as a plain one: for the three
values of a request, more than its authentication takes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value[T](*, frozen: bool, slots: bool) -> Callable[[type[T]], type[T]]:
        """Make a dataclass that nothing assigns to. Both arguments are for the type checker to read: always true."""
        return dataclass(slots=slots, unsafe_hash=frozen)


__all__ = ["value"]
