"""The `identity` of a policy: whose tokens are believed, and how identity goes upstream."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict, WithJsonSchema, model_validator

from mitmgate.core.client_fields import ClientFields, Disposition, looks_like_identity, shape
from mitmgate.core.credentials import is_secret_name
from mitmgate.core.path import Ambiguous, canonical_path
from mitmgate.core.proof import LONGEST_LIFETIME
from mitmgate.core.revocation import LONGEST
from mitmgate.core.rules import TokenType, name_of
from mitmgate.keys.discovery import needs_consent, problem
from mitmgate.policy.problem import nearest
from mitmgate.policy.scalars import (
    FRAMING,
    READ_BY_THE_GATEWAY,
    Boolean,
    Claim,
    Duration,
    DurationOrZero,
    HeaderName,
    Name,
    Role,
    Scope,
    Text,
    UrlPath,
    duration,
    one_or_more,
    wrong,
)
from mitmgate.policy.section import Section

HMAC = ("HS256", "HS384", "HS512")
PUBLIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
SOURCES = ("secret_env", "secret_file", "public_key_file", "jwks_file", "jwks_url", "discovery")
LONGEST_TICKET = 120.0  # seconds
LONGEST_WAIT = 30.0  # seconds that a request may wait for an introspection
FETCHED = ("jwks_url", "discovery")


def _algorithm(text: object) -> str:
    if isinstance(text, str) and text.lower() == "none":
        raise wrong("an unsigned token proves nothing; none is never accepted")
    if text not in HMAC + PUBLIC:
        raise wrong("must be an algorithm of JWS", nearest(str(text), HMAC + PUBLIC) or "use ES256, RS256 or EdDSA")
    return str(text)


Bound = Literal["optional", "required"]

Algorithm = Annotated[str, BeforeValidator(_algorithm), WithJsonSchema({"enum": [*HMAC, *PUBLIC]})]


def _jwks_url(text: str) -> str:
    if problem(_PLACEHOLDER.sub("tenant", text)) is not None:
        raise wrong("must be an http or https URL without credentials", "write https://issuer.example/jwks.json")
    return text


class Keys(Section):
    """Where an issuer's keys come from: exactly one source. Files are relative to the policy."""

    secret_env: Text | None = None
    """The environment variable that holds an HMAC secret; one newline at its end is not part of it."""
    secret_file: Text | None = None
    """A file that holds an HMAC secret; one newline at its end is not part of it."""
    public_key_file: Text | None = None
    """A PEM file with a public key or a certificate."""
    jwks_file: Text | None = None
    """A file with a JWK set (RFC 7517)."""
    jwks_url: Annotated[Text, AfterValidator(_jwks_url)] | None = None
    """The URL of a JWK set, fetched at start and in the background."""
    discovery: Literal[True] | None = None
    """The issuer's own metadata names the JWK set (OpenID Connect Discovery 1.0, RFC 8414); of several spellings of the
    issuer the first is asked."""
    ca: Text | None = None
    """A PEM file with the only authorities that the server of a fetched key set is verified by; unset: the system's."""
    plain_http: Boolean = False
    """Whether a key set may be fetched over plain http from another machine: who is on the way can replace keys."""
    refresh: Duration = duration("5m", "How often a jwks_url is fetched (seconds).")
    min_refresh: Duration = duration("10s", "The least time between two fetches, however many unknown keys (seconds).")
    max_stale: Duration = duration("1h", "How long known keys serve while a jwks_url can't be fetched (seconds).")

    @property
    def source(self) -> str:
        """The name of the source that is set."""
        return next(source for source in SOURCES if getattr(self, source) is not None)

    @property
    def fetched(self) -> bool:
        """Whether the keys are published, and fetched."""
        return self.source in FETCHED

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [source for source in SOURCES if getattr(self, source) is not None]
        if len(given) != 1:
            problem = "two sources of keys: " + " and ".join(given) if given else "no source of keys"
            raise wrong(problem, "keep one" if given else f"one of {', '.join(SOURCES)}", at=given[-1] if given else "")
        if not self.fetched:
            for member in ("refresh", "min_refresh", "max_stale", "ca", "plain_http"):
                if member in self.model_fields_set:
                    raise wrong("only jwks_url and discovery fetch keys", "leave it out", at=member)
        if self.jwks_url is not None and not self.plain_http and needs_consent(self.jwks_url):
            message = "keys over plain http: who is on the way can replace them"
            raise wrong(message, "use https, or say plain_http: true", at="jwks_url", unquoted=message)
        if self.min_refresh > self.refresh:
            raise wrong("must not be more than refresh", at="min_refresh")
        if self.max_stale < self.refresh:
            raise wrong("must not be less than refresh", at="max_stale")
        return self


