"""Evidence: what the successful requests of a recording had in common, by host, path template and method."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mitmgate.core.authority import parse_authority
from mitmgate.core.cors import is_preflight, is_same_origin
from mitmgate.core.http1.target import split_target
from mitmgate.core.jose import Json
from mitmgate.core.limit import ticks
from mitmgate.core.path import Ambiguous, Oddity, canonical_path
from mitmgate.core.pointer import find
from mitmgate.core.shape import VALUE, VALUED
from mitmgate.core.sliding import SlidingLog
from mitmgate.core.token import UnverifiedToken, read_token
from mitmgate.replay.decision import ADMIT
from mitmgate.replay.traffic import Entry, Recorded

WINDOW: Final = 60.0
"""Seconds of the limits that are proposed."""

ROLES: Final = ("role", "roles", "groups", "cognito:groups", "/realm_access/roles")
SCOPES: Final = ("scope", "scp", "permissions")
"""Claims in which providers put roles and scopes (docs/providers.md)."""

_MOST_SEGMENTS = 12  # different segments at one place of a path, beyond which they are taken for values
_MOST_TARGETS = 8

Template = tuple[str, ...]


class Place(NamedTuple):
    """What requests are grouped by."""

    host: str
    template: Template
    method: str


@dataclass(slots=True)
class Seen:
    """What the successful requests of one place were like. scopes: those that every request had."""

    count: int = 0
    upstreams: Counter[str] = field(default_factory=Counter)
    issuers: Counter[str] = field(default_factory=Counter)
    scopes: set[str] | None = None
    roles: Counter[str] = field(default_factory=Counter)
    roleless: int = 0
    anonymous: int = 0
    origins: set[str] = field(default_factory=set)
    credentialed: int = 0  # requests of other origins with cookies
    largest: int = 0
    unmeasured: int = 0  # bodies whose length nobody declared
    targets: set[tuple[str, str]] = field(default_factory=set)  # the path as it came, and as it was forwarded
    websockets: int = 0
    encoded: int = 0

    def join(self, other: "Seen") -> None:
        """Add another place's."""
        for name in ("count", "roleless", "anonymous", "unmeasured", "websockets", "encoded", "credentialed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for counts, others in (
            (self.upstreams, other.upstreams),
            (self.issuers, other.issuers),
            (self.roles, other.roles),
        ):
            counts.update(others)
        if other.scopes is not None:
            self.scopes = other.scopes if self.scopes is None else self.scopes & other.scopes
        self.origins |= other.origins
        self.largest = max(self.largest, other.largest)
        self.targets |= other.targets


@dataclass(slots=True)
class TokenEvidence:
    """What the tokens of one issuer were like.

    subjects, roles, scopes: how often each claim that could name a subject, or hold roles or scopes, was there.
    """

    count: int = 0
    audiences: Counter[str] = field(default_factory=Counter)
    audienceless: int = 0
    algorithms: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    subjects: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    scopes: Counter[str] = field(default_factory=Counter)
    lifetime: float = 0.0
    lifeless: int = 0  # tokens that do not say how long they live


@dataclass(slots=True)
class Preflights:
    """What successful preflights asked for."""

    templates: set[Template] = field(default_factory=set)
    origins: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    headers: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Evidence:
    """All that was learnt. principals and clients: the most requests of each in any WINDOW seconds."""

    successes: int = 0
    others: int = 0
    places: dict[Place, Seen] = field(default_factory=dict)
    tokens: dict[str, TokenEvidence] = field(default_factory=dict)
    preflights: Preflights = field(default_factory=Preflights)
    principals: dict[str, int] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)
    head: int = 0
    first: float = 0.0
    last: float = 0.0


def gather(entries: Iterable[Entry]) -> Evidence:
    """Read a recording in the order of arrival, and keep what its successful requests show."""
    evidence = Evidence()
    peaks = _Peaks(), _Peaks()
    for entry in entries:
        if not isinstance(entry, Recorded):
            continue
        evidence.first = evidence.first or entry.at
        evidence.last = entry.at
        if not _add(evidence, entry, peaks):
            evidence.others += 1
    evidence.principals, evidence.clients = (each.highest for each in peaks)
    return evidence


def succeeded(entry: Recorded) -> bool:
    """Tell whether a request got what it wanted: let in where a verdict says so, and answered below 400."""
    decision = entry.decision
    if decision is not None and decision.outcome != ADMIT and decision.reason != "preflight":
        return False
    return entry.response_status is not None and entry.response_status < 400


class _Peaks:
    """The most requests of each key in any window."""

    def __init__(self) -> None:
        self.highest: dict[str, int] = {}
        self._logs: dict[str, SlidingLog] = {}

    def add(self, key: str, at: float) -> None:
        log = self._logs.setdefault(key, SlidingLog())
        now, length = ticks(at), ticks(WINDOW)
        log.look(now, length, 1 << 40)
        log.spend(now, length, 1)
        self.highest[key] = max(self.highest.get(key, 0), log.live)


