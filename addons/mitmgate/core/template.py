"""Templates of header values: literal text with placeholders such as {claim:tenant} or {client_ip}."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mitmgate.core.pointer import problem

PLAIN = frozenset({"subject", "issuer", "client_ip", "request_id", "route", "host", "method"})
NAMED = frozenset({"claim", "header"})  # written {claim:NAME}, {header:NAME}

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. parts alternate freely: (literal, None), or ("", placeholder)."""

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The placeholders in their order, without braces: "subject", "claim:tenant"."""
        return tuple(name for _, name in self.parts if name is not None)

    def render(self, lookup: Callable[[str], str | None]) -> str | None:
        """Fill in the placeholders; None where `lookup` has no value for one of them.

        Half a value could read as another value ("tenant-" for "tenant-{claim:tenant}"), so there is none at all.
        """
        rendered = []
        for literal, name in self.parts:
            if name is None:
                rendered.append(literal)
                continue
            value = lookup(name)
            if value is None:
                return None
            rendered.append(value)
        return "".join(rendered)


def parse(text: str) -> Template:
    """Parse a template; `{{` and `}}` stand for the braces themselves.

    Raises ValueError for a lone brace and for a placeholder that does not exist; its message quotes nothing of the
    text, which may hold a credential. A header's name becomes lower-case.
    """
    parts: list[tuple[str, str | None]] = []
    literal = ""
    end = 0
    for piece in _PIECE.finditer(text):
        literal += text[end : piece.start()]
        end = piece.end()
        token = piece.group()
        if token in ("{{", "}}"):
            literal += token[0]
        elif len(token) == 1:
            raise ValueError(f"a lone {token!r} at character {piece.start() + 1}; a literal brace is written twice")
        else:
            if literal:
                parts.append((literal, None))
                literal = ""
            parts.append(("", _placeholder(piece.group(1), piece.start() + 1)))
    literal += text[end:]
    if literal:
        parts.append((literal, None))
    return Template(text, tuple(parts))


def placeholders(text: str) -> tuple[str, ...]:
    """Name the placeholders of a template; raises ValueError as `parse` does."""
    return parse(text).placeholders


def _placeholder(name: str, place: int) -> str:
    kind, colon, argument = name.partition(":")
    if not colon and kind in PLAIN:
        return name
    if colon and kind == "claim" and argument:
        message = problem(argument)
        if message is not None:
            raise ValueError(f"the claim of the placeholder at character {place} is {message}")
        return name
    if colon and kind == "header" and _TOKEN.fullmatch(argument):
        return f"header:{argument.lower()}"
    if kind in NAMED:
        raise ValueError(f"the placeholder at character {place} needs a name: {{{kind}:NAME}}")
    raise ValueError(f"there is no such placeholder as the one at character {place}")
