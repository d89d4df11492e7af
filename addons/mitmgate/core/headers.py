"""Header fields as a frozen multi-map over the bytes that arrived."""

from collections.abc import Callable, Iterable
from typing import Final, cast

Fields = tuple[tuple[bytes, bytes], ...]

DERIVED: Final = 8
"""Values that are remembered with the same fields; one more, and all are forgotten."""

_NOTHING: Final = object()


def listed(values: Iterable[bytes], word: bytes) -> bool:
    """Tell whether a list field (RFC 9110, section 5.6.1) has a word, without regard to case. word: lower-case.

    Clients choose how long a list is; most are looked at in one go, and taken apart only where the word may be there.
    """
    return any(word in lower and word in map(bytes.strip, lower.split(b",")) for lower in map(bytes.lower, values))


class Headers:
    """Header fields in their order, looked up without regard to case (RFC 9110, section 5.1).

    Names and values are the bytes of the wire; text look-ups decode as ISO-8859-1, which can't fail.
    """

    __slots__ = ("_derived", "_index", "fields")

    fields: Fields

    def __init__(self, fields: Iterable[tuple[bytes, bytes]], index: dict[bytes, list[bytes]] | None = None) -> None:
        """Index the fields once. index: lower-case name to values, in order, where a parser has built it on its way."""
        self.fields = tuple(fields)
        self._derived: dict[object, object] | None = None
        if index is None:
            index = {}
            for name, value in self.fields:
                index.setdefault(name.lower(), []).append(value)
        self._index = index

    def come_again(self) -> None:
        """Begin to remember what is derived: the same fields have come a second time, and may come again."""
        if self._derived is None:
            self._derived = {}

    @property
    def again(self) -> bool:
        """Whether what is derived is remembered. For fields that came once it would be work for nothing."""
        return self._derived is not None

    def derive[T, *A](self, function: Callable[["Headers", *A], T], *arguments: *A) -> T:
        """Return `function(self, *arguments)`, remembered where these fields come again.

        This is all that is ever remembered between two requests with the same fields. It can't depend on anything that
        is not compared: `function` is a function of a module, pure, and is given nothing but the fields and the
        arguments (hashable values), which are the key. A decision that reads more (host, path, client, route, time,
        …) is taken again for each request.
        """
        derived = self._derived
        if derived is None:
            return function(self, *arguments)
        key = (function, arguments)
        found = derived.get(key, _NOTHING)
        if found is not _NOTHING:
            return cast("T", found)
        value = function(self, *arguments)
        if len(derived) >= DERIVED:
            derived.clear()
        derived[key] = value
        return value

    def all(self, name: bytes) -> list[bytes]:
        """Return every value of a lower-case name, in order; an empty list when there is none."""
        return self._index.get(name, [])

    def one(self, name: bytes) -> bytes | None:
        """Return the only value of a lower-case name; None when it is absent or repeated."""
        values = self._index.get(name)
        return values[0] if values is not None and len(values) == 1 else None

    def text(self, name: str) -> str | None:
        """Return the values of a name (any case) joined by ", " as text; None when absent."""
        values = self._index.get(name.lower().encode("latin-1"))
        return None if values is None else b", ".join(values).decode("latin-1")

    def __contains__(self, name: bytes) -> bool:
        """Tell whether a lower-case name is present."""
        return name in self._index

    def names(self) -> Iterable[bytes]:
        """Return the lower-case names."""
        return self._index.keys()

    def __repr__(self) -> str:
        """Show the names only: values may be credentials."""
        return f"Headers({[name.decode('latin-1') for name in self._index]})"
