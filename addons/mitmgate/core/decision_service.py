"""Decision services: what one is asked about a request, and what its answer says, in each of the protocols.

authzen: OpenID Authorization API 1.0 (AuthZEN), the access evaluation. opa: Open Policy Agent's REST API, "Get a
document (with input)". ext_authz: the check request of Envoy's filter of that name over HTTP.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from mitmgate.core import pointer
from mitmgate.core.address import Address, address_text
from mitmgate.core.headers import Fields
from mitmgate.core.jose import parse_object
from mitmgate.core.principal import Principal
from mitmgate.core.request import Head
from mitmgate.core.rewrite import header_safe

Said = Literal["allow", "deny", "unavailable", "invalid"]
"""unavailable: there was no answer; invalid: there was one that is no decision, or the question could not be asked."""

LONGEST_FIELD: Final = 1024
"""Characters of a field's value that a service may hand on."""


@dataclass(frozen=True, slots=True)
class DecisionService:
    """A service that a route asks, as the policy has it.

    url: the endpoint; with ext_authz, what stands before the request's own path. timeout: seconds for a whole answer.
    cache: seconds for which an answer is good; 0: it is asked every time. headers, claims, query: what it is told
    beside what it always is. forward: names of fields of its answer, lower-case and as they are written upstream.
    token: what it is shown in Authorization. ca, authorities: as for UpstreamTls, PEM.
    """

    name: str
    protocol: Literal["authzen", "opa", "ext_authz"]
    url: str
    timeout: float = 0.5
    cache: float = 0.0
    headers: tuple[bytes, ...] = ()
    claims: tuple[str, ...] = ()
    query: bool = False
    forward: tuple[tuple[bytes, bytes], ...] = ()
    on_failure: Literal["deny", "admit"] = "deny"
    token: bytes | None = field(default=None, repr=False)
    ca: bytes | None = field(default=None, repr=False)
    authorities: bytes | None = field(default=None, repr=False)


class Question(NamedTuple):
    """An HTTP request to a service: all of it but how its body is framed."""

    method: str
    target: str
    fields: Fields
    body: bytes

    @property
    def digest(self) -> bytes:
        """Identify it. Each part is written with its length, so that no two questions are written alike."""
        parts = [self.method.encode("latin-1"), self.target.encode("latin-1"), self.body]
        for name, value in self.fields:
            parts += [name, value]
        hashed = blake2b(digest_size=20)
        for part in parts:
            hashed.update(b"%d:" % len(part))
            hashed.update(part)
        return hashed.digest()


class ServiceAnswer(NamedTuple):
    """What a service said of a request. Kept in recordings, so that replay asks nobody.

    fields: those that it hands on to the upstream. why: for operators, of a denial or a failure. seconds: that the
    request waited. cached: it was said of an earlier request.
    """

    service: str
    said: Said
    fields: Fields = ()
    why: str = ""
    seconds: float = 0.0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request when a service is asked. names: fields that carry subject and roles upstream."""

    head: Head
    route: str
    scheme: str
    host: str
    client: Address | None
    principal: Principal | None
    names: tuple[bytes, bytes]


def question(service: DecisionService, asked: Asked) -> Question | None:
    """Ask about a request; None where a value of the identity can't be put into a header field."""
    fields: Fields = ((b"User-Agent", b"mitmgate"),)
    if service.token is not None:
        fields = (*fields, (b"Authorization", b"Bearer " + service.token))
    if service.protocol == "ext_authz":
        return _check(service, asked, fields)
    url = urlsplit(service.url)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    said = _evaluation(service, asked) if service.protocol == "authzen" else {"input": _input(service, asked)}
    body = json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    fields = ((b"Host", url.netloc.encode("ascii")), *fields, (b"Accept", b"application/json"))
    return Question("POST", target, (*fields, (b"Content-Type", b"application/json")), body)


def _evaluation(service: DecisionService, asked: Asked) -> dict[str, object]:
    """Make an access evaluation request (AuthZEN, section 6.1): subject, action, resource and context."""
    principal, head = asked.principal, asked.head
    subject: dict[str, object] = {"type": "anonymous", "id": "anonymous"}
    if principal is not None:
        who = _principal(service, principal)
        subject = {"type": "identity", "id": who.pop("subject"), "properties": who}
    properties: dict[str, object] = {"route": asked.route, "host": head.host, "scheme": asked.scheme}
    if service.query:
        properties["query"] = head.query
    context: dict[str, object] = {"client_ip": None if asked.client is None else address_text(asked.client)}
    if service.headers:
        context["headers"] = _headers(service, head)
    return {
        "subject": subject,
        "action": {"name": head.method},
        "resource": {"type": "route", "id": head.path, "properties": properties},
        "context": context,
    }


def _input(service: DecisionService, asked: Asked) -> dict[str, object]:
    """Make the `input` of a query."""
    head, principal = asked.head, asked.principal
    made: dict[str, object] = {
        "method": head.method,
        "path": head.path,
        "host": head.host,
        "scheme": asked.scheme,
        "route": asked.route,
        "client_ip": None if asked.client is None else address_text(asked.client),
        "principal": None if principal is None else _principal(service, principal),
    }
    if service.query:
        made["query"] = head.query
    if service.headers:
        made["headers"] = _headers(service, head)
    return made


