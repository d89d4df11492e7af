"""The compiled policy as frozen values: what the policy file says, ready to decide with.

policy/compiler.py makes these from the validated file; stages and core functions read them. Times are seconds,
sizes are bytes, names of header fields are lower-case bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mitmgate.core.address import Address, CidrSet
from mitmgate.core.browsers import Place
from mitmgate.core.limit import Limit
from mitmgate.core.path import Oddity
from mitmgate.core.template import Template

Mode = Literal["enforce", "report"]
TokenType = Literal["any", "access", "at+jwt"]
Credential = Literal["jwt", "api-key", "certificate"]
"""What a request may prove with who asks."""

TOKEN: tuple[Credential, ...] = ("jwt",)
"""A token, and nothing else."""


@dataclass(frozen=True, slots=True)
class Networks:
    """Addresses that may come in. An empty `allow` allows all that `deny` does not name."""

    allow: CidrSet
    deny: CidrSet

    def __bool__(self) -> bool:
        """Tell whether there is any rule."""
        return bool(self.allow.networks or self.deny.networks)

    def admit(self, client: Address) -> bool:
        """Tell whether an address may come in: `deny` is asked first."""
        if self.deny.networks and client in self.deny:
            return False
        return not self.allow.networks or client in self.allow


@dataclass(frozen=True, slots=True)
class Circuit:
    """When an endpoint's circuit opens: `failures` within `window` seconds; stays open for `open_for` seconds.

    share: the part of the requests in the window, 0 to 1, that the failures have to be; core/circuit.py says when they
    need not. slow: a response that takes longer (seconds) counts as a failure; None: never.
    """

    failures: int = 5
    window: float = 30.0
    open_for: float = 30.0
    probes: int = 1
    statuses: frozenset[int] = frozenset({500, 502, 503, 504})
    slow: float | None = None
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How an https endpoint is verified and who we are to it. PEM texts, as they were read with the policy.

    Contents, not paths: a rotated file makes another value, and what was made of the old one is not used again.
    ca: None: the system's authorities, of which `system` is the file, where there is one.
    """

    ca: bytes | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    key: bytes | None = field(default=None, repr=False)
    server_name: str | None = None
    system: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NamedCertificate:
    """PEM texts for the clients that ask for one of these names, lower-case; `*.` stands for one label."""

    names: tuple[str, ...]
    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ListenTls:
    """How clients are spoken to. PEM texts. client_ca: None where no certificate is asked for.

    further: what clients are shown that ask for these names; all others are shown `certificate`.
    """

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(default=None, repr=False)
    client_required: bool = False
    further: tuple[NamedCertificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of an upstream. url: as the policy writes it; it follows from the rest and is no argument."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    http2: bool = False
    """Whether it speaks HTTP/2: by ALPN over TLS, by prior knowledge in plain text."""
    address: str = field(init=False, repr=False, compare=False)
    """Host and port, as the Host field names it."""
    url: str = field(init=False, repr=False, compare=False)
    """The endpoint as the policy writes it; also the circuit's key."""

    def __post_init__(self) -> None:
        """Write the address once."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "address", f"{host}:{self.port}")
        object.__setattr__(self, "url", f"{self.scheme}://{self.address}")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A service: its endpoints and how to talk to them. host: "preserve", "upstream", or a literal Host value."""

    name: str
    endpoints: tuple[Endpoint, ...]
    connect_timeout: float
    response_timeout: float
    retries: int
    host: str
    circuit: Circuit
    tls: UpstreamTls | None = None
    body_timeout: float | None = None  # of a held response, after its head; None: as response_timeout
    trailers: frozenset[bytes] = frozenset()  # of requests, by lower-case name, that it is given


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How path and headers change on the way up.

    replace_prefix takes the place of the matched prefix; strip_prefix removes it; at most one of the two.
    set: lower-case name and the template of its value. remove: lower-case names, those of `set` included: a client's
    own field goes also where the template has no value.
    """

    strip_prefix: bool = False
    replace_prefix: str | None = None
    set: tuple[tuple[bytes, Template], ...] = ()
    remove: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class Cors:
    """A CORS policy (Fetch standard). origins are exact; ("*",) is any, and then credentials is False."""

    origins: tuple[str, ...]
    methods: tuple[str, ...]
    headers: tuple[str, ...]
    credentials: bool
    expose: tuple[str, ...]
    max_age: float | None


class Condition(Protocol):
    """A compiled CEL condition."""

    @property
    def source(self) -> str:
        """The expression as the policy writes it."""
        ...

    @property
    def reads(self) -> Mapping[str, Iterable[str]] | None:
        """The members of each variable that the expression can read; None: all."""
        ...

    def holds(self, facts: Mapping[str, object]) -> bool:
        """Evaluate over facts.

        Raises ValueError where the expression has no boolean value, TimeoutError where it took too long.
        """
        ...


@dataclass(frozen=True, slots=True)
class Requirement:
    """What an authenticated principal must have. All members must hold; an empty member holds.

    acr_values: `acr` must be one of them. max_age: seconds since the user has authenticated (`auth_time`).
    """

    scopes_all: frozenset[str] = frozenset()
    roles_any: frozenset[str] = frozenset()
    claims: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    when: Condition | None = None
    acr_values: tuple[str, ...] = ()
    max_age: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """One way through the gateway.

    path with exact=False is a segment prefix. hosts are lower-case, without port, "*.example" matches one or more
    labels; empty: every host. methods empty: every method. issuers are names in Identity.issuers; None: public. odd:
    what a path may hold though servers read it differently. credentials: what counts, and every: whether all of them
    are needed; the first that is there says who asks. Without "jwt" issuers is empty.
    """

    name: str
    path: str
    exact: bool
    hosts: tuple[str, ...]
    methods: frozenset[str]
    upstream: Upstream
    issuers: tuple[str, ...] | None
    limits: tuple[Limit, ...]
    rewrite: Rewrite = Rewrite()
    cors: Cors | None = None
    websocket: bool = False
    stream: Literal["auto", "always", "never"] = "auto"
    stream_timeout: float | None = None  # of a response that streams, in all
    odd: frozenset[Oddity] = frozenset()
    mode: Mode = "enforce"
    bound: bool = False  # only with tokens that are bound to a key
    credentials: tuple[Credential, ...] = TOKEN
    every: bool = False
    places: tuple[Place, ...] = ("header",)  # where a token may be


@dataclass(frozen=True, slots=True)
class Proofs:
    """How proofs of possession are taken. lifetime: seconds that a DPoP proof may be old.

    nonce: the secret that nonces are made with; None: none is asked for. on_store_failure: what decides while nobody
    can tell whether a proof was used before. certificate: the lower-case field in which a trusted proxy passes the
    client's certificate on; None: none does.
    """

    lifetime: float = 60.0
    nonce: bytes | None = field(default=None, repr=False)
    on_store_failure: Literal["deny", "local"] = "deny"
    certificate: bytes | None = None


@dataclass(frozen=True, slots=True)
class Tickets:
    """How tickets are given and taken. path: where; parameter: of queries. lifetime: seconds; secret: seals them."""

    path: str
    parameter: str
    lifetime: float = 30.0
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where an issuer's keys come from. `material` was read when the policy was loaded; jwks_url has none.

    kind "none": there are none. "secret": material is the HMAC secret. "pem": a public key. "jwks": a JWK set's JSON
    text. "jwks_url": url, refresh, min_refresh and max_stale (seconds) say how keys are fetched. issuer: whose metadata
    names the key set, and is at url; empty: the key set itself is there. plain_http: whether keys may come over plain
    http. ca: PEM of the only authorities that the server is verified by; None: the system's. authorities: see
    UpstreamTls.system; a source is the same when they have changed.
    """

    kind: Literal["secret", "pem", "jwks", "jwks_url", "none"]
    material: bytes = field(default=b"", repr=False)
    url: str = ""
    refresh: float = 300.0
    min_refresh: float = 10.0
    max_stale: float = 3600.0
    issuer: str = ""
    plain_http: bool = False
    ca: bytes | None = field(default=None, repr=False)
    authorities: bytes | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Introspection:
    """How an issuer is asked about opaque tokens (RFC 7662). timeout, cache, refused: seconds.

    prefix: how its tokens begin; empty: as any. cache: how long an answer counts that admits; refused: one that does
    not. plain_http, ca and authorities: as of KeySource.
    """

    url: str
    client_id: str
    client_secret: bytes = field(default=b"", repr=False)
    prefix: bytes = b""
    timeout: float = 2.0
    cache: float = 30.0
    refused: float = 5.0
    ca: bytes | None = field(default=None, repr=False)
    authorities: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Issuer:
    """A token issuer that the policy trusts. name: the policy's name; issuer: the exact `iss` value.

    aliases: other values of `iss` that mean the same one. Of an issuer with tenants there is one of these for each
    tenant: the name is then NAME/TENANT, and tenant the claim that has to say so where a token has it, with its value.
    subject, roles, scopes and audience_in are the claims to read (core/pointer.py): of subject and audience_in the
    first that is present, of the others all. audience empty: not checked. required: claims without which no token is
    accepted; require: those that need one of these values. (No numbers: 1 is True where two of these are compared.)
    rfc9068: whether a token must be as RFC 9068 says. default_role: of who has no other one.
    """

    name: str
    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    keys: KeySource
    leeway: float = 30.0
    token_type: TokenType = "any"
    subject: tuple[str, ...] = ("sub",)
    roles: tuple[str, ...] = ("role", "roles")
    scopes: tuple[str, ...] = ("scope", "scp")
    max_lifetime: float | None = None
    aliases: tuple[str, ...] = ()
    tenant: tuple[str, str] | None = None
    audience_in: tuple[str, ...] = ("aud",)
    required: tuple[str, ...] = ()
    require: tuple[tuple[str, tuple[str | bool, ...]], ...] = ()
    rfc9068: bool = False
    bound: bool = False
    """Whether only tokens that are bound to a key are accepted."""
    default_role: str | None = None
    introspection: Introspection | None = None
    """How it is asked about tokens that are no JWTs; None: it is not."""

    @property
    def spiffe(self) -> str | None:
        """The trust domain (`spiffe://NAME`) whose workloads its tokens name; None where they name others."""
        return next((url for url in self.urls if url.startswith("spiffe://")), None)

    @property
    def urls(self) -> tuple[str, ...]:
        """Every value of `iss` that its tokens may have."""
        return (self.issuer, *self.aliases)


def name_of(issuer: str, tenant: str | None) -> str:
    """Return the name of an issuer, or of one tenant of it."""
    return issuer if tenant is None else f"{issuer}/{tenant}"


def named(issuer: str) -> str:
    """Return the name by which the policy file calls an issuer: without the tenant."""
    return issuer.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Assertion:
    """The signed assertion that tells an upstream who asks. key is the PEM text of a private key."""

    header: bytes
    key: bytes = field(repr=False)
    lifetime: float
    issuer: str


@dataclass(frozen=True, slots=True)
class ForwardIdentity:
    """The header names (lower-case) in which identity goes upstream.

    issuer None: it is not told. percent: values are percent-encoded.
    """

    subject: bytes = b"x-user-id"
    roles: bytes = b"x-user-role"
    assertion: Assertion | None = None
    issuer: bytes | None = None
    percent: bool = False


@dataclass(frozen=True, slots=True)
class ResponseHeaders:
    """What every response to a client gains and loses. Names are lower-case."""

    set: tuple[tuple[bytes, bytes], ...] = ()
    remove: frozenset[bytes] = frozenset()
