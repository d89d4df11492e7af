"""The `routes` of a policy: what may pass, on which conditions, and how it is changed on its way."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from mitmgate.core import template
from mitmgate.policy.model_identity import Bound
from mitmgate.policy.model_limits import OF_PRINCIPAL
from mitmgate.policy.model_shared import Mode
from mitmgate.policy.problem import nearest
from mitmgate.policy.scalars import (
    FRAMING,
    READ_BY_THE_GATEWAY,
    Boolean,
    Duration,
    HeaderName,
    HostPattern,
    Method,
    Name,
    Text,
    UrlPath,
    one_or_more,
    wrong,
)
from mitmgate.policy.section import Section

WRITTEN_BY_THE_GATEWAY = frozenset(
    {
        *("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port"),
        *("authorization", "x-request-id", "traceparent"),
    }
)


class Match(Section):
    """Which requests a route takes. The most specific path wins, then the host, then the method."""

    prefix: UrlPath | None = None
    """A path prefix on segment boundaries: /users takes /users and /users/7, not /usersX."""
    exact: UrlPath | None = None
    """One path."""
    hosts: Annotated[tuple[HostPattern, ...], one_or_more(HostPattern)] = ()
    """Host names; *.example takes every host below example. Empty: every host."""
    methods: Annotated[tuple[Method, ...], one_or_more(Method)] = ()
    """Methods; empty: every method. GET takes HEAD as well, unless another route of the path and host names HEAD."""

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if self.prefix is None and self.exact is None:
            raise wrong("needs a path", "add prefix: / for every path")
        if self.prefix is not None and self.exact is not None:
            raise wrong("prefix and exact exclude each other", "keep one", at="exact")
        return self


def _template(text: str) -> str:
    try:
        parsed = template.parse(text)
    except ValueError as error:
        known = (*sorted(template.PLAIN), "claim:NAME", "header:NAME")
        name = text[text.find("{") + 1 :].partition("}")[0]
        hint = "" if "lone" in str(error) else nearest(name, known) or f"one of {', '.join(known)}"
        raise wrong(str(error), hint) from None
    if "header:authorization" in parsed.placeholders:
        raise wrong("a credential is never forwarded")
    literals = "".join(literal for literal, _ in parsed.parts)
    if not text or not all(" " <= character <= "~" for character in literals):
        raise wrong("must be a header value: visible ASCII and spaces")
    return str(text)


HeaderTemplate = Annotated[Text, AfterValidator(_template)]


class Rewrite(Section):
    """How a request is changed on its way up. Without strip_prefix and replace_prefix the path stays."""

    strip_prefix: Boolean = False
    """Remove the prefix that matched."""
    replace_prefix: UrlPath | None = None
    """Put this in the place of the prefix that matched."""
    set: dict[HeaderName, HeaderTemplate] = Field(default={})
    """Request headers to set; {claim:NAME}, {header:NAME}, {subject}, {issuer}, {client_ip}, {request_id}, {route},
    {host} and {method} are filled in. A header without a value for each of them is not sent at all."""
    remove: tuple[HeaderName, ...] = ()
    """Request headers to remove."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strip_prefix and self.replace_prefix is not None:
            raise wrong("strip_prefix and replace_prefix exclude each other", "keep one", at="replace_prefix")
        for member, names in (("set", tuple(self.set)), ("remove", self.remove)):
            for name in names:
                if name.lower() in FRAMING | WRITTEN_BY_THE_GATEWAY:
                    raise wrong(f"{name} is written by the gateway alone", at=member)
        for name, text in self.set.items():
            # What tells who asks is taken from every client at once (policy.compiler._identity_headers).
            told = any(one.startswith((*OF_PRINCIPAL, "subject")) for one in template.parse(text).placeholders)
            if told and name.lower() in READ_BY_THE_GATEWAY:
                raise wrong(f"{name} of the client is what the gateway goes by", "name another header", at="set")
        return self


Kind = Literal["jwt", "api-key", "certificate"]