def _introspection_url(text: str) -> str:
    if problem(text) is not None:
        raise wrong("must be an http or https URL without credentials", "write https://issuer.example/introspect")
    return text


def _prefix(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._~+/-]{1,64}", text) is None:
        raise wrong("must be the beginning of a token: letters, digits and -._~+/")
    return str(text)


class Introspection(Section):
    """How an issuer is asked about its opaque tokens (RFC 7662): those that are no JWTs."""

    url: Annotated[Text, AfterValidator(_introspection_url)]
    """Its introspection endpoint."""
    client_id: Text
    """As whom the gateway asks (client_secret_basic, RFC 6749, section 2.3.1)."""
    client_secret_env: Text | None = None
    """The environment variable that holds the client's secret; one newline at its end is not part of it."""
    client_secret_file: Text | None = None
    """A file that holds the client's secret; one newline at its end is not part of it."""
    prefix: Annotated[Text, AfterValidator(_prefix)] | None = None
    """How tokens of this issuer begin. One issuer may do without: it is asked about all others."""
    timeout: Duration = duration("2s", "How long a request may wait for the answer (seconds); it is denied then.")
    cache: Duration = duration(
        "30s", "How long an answer counts (seconds): a token that the issuer ends is good for as long, never after exp."
    )
    refused: Duration = duration("5s", "How long it counts that a token is not active, or not good here (seconds).")
    ca: Text | None = None
    """A PEM file with the only authorities that the server is verified by; unset: the system's."""
    plain_http: Boolean = False
    """Whether tokens and the secret may go to another machine over plain http: who is on the way has them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        secrets = [name for name in ("client_secret_env", "client_secret_file") if getattr(self, name) is not None]
        if len(secrets) != 1:
            message = "two secrets of the client" if secrets else "no secret of the client"
            raise wrong(message, "one of client_secret_env, client_secret_file", at=secrets[-1] if secrets else "")
        if not self.plain_http and needs_consent(self.url):
            message = "tokens would go over plain http: who is on the way has them"
            raise wrong(message, "use https, or say plain_http: true", at="url", unquoted=message)
        if self.timeout > LONGEST_WAIT:
            raise wrong("must be at most 30s", at="timeout")
        if self.refused > self.cache:
            raise wrong("must not be more than cache", at="refused")
        return self


def _tenant(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}", text) is None:
        raise wrong("must be a tenant as it stands in an issuer: letters, digits, '.', '_' and '-'")
    return str(text)


Tenant = Annotated[str, Strict(), AfterValidator(_tenant)]
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _text_or_truth(value: object) -> str | bool:
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, bool):
        raise wrong("must be text, true or false", "a number is compared in require.claims of a route")
    return value


OfIssuer = Annotated[str | bool, PlainValidator(_text_or_truth), WithJsonSchema({"type": ["string", "boolean"]})]


class Claims(Section):
    """Which claims of a token are read: each by its name, or beginning with "/" by a JSON pointer (RFC 6901)."""

    subject: Annotated[tuple[Claim, ...], Field(min_length=1), one_or_more(Claim)] = ("sub",)
    """The claims that name the subject; of several the first that is there."""
    roles: Annotated[tuple[Claim, ...], one_or_more(Claim)] = ("role", "roles")
    """The claims that hold roles; of several all."""
    scopes: Annotated[tuple[Claim, ...], one_or_more(Claim)] = ("scope", "scp")
    """The claims that hold scopes; of several all."""
    audience: Annotated[tuple[Claim, ...], Field(min_length=1), one_or_more(Claim)] = ("aud",)
    """The claims that hold the audience; of several the first that is there."""
    required: Annotated[tuple[Claim, ...], one_or_more(Claim)] = ()
    """Claims that every token must have, whatever their values."""


class Issuer(Section):
    """A token issuer that is trusted, and with which keys and algorithms."""

    issuer: Annotated[tuple[Text, ...], Field(min_length=1), one_or_more(Text)]
    """The exact value of `iss`, or several that all mean this issuer. {NAME} stands for one of `tenants`; a token that
    has a claim NAME must have the tenant there, too. spiffe://NAME is a trust domain, for JWT-SVIDs without `iss`."""
    tenants: Annotated[tuple[Tenant, ...], one_or_more(Tenant)] = ()
    """The tenants of an issuer with {NAME} that are accepted, none beside them. Each is an issuer of its own: its
    principals are of NAME/TENANT."""
    audience: Annotated[tuple[Text, ...], one_or_more(Text)] = ()
    """Values of `aud` of which a token needs one; empty: not checked."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1), one_or_more(Algorithm)] = Field(
        default_factory=tuple
    )
    """What tokens may be signed with. Fixed here; a token never chooses. Needed, as keys, but with introspection."""
    keys: Keys | None = None
    introspection: Introspection | None = None
    """How it is asked about tokens that are no JWTs; unset: these are refused. Without keys it has no others."""
    leeway: DurationOrZero = duration("30s", "How far clocks may differ (seconds).")
    token_type: TokenType = "any"
    """at+jwt: only access tokens of RFC 9068; any: also JWT, and tokens without typ; access: these, unless their claims
    show that they are identity or refresh tokens (nonce, at_hash, c_hash, s_hash, events, token_use, typ)."""
    default_role: Role | None = None
    """The role of a principal whose token names none; unset: it has none."""
    profile: Literal["rfc9068"] | None = None
    """rfc9068: access tokens must be as RFC 9068 has them: of type at+jwt, with client_id, jti and iat."""
    claims: Claims = Claims()
    require: dict[Claim, Annotated[tuple[OfIssuer, ...], Field(min_length=1), one_or_more(OfIssuer)]] = Field(
        default={}
    )
    """Claims that every token must have, each with the values that it may have, text or true and false: for issuers of
    whom anybody can have a token."""
    bound: Bound = "optional"
    """required: only tokens that are bound to a key or a certificate (`cnf`). A token that is bound needs its proof in
    any case (RFC 8705, RFC 9449)."""
    max_lifetime: Duration | None = Field(
        None, description="The longest time from iat to exp (seconds); unset: not checked."
    )

    @model_validator(mode="after")
    def _verifies(self) -> Self:
        if self.keys is None and self.introspection is None:
            raise wrong("no keys", "add keys, or introspection for an issuer of opaque tokens")
        if bool(self.algorithms) != (self.keys is not None):
            missing, hint = ("keys", "add keys") if self.algorithms else ("algorithms", "add algorithms, like ES256")
            raise wrong(f"no {missing}", hint, at="algorithms" if self.algorithms else "")
        if self.introspection is not None and (self.tenants or self.issuer[0].startswith("spiffe://")):
            message = "opaque tokens say nothing of a tenant or a trust domain"
            raise wrong(message, "make an issuer of its own for them", at="introspection")
        return self

    @model_validator(mode="after")
    def _profile_fits(self) -> Self:
        if self.profile is None:
            return self
        if "token_type" in self.model_fields_set and self.token_type != "at+jwt":
            raise wrong("RFC 9068 knows at+jwt alone", "leave it out", at="token_type")
        if not self.audience:
            raise wrong("RFC 9068 demands an audience", "add audience", at="profile")
        if self.claims.audience != ("aud",):
            raise wrong("RFC 9068 has the audience in aud", "leave out claims.audience", at="claims")
        return self

    @model_validator(mode="after")
    def _tenants_fit(self) -> Self:
        names = [_PLACEHOLDER.findall(text) for text in self.issuer]
        if len(set(self.issuer)) < len(self.issuer):
            raise wrong("an issuer is listed twice", at="issuer")
        if sum(text.startswith("spiffe://") for text in self.issuer) > 1:
            raise wrong("two trust domains are two issuers", "give each its own keys", at="issuer")
        if not any(names):
            if self.tenants:
                message = "no part of issuer says where the tenant stands"
                raise wrong(message, "write https://login.example/{tid}/v2.0", at="tenants")
        elif not self.tenants:
            message = "an issuer for many tenants needs a list of those that are accepted"
            raise wrong(message, "add tenants", at="issuer")
        elif any(len(found) != 1 for found in names) or len({found[0] for found in names}) > 1:
            raise wrong("each issuer of a list has the same {NAME}, once", at="issuer")
        if len(set(self.tenants)) < len(self.tenants):
            raise wrong("a tenant is listed twice", at="tenants")
        if self.keys is None:
            return self
        if self.keys.discovery:
            first = _PLACEHOLDER.sub("tenant", self.issuer[0])
            if problem(first) is not None or urlsplit(first).query:
                message = "discovery asks the issuer, and this is no http or https URL without a query"
                raise wrong(message, "name jwks_url", at="issuer", unquoted=message)
            if not self.keys.plain_http and needs_consent(first):
                message = "discovery would ask over plain http: who is on the way can replace keys"
                raise wrong(message, "use https, or say keys.plain_http: true", at="issuer", unquoted=message)
        of_keys = set(_PLACEHOLDER.findall(self.keys.jwks_url or ""))
        if not of_keys <= {name for found in names for name in found}:
            raise wrong("jwks_url has a {NAME} that issuer has not", at="keys")
        return self

    def of_tenants(self) -> Iterator[tuple[tuple[str, str] | None, tuple[str, ...], str | None]]:
        """Yield for each tenant its claim and value, its values of `iss` and its jwks_url; once without tenants."""
        found = _PLACEHOLDER.search(self.issuer[0])
        if found is None:
            yield None, self.issuer, None if self.keys is None else self.keys.jwks_url
            return
        for tenant in self.tenants:
            urls = tuple(text.replace(found[0], tenant) for text in self.issuer)
            jwks_url = None if self.keys is None else self.keys.jwks_url
            yield (found[1], tenant), urls, None if jwks_url is None else jwks_url.replace(found[0], tenant)

    @model_validator(mode="after")
    def _algorithms_fit(self) -> Self:
        if self.keys is None:
            return self
        symmetric = [name for name in self.algorithms if name in HMAC]
        public = [name for name in self.algorithms if name not in HMAC]
        if len(set(self.algorithms)) < len(self.algorithms):
            raise wrong("an algorithm is listed twice", at="algorithms")
        if symmetric and public:
            raise wrong(
                f"{symmetric[0]} needs a secret and {public[0]} a public key, which must not pass as a secret",
                "make two issuers",
                at="algorithms",
            )
        if self.keys.source.startswith("secret"):
            if public:
                raise wrong(f"{public[0]} does not work with a secret", "use HS256, or a public key", at="algorithms")
        elif symmetric and self.keys.source != "jwks_file":
            raise wrong(f"{symmetric[0]} does not work with public keys", "use ES256, RS256 or EdDSA", at="algorithms")
        return self


class Assertion(Section):
    """The signed assertion that tells an upstream who asks."""

    header: HeaderName = "X-Gateway-Assertion"
    """The header field that carries it."""
    key_file: Text
    """A PEM file with an unencrypted private key: EC P-256 (ES256), another EC curve, Ed25519 or RSA."""
    lifetime: Duration = duration("30s", "How long it is valid (seconds).")
    issuer: Text = "mitmgate"
    """The value of its `iss`."""


class Forward(Section):
    """How identity goes upstream. What a client sends in these fields is always removed."""

    subject: HeaderName = "X-User-ID"
    """The header field for the subject."""
    roles: HeaderName = "X-User-Role"
    """The header field for the roles, joined by commas."""
    encoding: Literal["plain", "percent"] = "plain"
    """plain: a subject or a role that a header field can't hold as it is (beyond ASCII, a comma in a role) is refused;
    percent: such characters, "%" and "," are percent-encoded as UTF-8, in what routes fill from a token as well."""
    issuer: HeaderName | None = None
    """The header field for the policy's name of the issuer whose subject it is; unset: X-User-Issuer as soon as some
    route accepts two issuers, since two issuers may have a subject of the same name."""
    assertion: Assertion | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        assertion = self.assertion.header if self.assertion is not None else None
        names = (("subject", self.subject), ("roles", self.roles), ("issuer", self.issuer), ("assertion", assertion))
        for member, name in names:
            if name is None:
                continue
            if name.lower() in FRAMING | READ_BY_THE_GATEWAY:
                raise wrong(f"{name} has a meaning of its own", "name another header", at=member)
            if name.lower() in seen:
                raise wrong(f"{name} is used twice", at=member)
            seen.add(name.lower())
        return self


def _kept(name: str) -> str:
    shaped = shape(name.lower().encode("ascii"))
    if looks_like_identity(shaped):
        return name
    if ClientFields(()).disposition(name.lower().encode("ascii")) is Disposition.KEEP:
        raise wrong(f"{name} goes on as it is", "leave it out", unquoted="goes on as it is")
    hint, unquoted = "only fields that look like identity can be kept", "of a client, it is always removed"
    raise wrong(f"a client's {name} is always removed", hint, unquoted=unquoted)


Kept = Annotated[HeaderName, AfterValidator(_kept)]


def _resource(text: str) -> str:
    hint = "write https://api.example/orders"
    why = problem(text)
    parts = urlsplit("" if why is not None else text)
    path = canonical_path(parts.path or "/")
    if why is not None or parts.query or parts.netloc != parts.netloc.lower() or set(text) & set('"\\'):
        raise wrong("must be a URL without query and credentials, its host in small letters", hint)
    if isinstance(path, Ambiguous) or path.odd or path.text != (parts.path or "/"):
        raise wrong("must have a canonical path", hint)
    if needs_consent(text):
        raise wrong("must be an https URL (RFC 9728, section 1.2)", hint)
    return text


def _field_of_keys(name: str) -> str:
    kept = ClientFields(()).disposition(name.lower().encode("ascii")) is Disposition.KEEP
    if not kept or name.lower() in FRAMING | READ_BY_THE_GATEWAY:
        raise wrong(f"{name} has a meaning of its own", "write X-API-Key")
    return name


class Published(Section):
    """A protected resource that clients may find the authorization server of (RFC 9728), before they have a token.

    Its metadata is at /.well-known/oauth-protected-resource, followed by its own path, and the challenges of requests
    below its path say so. What is published here is public; routes are not told apart by it.
    """

    resource: Annotated[Text, AfterValidator(_resource)]
    """Its URL, as clients know it: https, or http of this machine alone."""
    issuers: Annotated[tuple[Name, ...], Field(min_length=1), one_or_more(Name)] | None = None
    """Names of the issuers whose tokens it takes; unset: identity.default."""
    scopes: Annotated[tuple[Scope, ...], one_or_more(Scope)] = ()
    """Scopes that clients may ask for."""
    name: Text | None = None
    """What people are shown."""
    documentation: Text | None = None
    """A URL for developers."""


class Proofs(Section):
    """How who brings a token that is bound to a key or a certificate (`cnf`) has to prove it."""

    lifetime: Duration = duration("60s", "How old a DPoP proof may be (seconds), at most 300; it is good once.")
    nonce_env: Text | None = None
    """The environment variable with the secret that nonces are made with, the same in every process; unset: proofs
    need no nonce."""
    on_store_failure: Literal["deny", "local"] = "deny"
    """While Redis can't tell whether a proof was used before. deny: it is not accepted; local: each process counts."""
    certificate_header: HeaderName | None = None
    """The field in which a trusted proxy passes on the certificate of the client, which it has verified: as RFC 9440
    says, or PEM, percent-encoded. It has to remove a client's own. No service is given the field."""

    @model_validator(mode="after")
    def _remembered(self) -> Self:
        if self.lifetime > LONGEST_LIFETIME:
            raise wrong("must be at most 5m: used proofs are not remembered for longer", at="lifetime")
        name = self.certificate_header
        if name is not None and name.lower() in FRAMING | READ_BY_THE_GATEWAY:
            raise wrong(f"{name} has a meaning of its own", "name another header", at="certificate_header")
        return self