def _principal(service: DecisionService, principal: Principal) -> dict[str, object]:
    made: dict[str, object] = {
        "subject": principal.subject,
        "issuer": principal.issuer,
        "roles": list(principal.roles),
        "scopes": sorted(principal.scopes),
    }
    if service.claims:
        made["claims"] = {name: pointer.find(principal.claims, name) for name in service.claims}
    return made


def _headers(service: DecisionService, head: Head) -> dict[str, str]:
    found = {}
    for name in service.headers:
        text = head.headers.text(name.decode("ascii"))
        if text is not None:
            found[name.decode("ascii")] = text
    return found


def _check(service: DecisionService, asked: Asked, fields: Fields) -> Question | None:
    """Make a check request: the method and the path of the original, its Host, no body, and what the policy names."""
    head, principal = asked.head, asked.principal
    target = urlsplit(service.url).path.rstrip("/") + head.path
    if service.query and head.query is not None:
        target += f"?{head.query}"
    fields = tuple([field for field in fields if field[0].lower() not in service.headers])
    made = [(b"Host", asked.host.encode("latin-1")), *fields]
    for name in service.headers:
        made += [(name, value) for value in head.headers.all(name)]
    if asked.client is not None:
        made.append((b"X-Forwarded-For", address_text(asked.client).encode("ascii")))
    made.append((b"X-Forwarded-Proto", asked.scheme.encode("ascii")))
    if principal is not None:
        subject, roles = header_safe(principal.subject), header_safe(",".join(principal.roles))
        if subject is None or roles is None or roles.count(b",") >= max(1, len(principal.roles)):
            return None
        made.append((asked.names[0], subject))
        if principal.roles:
            made.append((asked.names[1], roles))
    return Question(head.method, target, tuple(made), b"")


def answer(service: DecisionService, status: int, fields: Fields, body: bytes) -> ServiceAnswer:
    """Read a service's answer; a server error is `unavailable`, all else that is not exactly of its protocol `invalid`.

    A client may bring about what is invalid (a head that is too long for the service, say), so that nobody is admitted
    for it, whatever `on_failure` says.
    """
    if service.protocol == "ext_authz":
        return _checked(service, status, fields)
    if status != 200:  # of both protocols: an error, and no decision
        said_so: Said = "unavailable" if status >= 500 else "invalid"
        return ServiceAnswer(service.name, said_so, why=f"it answered {status}")
    said = parse_object(body)
    if said is None:
        return ServiceAnswer(service.name, "invalid", why="its answer is no JSON object")
    decision: object
    if service.protocol == "authzen":
        decision, member = said.get("decision"), "decision"
    elif "result" not in said:
        return ServiceAnswer(service.name, "deny", why="the document is undefined")
    else:
        result = said["result"]
        decision, member = (result.get("allow"), "result.allow") if isinstance(result, dict) else (result, "result")
    if decision is True:
        return ServiceAnswer(service.name, "allow")
    if decision is False:
        return ServiceAnswer(service.name, "deny", why=f"{member} is false")
    return ServiceAnswer(service.name, "invalid", why=f"its answer has no {member} that is true or false")


def _checked(service: DecisionService, status: int, fields: Fields) -> ServiceAnswer:
    """Read the answer to a check request: 200 admits, 5xx is an error, all else denies, a redirect too."""
    if status >= 500:
        return ServiceAnswer(service.name, "unavailable", why=f"it answered {status}")
    if status != 200:
        return ServiceAnswer(service.name, "deny", why=f"it answered {status}")
    handed = []
    for lower, written in service.forward:
        values = [value for name, value in fields if name.lower() == lower]
        if not values:
            continue
        safe = header_safe(values[0].decode("latin-1")) if len(values) == 1 else None
        if safe is None or len(safe) > LONGEST_FIELD:
            why = f"its {written.decode('ascii')} is no single value of a header field"
            return ServiceAnswer(service.name, "invalid", why=why)
        handed.append((written, safe))
    return ServiceAnswer(service.name, "allow", tuple(handed))


def recorded(written: object) -> ServiceAnswer | None:
    """Read what a recording or an audit event says of an answer; None: nothing.

    Raises ValueError, KeyError, TypeError or AttributeError for what is none.
    """
    if written is None:
        return None
    if not isinstance(written, Mapping) or not isinstance(written["service"], str):
        raise TypeError("no answer of a decision service")
    said = next((known for known in _SAID if known == written["said"]), None)
    if said is None:
        raise ValueError(f"a decision service does not say {written['said']!r}")
    fields = tuple([(name.encode("latin-1"), value.encode("latin-1")) for name, value in written.get("fields", ())])
    return ServiceAnswer(written["service"], said, fields, str(written.get("why", "")))


_SAID: Final[tuple[Said, ...]] = ("allow", "deny", "unavailable", "invalid")