class Credentials(Section):
    """What a route accepts, and of whom."""

    any: Annotated[tuple[Kind, ...], Field(min_length=1), one_or_more(Kind)] | None = None
    """Kinds of credentials of which a request has one; the first of the list that is there says who asks. What is there
    must be good: none stands in for another that is not."""
    all: Annotated[tuple[Kind, ...], Field(min_length=1), one_or_more(Kind)] | None = None
    """Kinds of credentials of which a request has each; the first says who asks."""
    issuers: Annotated[tuple[Name, ...], Field(min_length=1), one_or_more(Name)] | None = None
    """Names of identity.issuers whose tokens (jwt) count; unset: identity.default."""
    bound: Bound = "optional"
    """required: only with tokens that are bound to a key or a certificate (`cnf`)."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of credentials that count, in the order of the policy; of whom says `issuers`."""
        return self.any or self.all or ("jwt",)

    @model_validator(mode="after")
    def _of_kinds(self) -> Self:
        if self.any is not None and self.all is not None:
            raise wrong("any and all exclude each other", "keep one", at="all")
        if self.any is None and self.all is None and self.issuers is None:
            raise wrong("says nothing of what is accepted", "add issuers, any or all")
        if len(set(self.kinds)) < len(self.kinds):
            raise wrong("a kind is listed twice", at="any" if self.any is not None else "all")
        if "jwt" not in self.kinds:
            for member in ("issuers", "bound"):
                if member in self.model_fields_set:
                    raise wrong("only tokens have issuers", "add jwt, or leave it out", at=member)
        return self


Word = Literal["none", "jwt", "api-key", "certificate"]


def _auth_kind(value: Any) -> str:
    return "(credentials)" if isinstance(value, dict | Credentials) else "(word)"


Auth = Annotated[
    Annotated[Word, Tag("(word)")] | Annotated[Credentials, Tag("(credentials)")],
    Discriminator(_auth_kind),
]


def accepted(auth: Word | Credentials | None) -> Credentials | None:
    """Return what a route's `auth` accepts, in full; None: it is public."""
    if auth == "none":
        return None
    if auth is None or auth == "jwt":
        return Credentials(any=("jwt",))
    return Credentials(any=(auth,)) if isinstance(auth, str) else auth


CredentialPlace = Literal["header", "cookie", "subprotocol", "ticket"]


class Route(Section):
    """One way through the gateway."""

    name: Name
    """The route's name, unique: in events, metrics and limits."""
    match: Match
    upstream: Name
    """The name of the upstream."""
    rewrite: Rewrite = Rewrite()
    auth: Auth | None = None
    """jwt: a token of identity.default, also where it is unset; api-key; certificate; {issuers: [...]}; {any: [...]} or
    {all: [...]} of several kinds; none for a public route."""
    credentials: Annotated[tuple[CredentialPlace, ...], Field(min_length=1), one_or_more(CredentialPlace)] = ("header",)
    """Where a credential may be: the Authorization header, and for browsers, which can't always set one, the cookie of
    identity.browsers, a subprotocol bearer.TOKEN of a WebSocket or a ticket (docs/browsers.md)."""
    rate_limits: Annotated[tuple[Name, ...], one_or_more(Name)] = ()
    """Names of rate_limits; a request must pass all of them."""
    cors: Name | None = None
    """The name of a CORS policy; unset: other origins may not call."""
    websocket: Boolean = False
    """Whether a WebSocket may be opened."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Whether bodies pass while they arrive; auto: those that are large, of unknown length, or event streams."""
    stream_timeout: Duration | None = Field(
        default=None, description="How long a response that streams may take in all (seconds); unset: as it wants."
    )
    allow_encoded_slash: Boolean = False
    """Whether %2F may stand in the path."""
    allow_parameters: Boolean = False
    """Whether `;` may stand in the path."""
    allow_empty_segments: Boolean = False
    """Whether `//` may stand in the path."""
    mode: Mode = "enforce"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.rate_limits)) < len(self.rate_limits):
            raise wrong("a limit is listed twice", at="rate_limits")
        if len(set(self.credentials)) < len(self.credentials):
            raise wrong("a place is listed twice", at="credentials")
        if "subprotocol" in self.credentials and not self.websocket:
            raise wrong("only a WebSocket has subprotocols", "add websocket: true", at="credentials")
        return self