def _cookie(text: str) -> str:
    if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", text) is None:
        raise wrong("must be a cookie's name", "write __Host-token")
    return str(text)


def _parameter(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) is None or not is_secret_name(text):
        raise wrong("must be a parameter's name that is hidden wherever it stands", "write ticket, or x_ticket")
    return str(text)


class Tickets(Section):
    """Tickets: who has a token gets a text that is good once, to be put in a URL."""

    secret_env: Text
    """The environment variable with the secret that seals tickets (32 bytes or more), the same in every process."""
    path: UrlPath = "/.well-known/mitmgate-ticket"
    """Where a POST with a token gets one; no route takes this path."""
    parameter: Annotated[Text, AfterValidator(_parameter)] = "ticket"
    """The parameter of a query that is a ticket, on every route: no service gets it."""
    lifetime: Duration = duration("30s", "How long a ticket is good (seconds).")

    @model_validator(mode="after")
    def _short(self) -> Self:
        if self.lifetime > LONGEST_TICKET:
            raise wrong("must be at most 2m", at="lifetime")
        return self


class Browsers(Section):
    """Credentials of browsers, for routes whose `credentials` name them (docs/browsers.md)."""

    cookie: Annotated[Text, AfterValidator(_cookie)] | None = None
    """The name of the cookie whose value is a token. No service gets it. With __Host- before it, only this host can set
    it, over TLS alone."""
    tickets: Tickets | None = None
    """Unset: there are none."""


