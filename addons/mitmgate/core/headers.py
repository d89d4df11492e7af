"""Header fields as a frozen multi-map over the bytes that arrived."""

from collections.abc import Iterable

Fields = tuple[tuple[bytes, bytes], ...]


class Headers:
    """Header fields in their order, looked up without regard to case (RFC 9110, section 5.1).

    Names and values are the bytes of the wire; text look-ups decode as ISO-8859-1, which can't fail.
    """

    __slots__ = ("_index", "fields", "memo")

    fields: Fields
    memo: dict[object, object] | None
    """What was found out of fields that a connection's requests bring again and again, by whoever found it.

    None for fields that came once: to remember would be work for nothing. What is in it was made of these fields and of
    what its reader compares again each time, and of nothing else.
    """

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Index the fields once."""
        self.fields = tuple(fields)
        self.memo = None
        index: dict[bytes, list[bytes]] = {}
        for name, value in self.fields:
            index.setdefault(name.lower(), []).append(value)
        self._index = index

    @classmethod
    def indexed(cls, fields: Fields, index: dict[bytes, list[bytes]]) -> "Headers":
        """Make headers of fields whose index (lower-case name to values, in order) a parser has built on its way."""
        headers = cls.__new__(cls)
        headers.fields = fields
        headers.memo = None
        headers._index = index
        return headers

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
