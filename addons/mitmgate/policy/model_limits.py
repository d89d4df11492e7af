"""The `rate_limits` and `cors` of a policy."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from mitmgate.core.authority import parse_authority
from mitmgate.core.pointer import problem
from mitmgate.policy.model_shared import Mode
from mitmgate.policy.problem import nearest
from mitmgate.policy.scalars import (
    TOKEN,
    Boolean,
    Claim,
    Count,
    Duration,
    DurationOrZero,
    HeaderName,
    Integer,
    Method,
    Text,
    host_on_the_wire,
    one_or_more,
    wrong,
)
from mitmgate.policy.section import Section

KEYS = ("principal", "client_ip", "issuer", "route", "claim:NAME", "header:NAME", "stage:NAME:KEY")
OF_PRINCIPAL = ("principal", "issuer", "claim:")
"""How keys begin that need an authenticated principal."""


def _key(text: str) -> str:
    kind, colon, name = text.partition(":")
    if kind == "claim" and (message := problem(name)) is not None:
        raise wrong(message, "write claim:/realm_access/roles", unquoted=message)
    if text in {"principal", "client_ip", "issuer", "route"} or (kind == "claim" and name):
        return str(text)
    if kind == "header" and re.fullmatch(TOKEN, name):
        return f"header:{name.lower()}"
    if kind == "stage" and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}:[^:]+", name):
        return str(text)
    if colon and kind == "stage":
        raise wrong("must name a stage of the policy and one of its keys", "write stage:NAME:KEY")
    if colon and kind in {"claim", "header"}:
        raise wrong(f"must name a {kind}", f"write {kind}:NAME")
    raise wrong("must be a key that requests are counted by", nearest(text, KEYS) or f"one of {', '.join(KEYS)}")


Key = Annotated[str, Strict(), AfterValidator(_key)]


class Tiers(Section):
    """A limit's number by what a claim says, such as a plan."""

    claim: Claim
    """The claim that names the tier, text or a whole number."""
    values: Annotated[dict[Text, Count], Field(min_length=1)]
    """How many units pass in any window, by the claim's value."""
    default: Count
    """How many for every other value, and without the claim."""

    @model_validator(mode="after")
    def _one_default(self) -> Self:
        if "default" in self.values:
            raise wrong("default stands beside values: it is for every other value", at="values")
        return self


class RateLimit(Section):
    """At most `limit` units of one key in any `window`, or as many as `tiers` gives a principal."""

    limit: Count | None = None
    """How many units pass in any window."""
    tiers: Tiers | None = None
    """How many, by a claim of the principal; in the place of `limit`."""
    window: Duration = Field(description="The length of the window (seconds), at every position in time.")
    key: Annotated[tuple[Key, ...], Field(min_length=1), one_or_more(Key)] = ("principal",)
    """What is counted by: principal, client_ip, issuer, route, claim:NAME, header:NAME, stage:NAME:KEY (what a stage of
    the operator's own says), or a list of these."""
    ipv6_prefix: Annotated[Integer, Field(ge=1, le=128)] = 64
    """For client_ip: the length of the network (bits) that is one client; a host has all of a /64 (RFC 4291)."""
    cost: Count = 1
    """How many units a request takes."""
    on_store_failure: Literal["deny", "allow", "local"] = "local"
    """Without the store: deny, allow, or count in this process (local)."""
    mode: Mode = "enforce"
    """report: count and record, deny nobody."""

    @property
    def numbers(self) -> dict[str | None, int]:
        """The limits by tier, "default" the last; of a limit without tiers its own, by None."""
        if self.tiers is None:
            return {None: self.limit or 0}
        numbers: dict[str | None, int] = dict(self.tiers.values.items())
        numbers["default"] = self.tiers.default
        return numbers

    @model_validator(mode="after")
    def _can_pass(self) -> Self:
        if self.limit is None and self.tiers is None:
            raise wrong("says no number", "add limit, or tiers")
        if self.limit is not None and self.tiers is not None:
            raise wrong("limit and tiers exclude each other", "keep one", at="tiers")
        if self.cost > min(self.numbers.values()):
            raise wrong("a cost above the limit never passes", at="cost")
        if len(set(self.key)) < len(self.key):
            raise wrong("a key is listed twice", at="key")
        return self


def _origin(text: str) -> str:
    """Take an origin as a browser writes it (RFC 6454, section 6.2): it is compared byte for byte."""
    if text in {"*", "null"}:
        return str(text)
    match = re.fullmatch(r"([a-zA-Z][a-zA-Z0-9+.-]*)://([^/?#@]+)(/.*)?", text)
    if match is None:
        raise wrong("must be an origin", "write https://app.example, or *")
    scheme, host = match.group(1).lower(), match.group(2).lower()
    if "*" in host:
        message = "must be one origin: a browser sends no wildcard, so this is never equal to what it sends"
        raise wrong(message, "list each origin, or write * alone for any", unquoted=message)
    host = host_on_the_wire(host.removesuffix({"http": ":80", "https": ":443"}.get(scheme, "/")))
    if parse_authority(host) is None:
        raise wrong("must be an origin, and this has no valid host", "write https://app.example, or *")
    if text != f"{scheme}://{host}":
        message = "must be an origin as browsers send it"
        hint = "" if "@" in text else f"did you mean {scheme}://{host}?"  # the host may be a user's name and password
        raise wrong(message, hint, unquoted=message)
    return str(text)


Origin = Annotated[str, Strict(), AfterValidator(_origin)]


class Cors(Section):
    """Which pages of other origins may call, and what they may send and read.

    A preflight for a path that is not public is answered with what all rules together allow its origin.
    """

    origins: Annotated[tuple[Origin, ...], Field(min_length=1)]
    """Origins, compared byte for byte; null, which any page can have, or * alone, for any: both without credentials."""
    methods: tuple[Method, ...] = ("GET", "HEAD", "POST")
    """Methods that a preflight may ask for."""
    headers: tuple[HeaderName, ...] = ()
    """Request headers that a preflight may ask for."""
    credentials: Boolean = False
    """Whether cookies and Authorization go along."""
    expose: tuple[HeaderName, ...] = ()
    """Response headers that a page may read."""
    max_age: DurationOrZero | None = Field(None, description="How long a preflight's answer is kept (seconds).")

    @model_validator(mode="after")
    def _no_wildcard_with_credentials(self) -> Self:
        if "*" in self.origins and len(self.origins) > 1:
            raise wrong("* stands alone", at="origins")
        if self.credentials and "null" in self.origins:
            # Every sandboxed frame, local file and data: URL has this origin.
            raise wrong("null in origins can't go with credentials: any page can have that origin", at="credentials")
        if self.credentials:
            for member in ("origins", "headers", "expose"):
                if "*" in getattr(self, member):
                    raise wrong(f"* in {member} can't go with credentials", f"list the {member}", at="credentials")
        return self
