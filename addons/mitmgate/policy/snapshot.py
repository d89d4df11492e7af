"""The compiled policy that decides: immutable, swapped as a whole on reload."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mitmgate.audit.settings import Redact
from mitmgate.core.address import CidrSet
from mitmgate.core.browsers import Places
from mitmgate.core.certificate import Certificates
from mitmgate.core.client_fields import ClientFields
from mitmgate.core.cors import OriginRules
from mitmgate.core.limit import Limit
from mitmgate.core.resource import Resources
from mitmgate.core.routing import RouteTable
from mitmgate.core.rules import (
    Credential,
    ForwardIdentity,
    Issuer,
    ListenTls,
    Mode,
    Networks,
    Proofs,
    ResponseHeaders,
    Tickets,
    Upstream,
)
from mitmgate.core.via import Via
from mitmgate.policy.model import Policy
from mitmgate.policy.own_stages import Own


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a decision reads of the policy.

    digest: "sha256:" and the hex digest of the effective policy; the same text for the same decisions.
    issuers: by the policy's name. upstreams: by name. policy: the validated file, for what is no decision
    (listen, admin, audit, store). default_issuers: what a request without a route must authenticate with; None
    where the policy has no identity at all. directory: absolute; what the policy's paths are relative to. audit_key:
    the key of the audit's hash chain; None: unkeyed. revocation_token: for which the admin listener takes
    revocations; None: it takes none. admin_token: for which it shows its status page; None: to this machine alone.
    admin_tls: of the same listener; with client_ca also to whom it shows it. None: plain text.
    listen_tls: None: plain text. hidden_headers: fields, in
    small letters, whose values the policy takes from the environment. own: the operator's stages, by name.
    key_field: the lower-case field of API keys; None: there are none. certificates: which count; None: none does.
    credentials: what a request without a route may prove with
    who asks: what some route takes; empty: it need not.
    checks: peers whose checks are answered, where a process only decides; check_proxies: these and the trusted proxies,
    over whose entries X-Forwarded-For is walked then.
    """

    digest: str
    policy: Policy
    path: str  # the policy file, as given
    mode: Mode
    routes: RouteTable
    upstreams: Mapping[str, Upstream]
    issuers: Mapping[str, Issuer]
    default_issuers: tuple[str, ...] | None
    forward: ForwardIdentity
    client_fields: ClientFields
    trusted_proxies: CidrSet
    networks: Networks
    cors: OriginRules  # what may be said before it is known who asks
    client_limits: tuple[Limit, ...]
    response_headers: ResponseHeaders
    health_path: str
    resources: Resources
    via: Via | None
    max_head: int
    max_target: int
    max_token: int
    directory: str
    audit_key: bytes | None = field(default=None, repr=False)
    anchor_key: bytes | None = field(default=None, repr=False)
    revocation_token: bytes | None = field(default=None, repr=False)
    admin_token: bytes | None = field(default=None, repr=False)
    admin_tls: ListenTls | None = None
    listen_tls: ListenTls | None = None
    hidden_headers: frozenset[str] = frozenset()
    own: Mapping[str, Own] = field(default_factory=dict)
    compiled: Mapping[str, object] = field(default_factory=dict)  # what stages decide by, as each has made it
    proofs: Proofs = field(default_factory=Proofs)
    key_field: bytes | None = None
    certificates: Certificates | None = None
    credentials: tuple[Credential, ...] = ()
    checks: CidrSet = field(default_factory=CidrSet)
    check_proxies: CidrSet = field(default_factory=CidrSet)
    tickets: Tickets | None = None
    browsers: Places | None = None  # where credentials are looked for beside Authorization; None: nowhere

    @property
    def redact(self) -> Redact:
        """What is not shown of requests and responses, beside what core.credentials knows."""
        own = self.policy.audit.redact
        tickets = () if self.tickets is None else (self.tickets.parameter,)
        keys = () if self.key_field is None else (self.key_field.decode("ascii"),)
        return Redact((*own.headers, *self.hidden_headers, *keys), (*own.query, *tickets))

    def leeway(self, issuer: str) -> float:
        """Return the seconds by which the clock of a principal's issuer may differ; ours, that of keys, is right."""
        known = self.issuers.get(issuer)
        return 0.0 if known is None else known.leeway

    def resolve(self, name: str) -> str:
        """Return the absolute path of a file that the policy names."""
        return str(Path(self.directory, name))


class SnapshotSource(Protocol):
    """Where the policy in force is found."""

    @property
    def snapshot(self) -> Snapshot:
        """The policy that decides requests which arrive now."""
        ...