def _add(evidence: Evidence, entry: Recorded, peaks: tuple[_Peaks, _Peaks]) -> bool:
    """Take a request for evidence; False for one that did not succeed, or that this gateway would never let pass."""
    request, headers = entry.request, entry.request.headers
    target = split_target(request.target.encode("latin-1", "replace")).path.partition(b"?")[0]
    path = canonical_path(target.decode("latin-1"))
    authority = parse_authority(headers.text("host") or request.authority)
    if not succeeded(entry) or isinstance(path, Ambiguous) or authority is None:
        return False
    if not path.odd <= {Oddity.ENCODED_SLASH, Oddity.ENCODED_DELIMITER}:
        return False  # a route that takes it is not proposed: its author should know why
    template = tuple(VALUE if VALUED.fullmatch(segment) else segment for segment in path.text.split("/")[1:])
    if is_preflight(request.method, headers):
        _preflight(evidence.preflights, entry, template)
        return True
    evidence.successes += 1
    peaks[1].add(request.peer, entry.at)
    evidence.head = max(evidence.head, sum(len(name) + len(value) + 4 for name, value in headers.fields))
    seen = evidence.places.setdefault(Place(authority[0], template, request.method), Seen())
    seen.count += 1
    seen.encoded += Oddity.ENCODED_SLASH in path.odd
    seen.websockets += b"upgrade" in headers
    seen.largest = max(seen.largest, request.declared_body or 0)
    seen.unmeasured += request.declared_body is None
    origin = headers.one(b"origin")
    if origin is not None:
        text = origin.decode("latin-1")
        seen.origins.add(text)
        host = headers.text("host") or request.authority
        seen.credentialed += b"cookie" in headers and not is_same_origin(text, host)
    decision = entry.decision
    endpoint = None if decision is None else decision.endpoint
    seen.upstreams[endpoint or f"{request.scheme}://{headers.text('host') or request.authority}"] += 1
    if decision is not None and decision.target is not None and len(seen.targets) < _MOST_TARGETS:
        seen.targets.add((path.text, decision.target.partition("?")[0]))
    token = token_of(entry)
    if token is None:
        seen.anonymous += 1
    else:
        peaks[0].add(_identity(seen, evidence, token), entry.at)
    return True


def token_of(entry: Recorded) -> UnverifiedToken | None:
    """Return what a request's token says; None where it has none."""
    if entry.presented is not None:
        return entry.presented.token
    scheme, _, token = (entry.request.headers.one(b"authorization") or b"").partition(b" ")
    read = read_token(token.strip(b" ")) if scheme.lower() in {b"bearer", b"dpop"} else None
    return read if isinstance(read, UnverifiedToken) else None


def _preflight(preflights: Preflights, entry: Recorded, template: Template) -> None:
    headers = entry.request.headers
    preflights.templates.add(template)
    preflights.origins[headers.text("origin") or ""] += 1
    preflights.methods[headers.text("access-control-request-method") or ""] += 1
    asked = headers.text("access-control-request-headers") or ""
    preflights.headers.update(name.strip().lower() for name in asked.split(",") if name.strip())


def _identity(seen: Seen, evidence: Evidence, token: UnverifiedToken) -> str:
    claims = token.unverified_claims
    seen.issuers[token.issuer] += 1
    known = evidence.tokens.setdefault(token.issuer, TokenEvidence())
    known.count += 1
    known.algorithms[token.algorithm] += 1
    known.types[(token.type or "").lower()] += 1
    audiences = _words(claims.get("aud"))
    known.audiences.update(audiences)
    known.audienceless += not audiences
    known.subjects.update(name for name in ("sub", "client_id", "azp", "oid") if isinstance(claims.get(name), str))
    issued, expires = claims.get("iat"), claims.get("exp")
    if isinstance(issued, int | float) and isinstance(expires, int | float):
        known.lifetime = max(known.lifetime, expires - issued)
    else:
        known.lifeless += 1
    scopes = {word for name in SCOPES for word in _words(find(claims, name), split=True)}
    known.scopes.update(name for name in SCOPES if _words(find(claims, name), split=True))
    seen.scopes = scopes if seen.scopes is None else seen.scopes & scopes
    roles = list(dict.fromkeys(role for name in ROLES for role in _words(find(claims, name))))
    known.roles.update(name for name in ROLES if _words(find(claims, name)))
    seen.roles.update(roles)
    seen.roleless += not roles
    return f"{token.issuer}\0{claims.get('sub')}"


def _words(value: Json, *, split: bool = False) -> list[str]:
    if isinstance(value, str):
        return value.split() if split else [value]
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def templates(places: Iterable[Place]) -> dict[Template, Template]:
    """Map each template to the one that it is proposed as.

    Segments become values also where too many different ones stand at one place of paths that are otherwise alike.
    """
    proposed = {place.template: place.template for place in places}
    for at in range(max(map(len, proposed), default=0)):
        alike: defaultdict[Template, set[Template]] = defaultdict(set)
        for template in set(proposed.values()):
            if at < len(template) and template[at] != VALUE:
                alike[(*template[:at], VALUE, *template[at + 1 :])].add(template)
        for joined, parts in alike.items():
            if len(parts) > _MOST_SEGMENTS:
                for template, known in proposed.items():
                    if known in parts:
                        proposed[template] = joined
    return proposed


class Room(NamedTuple):
    """A proposed limit, and what it was made of: the 99th percentile and the highest of all peaks."""

    limit: int
    percentile: int
    highest: int
    keys: int


def room(peaks: Iterable[int]) -> Room | None:
    """Propose a limit: twice what 99 % of the keys need, and a quarter above the highest; None without any key."""
    ranked = sorted(peaks)
    if not ranked:
        return None
    highest = ranked[-1]
    percentile = ranked[min(len(ranked) - 1, int(len(ranked) * 0.99))]
    proposed = max(2 * percentile, -(-highest * 5 // 4), 10)
    step = 10 ** max(0, len(str(proposed)) - 2)
    return Room(-(-proposed // step) * step, percentile, highest, len(ranked))
