"""Sections and types that several sections of the policy use."""

from typing import Literal

from mitmgate.policy.scalars import Cidr
from mitmgate.policy.section import Section

Mode = Literal["enforce", "report"]


class Networks(Section):
    """Client addresses that may come in."""

    allow: tuple[Cidr, ...] = ()
    """Networks that may; empty: all that deny does not name."""
    deny: tuple[Cidr, ...] = ()
    """Networks that may not; it wins over allow."""
