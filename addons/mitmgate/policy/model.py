"""The policy file: every member, its type, its unit and its default. Validation of single sections; see checks.py."""

from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from mitmgate.core.authority import parse_authority
from mitmgate.policy.model_audit import Audit
from mitmgate.policy.model_identity import ApiKeys, Identity, Revocation
from mitmgate.policy.model_limits import Cors, RateLimit
from mitmgate.policy.model_routes import Route
from mitmgate.policy.model_shared import Mode, Networks
from mitmgate.policy.model_stages import OwnStage
from mitmgate.policy.model_upstreams import Upstream
from mitmgate.policy.scalars import (
    FRAMING,
    Cidr,
    Count,
    Duration,
    HeaderName,
    HeaderValue,
    Integer,
    ListenHost,
    Name,
    Port,
    Size,
    Text,
    UrlPath,
    duration,
    size,
    wrong,
)
from mitmgate.policy.section import Section


class ListenCertificate(Section):
    """A certificate for clients that ask for one of its names (SNI). Files are PEM, relative to the policy."""

    certificate: Text
    """The certificate chain; its subject alternative names (DNS) are the names that it is shown for."""
    key: Text
    """The private key of the certificate."""


class ListenTls(Section):
    """TLS towards clients. Files are PEM, relative to the policy."""

    certificate: Text
    """The server's certificate chain."""
    key: Text
    """The private key of the certificate."""
    certificates: tuple[ListenCertificate, ...] = ()
    """Further ones, each for its own names; clients that ask for none of these are shown the one above."""
    client_ca: Text | None = None
    """The authorities that client certificates are verified against; without it none is asked for."""
    client_certificate: Literal["optional", "required"] | None = None
    """Whether a client must have a certificate; required where client_ca is set and this is not."""

    @model_validator(mode="after")
    def _needs_ca(self) -> Self:
        if self.client_certificate is not None and self.client_ca is None:
            raise wrong("client certificates can't be verified", "add client_ca", at="client_certificate")
        return self


class Listen(Section):
    """Where clients connect."""

    host: ListenHost = "127.0.0.1"
    """The address to bind."""
    port: Port = 8080
    """The TCP port; 0 takes a free one."""
    workers: Annotated[Integer, Field(ge=1, le=256)] = 1
    """Processes that share the port; above 1 a redis store is required."""
    tls: ListenTls | None = None


class AdminTls(Section):
    """TLS of the admin listener. Files are PEM, relative to the policy."""

    certificate: Text
    """The server's certificate chain."""
    key: Text
    """The private key of the certificate."""
    client_ca: Text | None = None
    """The authorities of operators' client certificates: who has one may open the status page, as with the secret of
    token_env. Probes, metrics and keys are for everybody."""


class Admin(Section):
    """The listener for metrics, liveness, readiness, keys and the status page; never on the data port."""

    host: ListenHost = "127.0.0.1"
    """The address to bind."""
    port: Port = 8090
    """The TCP port; 0 takes a free one."""
    token_env: Text | None = None
    """The environment variable with the secret (32 bytes or more) that who opens the status page gives as a password,
    or programs as a bearer token; unset, and without tls.client_ca: the page is for this machine alone."""
    tls: AdminTls | None = None


class Decide(Section):
    """For proxies that keep a request and ask what to do with it: `mitmgate serve --decide` (docs/forward-auth.md)."""

    trusted: tuple[Cidr, ...] = ()
    """Networks whose checks are answered: the addresses of the proxies that ask, and of nobody else. What such a peer
    says of a request is believed."""


class Endpoints(Section):
    """Paths that the gateway answers itself."""

    health: UrlPath = "/health"
    """The one exact path of the health check: never authenticated, never forwarded."""


class Limits(Section):
    """Bounds of every connection and request."""

    head: Size = size("32KiB", "The largest request head (bytes).")
    head_timeout: Duration = duration("10s", "How long a client may take to send a head (seconds).")
    idle_timeout: Duration = duration("75s", "How long a connection may be idle (seconds).")
    body: Size = size("10MiB", "The largest request body (bytes), where a route sets no max_body.")
    target: Size = size("8KiB", "The longest request target: path and query (bytes).")
    fields: Annotated[Integer, Field(ge=1, le=10_000)] = 100
    """The most header fields of a request."""
    token: Size = size("8KiB", "The largest access token (bytes).")
    response_head: Size | None = Field(
        default=None, description="The largest head of a response (bytes); unset: as head."
    )
    response_fields: Annotated[Integer, Field(ge=1, le=10_000)] = 1000
    """The most header fields of a response."""
    body_timeout: Duration = duration(
        "30s", "How long a request body may pause, and take beside the time that its bytes earn (seconds)."
    )
    body_rate: Size = size("500B", "The slowest upload (bytes a second): bytes earn time at this rate; 0B: any rate.")
    memory: Size | None = Field(
        default=None,
        description="How much each process may hold for clients (bytes): bodies that are put together, queues, answers"
        " that are not read; unset: a quarter of what its cgroup or the machine has, shared among the workers.",
    )
    connections: Count = 10000
    """How many clients may be connected at once to each process; fewer, where its file descriptors are fewer."""

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if not 1024 <= self.head <= 1 << 20:
            raise wrong("must be from 1KiB to 1MiB", at="head")
        if self.response_head is not None and not 1024 <= self.response_head <= 1 << 20:
            raise wrong("must be from 1KiB to 1MiB", at="response_head")
        for member in ("target", "token"):
            if member in self.model_fields_set and getattr(self, member) >= self.head:
                raise wrong("does not fit into a head", "raise head", at=member)
        if self.memory is not None and self.memory < 1 << 20:
            raise wrong("must be at least 1MiB", at="memory")
        return self