def _name_pattern(text: str) -> str:
    if len(text) > 255 or not text.isprintable() or text.strip("*@/. ") == "" or "**" in text:
        raise wrong("must be a name of a certificate, or a pattern with *")
    return text


NamePattern = Annotated[Text, AfterValidator(_name_pattern)]
Patterns = Annotated[tuple[NamePattern, ...], one_or_more(NamePattern)]


def _trust_domain(text: str) -> str:
    if re.fullmatch(r"[a-z0-9._-]{1,255}", text) is None:
        raise wrong("must be a trust domain", "write prod.example, without spiffe://")
    return text


TrustDomain = Annotated[Text, AfterValidator(_trust_domain)]


class Certificates(Section):
    """Names of client certificates that are principals, on routes that say `auth: certificate` (docs/certificates.md).

    Of a certificate the first kind counts of which it has a name that is accepted, in the order of these members. In
    patterns `*` stands for one or more characters other than /, @, a comma and a backslash, of one attribute of a
    subject.
    """

    spiffe: Annotated[tuple[TrustDomain, ...], one_or_more(TrustDomain)] = ()
    """Trust domains whose SPIFFE IDs count; a certificate of another one is refused, whatever other names it has."""
    uri: Patterns = ()
    """Patterns of alternative names that are URIs."""
    dns: Patterns = ()
    """Patterns of alternative names that are host names, in small letters."""
    email: Patterns = ()
    """Patterns of alternative names that are addresses."""
    subject: Patterns = ()
    """Patterns of the subject, as RFC 4514 writes it: CN=alice,O=Example."""
    roles: dict[NamePattern, Annotated[tuple[Role, ...], Field(min_length=1), one_or_more(Role)]] = Field(default={})
    """Roles by a pattern of the principal's name; of several that match all."""
    forwarded: Boolean = False
    """Whether trusted_proxies pass the certificate of their client on, in X-Forwarded-Client-Cert as Envoy writes it.
    Such a proxy must set the field or remove a client's."""
    header: HeaderName | None = None
    """The field in which trusted_proxies, and proxies that ask for decisions, pass the certificate itself on, instead:
    as RFC 9440 says, or PEM, percent-encoded. They have to have verified it, and to remove a client's field."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.spiffe or self.uri or self.dns or self.email or self.subject):
            raise wrong("accepts no name", "add spiffe, uri, dns, email or subject")
        name = self.header
        if name is not None and self.forwarded:
            raise wrong("proxies pass certificates on in one field", "leave out header or forwarded", at="header")
        if name is not None and name.lower() in FRAMING | READ_BY_THE_GATEWAY:
            raise wrong(f"{name} has a meaning of its own", "name another header", at="header")
        return self


class Identity(Section):
    """Who may be a principal."""

    default: Annotated[tuple[Name, ...], Field(min_length=1), one_or_more(Name)] | None = None
    """Names of the issuers that routes accept unless they say otherwise; unset: the only issuer."""
    issuers: dict[Name, Issuer] = Field(default={})
    """Trusted issuers, by name."""
    resources: tuple[Published, ...] = ()
    """Protected resources that are published to clients without a token; none unless listed."""
    proofs: Proofs = Proofs()
    certificates: Certificates | None = None
    """Unset: no certificate is a principal."""
    browsers: Browsers = Browsers()
    forward: Forward = Forward()
    keep: tuple[Kept, ...] = ()
    """Header fields of clients that look like identity (docs/headers.md) and go on to services all the same."""

    def names_of(self, issuer: str) -> list[str]:
        """Return the names that principals of an issuer have: one for each of its tenants."""
        known = self.issuers.get(issuer)
        return [name_of(issuer, tenant) for tenant in (known.tenants if known is not None else ()) or (None,)]

    @model_validator(mode="after")
    def _keeps_nobodys_word(self) -> Self:
        assertion = self.forward.assertion
        own = {self.forward.subject.lower(), self.forward.roles.lower()}
        if assertion is not None:
            own.add(assertion.header.lower())
        if self.proofs.certificate_header is not None:
            own.add(self.proofs.certificate_header.lower())
        if self.certificates is not None and self.certificates.header is not None:
            own.add(self.certificates.header.lower())
        for name in self.keep:
            if shape(name.lower().encode()).decode() in own:
                raise wrong(f"{name} is the gateway's own word on who asks", at="keep")
        return self


class ApiKeys(Section):
    """API keys, made by `mitmgate key add`: credentials of machines that no issuer makes tokens for (docs/api-keys.md).

    Routes take them that say so: `auth: api-key`.
    """

    file: Text | None = None
    """The file of the list, for processes of one machine; unset: the policy's Redis store, for all that name it."""
    header: Annotated[HeaderName, AfterValidator(_field_of_keys)] = "X-API-Key"
    """The request field that a key is in. It goes no further."""
    on_failure: Literal["deny", "last-known"] = "deny"
    """While the list can't be read. deny: requests with a key are refused; last-known: what was known counts. A process
    that has never read it denies in any case."""


class Events(Section):
    """Security events (RFC 8417) that issuers push to the admin listener (RFC 8935), and that revoke."""

    audience: Annotated[tuple[Text, ...], Field(min_length=1), one_or_more(Text)]
    """Values of `aud` of which a token of events needs one."""


class Revocation(Section):
    """What was revoked, by `mitmgate revoke`. With it a token counts for `keep` at the longest."""

    file: Text | None = None
    """The file of the list, for processes of one machine; unset: the policy's Redis store, for all that name it."""
    on_failure: Literal["deny", "last-known"] = "deny"
    """While the list can't be read. deny: requests with a credential are refused; last-known: what was known counts. A
    process that has never read it denies in any case."""
    token_env: Text | None = None
    """The environment variable with the secret for which the admin listener takes revocations; unset: it takes none."""
    events: Events | None = None
    """Unset: the admin listener takes no events."""
    keep: Duration = duration(
        "720h", "How long a token may be valid, and so is kept revoked, where its issuer has no max_lifetime (seconds)."
    )

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.keep > LONGEST:
            raise wrong("must be at most 8784h, a year", at="keep")
        return self