def _redis_url(text: str) -> str:
    try:
        url = urlsplit(text)
        plausible = url.scheme in {"redis", "rediss"} and bool(url.hostname) and (url.port is None or url.port > 0)
        database = url.path in {"", "/"} or url.path[1:].isdecimal()
    except ValueError:
        plausible = database = False
    if not plausible or not database or url.fragment:
        raise wrong("must be the URL of a Redis server", "write redis://HOST:6379/0")
    return str(text)


class RedisStore(Section):
    """Counters in Redis, shared by every process that names it."""

    url: Annotated[Text, AfterValidator(_redis_url)]
    """redis://[user:password@]host[:port][/database], or rediss:// for TLS."""
    timeout: Duration = duration("100ms", "How long a decision waits for Redis (seconds).")


def _store_kind(value: Any) -> str:
    return "(redis)" if isinstance(value, dict | RedisStore) else "(memory)"


Store = Annotated[
    Annotated[Literal["memory"], Tag("(memory)")] | Annotated[RedisStore, Tag("(redis)")],
    Discriminator(_store_kind),
]


class ResponseHeaders(Section):
    """What every response to a client gains and loses."""

    set: dict[HeaderName, HeaderValue] = Field(default={})
    """Fields that are set, whatever the upstream said."""
    remove: tuple[HeaderName, ...] = ()
    """Fields that are removed."""

    @model_validator(mode="after")
    def _allowed(self) -> Self:
        for member, names in (("set", tuple(self.set)), ("remove", self.remove)):
            for name in names:
                if name.lower() in FRAMING:
                    raise wrong(f"{name} frames the message; the gateway alone writes it", at=member)
        return self


def _listed(upstreams: dict[str, Upstream]) -> dict[str, Upstream]:
    if not upstreams:
        raise wrong("must name at least one upstream")
    return upstreams


def _nameserver(text: str) -> str:
    authority = parse_authority(text)
    if authority is None and ":" in text:
        authority = parse_authority(f"[{text}]")
    try:
        ip_address(authority[0] if authority is not None else text)
    except ValueError:
        raise wrong("must be the address of a name server, with or without a port", "write 127.0.0.53:53") from None
    return text


class Resolver(Section):
    """How the names of services, key sets and Redis become addresses. /etc/hosts comes first, always."""

    nameservers: tuple[Annotated[Text, AfterValidator(_nameserver)], ...] = ()
    """ADDRESS or ADDRESS:PORT of each name server, IPv6 in brackets where there is a port; none: those of
    /etc/resolv.conf, whose search domains and options are followed in any case."""
    max_stale: Duration = duration("1h", "How long the last answer serves beyond its TTL while lookups fail (seconds).")

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Return address and port of each name server."""
        found = []
        for text in self.nameservers:
            host, port = parse_authority(text) or (text, None)
            found.append((host, port or 53))
        return tuple(found)


def _version(value: object) -> object:
    # To Python True is 1, and so is 1.0.
    if type(value) is not int or value != 1:
        raise wrong("must be 1, the only version of this format")
    return value


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise wrong("a limit is listed twice")
    return names


class Policy(Section):
    """A policy of mitmgate. Paths of files are relative to the policy file."""

    version: Annotated[Literal[1], BeforeValidator(_version)]
    """The version of this format."""
    mode: Mode = "enforce"
    """enforce, or report: admit all that can be, and record what would have been denied."""
    listen: Listen = Listen()
    admin: Admin | None = None
    """Without it there is no admin listener."""
    decide: Decide = Decide()
    """Without it nobody may ask for decisions."""
    endpoints: Endpoints = Endpoints()
    trusted_proxies: tuple[Cidr, ...] = ()
    """Networks whose X-Forwarded-For (walked from the right), -Proto, -Host and -Port are believed. Such a proxy must
    set each of these fields or remove a client's."""
    via: Name = "mitmgate"
    """The name in the Via field of requests to services (RFC 9110, section 7.6.3), by which a request that goes in
    circles is known, too; none: no such field, and no end to circles. nginx compresses answers to requests with Via
    only where its gzip_proxied says so."""
    networks: Networks = Networks()
    """Client addresses for every route."""
    limits: Limits = Limits()
    identity: Identity = Identity()
    resolver: Resolver = Resolver()
    store: Store = "memory"
    """Where counters are kept: memory (this process alone), or a Redis server."""
    revocation: Revocation | None = None
    """Without it nothing can be revoked before it expires."""
    api_keys: ApiKeys | None = None
    """Without it there are no API keys."""
    upstreams: Annotated[dict[Name, Upstream], AfterValidator(_listed)]
    """The services, by name."""
    rate_limits: dict[Name, RateLimit] = Field(default={})
    """Limits by name, for client_limits and for routes."""
    cors: dict[Name, Cors] = Field(default={})
    """CORS policies by name, for routes."""
    client_limits: Annotated[tuple[Name, ...], AfterValidator(_each_once)] = ()
    """Names of limits taken before authentication, on every route."""
    stages: dict[Name, OwnStage] = Field(default={})
    """Stages of the operator's own, by name (docs/stages.md). They are code: whoever loads the policy runs it."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)]
    """What may pass. A request that no route takes is refused."""
    response_headers: ResponseHeaders = ResponseHeaders()
    audit: Audit = Audit()
