"""Authentication: what a request proves with who asks, a bearer token or another credential, becomes a principal."""

import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import ClassVar, Final
from urllib.parse import unquote, urlsplit

from mitmgate.core import api_key, certificate
from mitmgate.core.address import peer_address
from mitmgate.core.authority import parse_authority
from mitmgate.core.bearer import holds_token
from mitmgate.core.browsers import FOREIGN, NOTHING, Place, Shown, page_refusal, presented
from mitmgate.core.claims import read_times
from mitmgate.core.principal import Principal
from mitmgate.core.proof import (
    AS_BEARER,
    CERTIFICATE_MISSING,
    CERTIFICATE_OTHER,
    NOT_BOUND,
    UNBOUND,
    UNSUPPORTED,
    Asked,
    passed_thumbprint,
)
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head
from mitmgate.core.routing import host_matches
from mitmgate.core.rules import TOKEN, Credential, named
from mitmgate.core.token import TOO_LARGE, UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.keys.certificate import passed_on
from mitmgate.keys.discovery import needs_consent
from mitmgate.keys.proof import nonce_at
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline import challenges, warnings
from mitmgate.pipeline.coverage import ACCEPTED, REFUSED, Branch, Rule
from mitmgate.pipeline.exchange import Answer, Exchange, told_challenge
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.compiler import default_issuers
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.model_routes import Credentials, accepted
from mitmgate.policy.problem import Code, Location, Problem, nearest
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stores.api_keys import ApiKeys
from mitmgate.stores.proofs import ProofCheck, UsedProofs
from mitmgate.stores.revocations import Revocations
from mitmgate.stores.tickets import TicketCheck, holds_ticket, issue

LONGEST_LEEWAY: Final = 300.0
"""Seconds of an issuer's leeway that `check` does not warn of."""

_TICKET = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))

_NO_CREDENTIAL = Refusal(Reason.CREDENTIAL_MISSING, "This request needs an access token.")
_TWO_CREDENTIALS = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds an access token in its query as well.")
_NO_CREDENTIALS = Refusal(Reason.CREDENTIAL_MISSING, "This request needs a credential.")
_NOT_ALL = Refusal(Reason.CREDENTIAL_MISSING, "This request needs further credentials.")
_TWO_KINDS = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds credentials of two kinds, where one is enough.")
_OTHER_SCHEME = Refusal(Reason.SCHEME_UNSUPPORTED, "Only the schemes Bearer and DPoP are accepted.")


_NO_TICKET = Refusal(Reason.TOKEN_MALFORMED, "A ticket is no access token.")

_MISSING: Mapping[Credential, Refusal] = {
    "jwt": _NO_CREDENTIAL,
    "api-key": api_key.MISSING,
    "certificate": certificate.MISSING,
}
_DECIDED = (Principal, Refusal)
_KEY = api_key.PREFIX.encode("ascii")
_ERRORS = {
    Reason.CREDENTIAL_AMBIGUOUS: "invalid_request",
    Reason.TOKEN_PROOF_NONCE: "use_dpop_nonce",
    Reason.TOKEN_PROOF_REPLAYED: "invalid_dpop_proof",
    Reason.TOKEN_PROOF_INVALID: "invalid_dpop_proof",
}


class Authentication(Stage):
    """Verify the bearer token for the issuers that the route accepts, or the credentials of other kinds that it takes.

    Reads: head (Authorization, and nothing else: no query, no cookie, no body; for a token that is bound, the DPoP
    field and the client's certificate), the field of API keys where the route takes one, route or no_route,
    snapshot.issuers, snapshot.proofs, now, started; where the route accepts a token elsewhere (core.browsers), carried,
    Origin, Sec-Fetch-Site and Sec-Fetch-Mode. Writes: principal, beside, shown, challenge, answer (DPoP-Nonce). Denies:
    401 with a reason for each way a credential can fail, 400 where there is a second one, 403 origin-not-allowed for
    pages that may not use a cookie, 503 keys-unavailable, introspection-unavailable, api-keys-unavailable,
    revocations-unknown or, where nobody can tell whether a proof was used before, store-unavailable. What is said of a
    token that is not good does not depend on the route. Skips public
    routes, and preflights that Cors answers. On failure: 503 stage-error. Waits only where a published key set may have
    a key that is not known yet, to ask an issuer about a token, or whether a proof was used before; a bounded time.
    """

    name = "authentication"
    reasons: ClassVar[tuple[Reason, ...]] = (
        Reason.CREDENTIAL_MISSING,
        Reason.CREDENTIAL_AMBIGUOUS,
        Reason.SCHEME_UNSUPPORTED,
        Reason.TOKEN_TOO_LARGE,
        Reason.TOKEN_MALFORMED,
        Reason.TOKEN_HEADER_INVALID,
        Reason.TOKEN_ALGORITHM_REFUSED,
        Reason.TOKEN_TYPE_REFUSED,
        Reason.TOKEN_ISSUER_UNKNOWN,
        Reason.TOKEN_KEY_UNKNOWN,
        Reason.TOKEN_SIGNATURE_INVALID,
        Reason.TOKEN_AUDIENCE_REFUSED,
        Reason.TOKEN_CLAIM_INVALID,
        Reason.TOKEN_EXPIRED,
        Reason.TOKEN_NOT_YET_VALID,
        Reason.TOKEN_LIFETIME_EXCEEDED,
        Reason.TOKEN_PROOF_UNSUPPORTED,
        Reason.TOKEN_PROOF_MISSING,
        Reason.TOKEN_PROOF_INVALID,
        Reason.TOKEN_PROOF_REPLAYED,
        Reason.TOKEN_PROOF_NONCE,
        Reason.TOKEN_UNBOUND,
        Reason.TOKEN_REVOKED,
        Reason.REVOCATIONS_UNKNOWN,
        Reason.TICKET,
        Reason.TICKET_INVALID,
        Reason.TICKET_USED,
        Reason.TOKEN_INACTIVE,
        Reason.INTROSPECTION_UNAVAILABLE,
        Reason.KEYS_UNAVAILABLE,
        Reason.API_KEY_MALFORMED,
        Reason.API_KEY_UNKNOWN,
        Reason.API_KEY_EXPIRED,
        Reason.API_KEY_REVOKED,
        Reason.API_KEYS_UNAVAILABLE,
        Reason.CERTIFICATE_REFUSED,
        Reason.CERTIFICATE_EXPIRED,
        Reason.ORIGIN_NOT_ALLOWED,
        Reason.STORE_UNAVAILABLE,
    )
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.CREDENTIAL_MISSING: "an Authorization field with a bearer token",
        Reason.CREDENTIAL_AMBIGUOUS: "a target without access_token or an API key: each has a field of its own",
        Reason.SCHEME_UNSUPPORTED: "an Authorization field with the scheme Bearer",
        Reason.TOKEN_MALFORMED: "a token that is one: three base64url parts, the first two JSON objects",
        Reason.TOKEN_HEADER_INVALID: "a token without critical extensions, compression or nesting",
        Reason.TOKEN_TOO_LARGE: "a smaller token",
        Reason.TOKEN_TYPE_REFUSED: "a token of the type that the issuer's token_type asks for",
        Reason.TOKEN_SIGNATURE_INVALID: "a token that is signed with the issuer's key",
        Reason.TOKEN_KEY_UNKNOWN: "a token that is signed with a key that the issuer publishes",
        Reason.TOKEN_PROOF_UNSUPPORTED: "a token whose `cnf` has `jkt` or `x5t#S256` and nothing else, or none",
        Reason.TOKEN_PROOF_MISSING: "scheme DPoP with one DPoP field, or the certificate that the token is bound to",
        Reason.TOKEN_PROOF_INVALID: "a proof for this request and token, by its key, and of now",
        Reason.TOKEN_PROOF_REPLAYED: "a new proof for each request",
        Reason.TOKEN_PROOF_NONCE: "a proof with the nonce of the DPoP-Nonce field",
        Reason.TOKEN_UNBOUND: "a token that is bound to a key or a certificate (`cnf`)",
        Reason.TOKEN_REVOKED: "a token that was issued after the revocation, or `revoke --lift`",
        Reason.REVOCATIONS_UNKNOWN: "the list of revocations, or `on_failure: last-known`",
        Reason.TICKET_INVALID: "a ticket of this gateway, within its lifetime",
        Reason.TICKET_USED: "a new ticket for each request",
        Reason.TOKEN_INACTIVE: "a token that its issuer calls active",
        Reason.INTROSPECTION_UNAVAILABLE: (
            "an answer of the issuer's introspection endpoint; offline it is in recordings"
        ),
        Reason.TOKEN_CLAIM_INVALID: "a token whose claims have the form that they must have",
        Reason.KEYS_UNAVAILABLE: "the issuer's keys: --jwks NAME=FILE gives them, --assume-signed does without",
    }

    def __init__(
        self,
        ring: KeyRing,
        revocations: Revocations | None = None,
        proofs: UsedProofs | None = None,
        api_keys: ApiKeys | None = None,
        *,
        offline: bool = False,
    ) -> None:
        """ring: configured with the issuers of the snapshot in force. revocations: None: nothing can be revoked.

        proofs: remembers which proofs were used; None: this process does. api_keys: None: no key is good.
        offline: what was found out then counts.
        """
        self._ring = ring
        self._revocations = Revocations() if revocations is None else revocations
        used = UsedProofs() if proofs is None else proofs
        self._proofs = ProofCheck(used)
        self._tickets = TicketCheck(used, offline=offline)
        self._api_keys = ApiKeys() if api_keys is None else api_keys

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, principal, route = exchange.head, exchange.principal, exchange.route
        field = exchange.snapshot.key_field
        read: dict[str, object] = {
            "credential": head is not None and b"authorization" in head.headers,
            **({} if exchange.shown is None else {"in": exchange.shown.place}),
            **({} if field is None else {"api_key": field in exchange.request.headers}),
            "issuers": list((exchange.snapshot.default_issuers if route is None else route.issuers) or ()),
            "now": exchange.now,
        }
        if principal is not None:
            read |= {
                "subject": principal.subject,
                "issuer": principal.issuer,
                "roles": list(principal.roles),
                "scopes": sorted(principal.scopes),
                "expires": principal.expires,
            }
            read |= {"key_id": principal.token_id} if principal.issuer == api_key.ISSUER else {}
        return read

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, route = route_at(exchange), exchange.route
        of_route: list[Location] = []
        if route is not None:
            names = dict.fromkeys(map(named, route.issuers or ()))
            of_route = [(*at, "auth"), *(("identity", "issuers", name) for name in names)]
        places: list[Location] = [] if exchange.shown is None else [(*at, "credentials"), ("identity", "browsers")]
        return [*of_route, *places, ("identity", "default")]

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count issuers."""
        for name in loaded.policy.identity.issuers:
            yield Rule(("identity", "issuers", name), f"issuer {name}", (ACCEPTED, REFUSED))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        if exchange.principal is not None:
            if exchange.principal.issuer != api_key.ISSUER:
                yield ("identity", "issuers", named(exchange.principal.issuer)), ACCEPTED
        elif step.outcome is Outcome.DENY and token is not None:
            for issuer in exchange.snapshot.issuers.values():
                if token.issuer in issuer.urls:
                    yield ("identity", "issuers", named(issuer.name)), REFUSED
                    return

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find issuers and credentials that are unused, or that prove too little."""
        policy, document = loaded.policy, loaded.document
        for index, route in enumerate(policy.routes):
            if route.auth == "none":
                message = f"{route.name} is public: it needs no token"
                yield document.warning(("routes", index, "auth"), Code.PUBLIC, message)
        only = policy.identity.issuers if len(policy.identity.issuers) == 1 else ()
        trusted = set(policy.identity.default or only)
        for route in policy.routes:
            if isinstance(route.auth, Credentials):
                trusted |= set(route.auth.issuers or ())
        yield from warnings.unused(document, ("identity", "issuers"), policy.identity.issuers, trusted)
        for find in (_issuers, _resources, _browsers, _of_machines, _two_issuers):
            yield from find(policy, document)
        yield from warnings.like_a_path(document, _claims(policy, document))

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Admit with a principal, or deny."""
        names = _accepted_issuers(exchange)
        if exchange.preflight:  # which has no credential, and which Cors ends
            return self.skipped
        if names is None:
            return self._refuse(exchange, api_key.IN_TARGET) if _key_in_target(exchange) else self.skipped
        head, route = exchange.head, exchange.route
        if head is None:
            raise LookupError("the head was not made")
        tickets = exchange.snapshot.tickets
        if tickets is not None and head.path == tickets.path and head.method == "POST":
            step = self._token(exchange, head, tuple(exchange.snapshot.issuers))
            return (
                self._issued(exchange, head, step)
                if isinstance(step, Step)
                else self._issued_later(exchange, head, step)
            )
        kinds = exchange.snapshot.credentials if route is None else route.credentials
        if kinds == TOKEN:
            return self._token(exchange, head, names)
        return self._of_kinds(exchange, head, names, kinds, route is not None and route.every)

    def _of_kinds(
        self, exchange: Exchange, head: Head, names: tuple[str, ...], kinds: tuple[Credential, ...], every: bool
    ) -> Step | Awaitable[Step]:
        """Look at every credential that counts here and is there: one that is not good denies, whatever another is."""
        found: dict[Credential, Principal | None] = {}  # in the order of the policy; a token's principal comes later
        for kind in kinds:
            result: Principal | Refusal | None = None
            there = kind == "jwt" and (b"authorization" in head.headers or _presented(exchange, head) is not None)
            if kind == "api-key":
                keys = exchange.request.headers.all(exchange.snapshot.key_field or b"")
                result = self._api_keys.authenticate(keys, exchange.now, exchange.started) if keys else None
            elif kind == "certificate":
                result = _of_certificate(exchange)
            if isinstance(result, Refusal):
                return self._refuse_kind(exchange, kind, result)
            if there or result is not None:
                found[kind] = result
            elif every:
                return self._refuse_kind(exchange, kind, _NOT_ALL if len(kinds) > 1 else _MISSING[kind])
        if not found:
            exchange.challenge = ", ".join([challenges.of_kind(exchange, kind) for kind in kinds])
            missing = _MISSING[kinds[0]] if len(kinds) == 1 else _NO_CREDENTIALS
            return self.deny(missing.reason, missing.detail)
        if not every and {"jwt", "api-key"} <= found.keys():
            return self._refuse_kind(exchange, "api-key", _TWO_KINDS)
        if _key_in_target(exchange):
            return self._refuse_kind(exchange, "api-key", api_key.IN_TARGET)
        if "jwt" not in found:
            return self._together(exchange, found, self.admitted)
        step = self._token(exchange, head, names)
        if isinstance(step, Step):
            return self._together(exchange, found, step)
        return self._together_later(exchange, found, step)

    async def _together_later(
        self, exchange: Exchange, found: Mapping[Credential, Principal | None], pending: Awaitable[Step]
    ) -> Step:
        return self._together(exchange, found, await pending)

    def _together(self, exchange: Exchange, found: Mapping[Credential, Principal | None], step: Step) -> Step:
        """Say who asks, once every credential is good."""
        if step.outcome is not Outcome.ADMIT:
            return step
        principals = [exchange.principal if kind == "jwt" else principal for kind, principal in found.items()]
        first, *others = [principal for principal in principals if principal is not None]
        exchange.principal, exchange.beside = first, tuple(others)
        return step

    def _refuse_kind(self, exchange: Exchange, kind: Credential, refusal: Refusal) -> Step:
        if refusal.reason.status == 401:
            wrong = refusal.detail if refusal.reason is not Reason.CREDENTIAL_MISSING else ""
            exchange.challenge = challenges.of_kind(exchange, kind, wrong)
        return self.deny(refusal.reason, refusal.detail)

    def _token(self, exchange: Exchange, head: Head, names: tuple[str, ...]) -> Step | Awaitable[Step]:
        """Admit with the principal of the token, or deny."""
        credential = head.headers.one(b"authorization")
        if exchange.snapshot.browsers is not None:
            step = self._of_browser(exchange, head, names)
            if step is not None:
                return step
        if credential is None:
            return self._refuse(exchange, _NO_CREDENTIAL)
        scheme, _, token = credential.partition(b" ")
        dpop = False
        if scheme != b"Bearer" and scheme.lower() != b"bearer":
            dpop = scheme.lower() == b"dpop"  # RFC 9449, section 7.1
            if not dpop:
                return self._refuse(exchange, _OTHER_SCHEME)
        return self._of_token(exchange, head, token.strip(b" "), dpop, names)

    def _of_token(
        self, exchange: Exchange, head: Head, token: bytes, dpop: bool, names: tuple[str, ...]
    ) -> Step | Awaitable[Step]:
        snapshot = exchange.snapshot
        if len(token) > snapshot.max_token:
            return self._refuse(exchange, TOO_LARGE, dpop)
        if token.startswith(_KEY) and api_key.id_of(token) is not None:
            return self._refuse(exchange, api_key.NO_TOKEN, dpop)  # no issuer is to be shown it
        tickets = snapshot.tickets
        if tickets is not None and not (token.startswith(b"ey") and b"." in token) and holds_ticket(tickets, token):
            return self._refuse(exchange, _NO_TICKET, dpop)  # nor a token of another one, within a ticket
        result = self._ring.authenticate(snapshot.issuers, names, token, exchange.now)
        if isinstance(result, _DECIDED):  # a union would be made anew for every request
            return self._conclude(exchange, head, result, token, dpop)
        return self._later(exchange, head, result, token, dpop)

    async def _issued_later(self, exchange: Exchange, head: Head, pending: Awaitable[Step]) -> Step:
        return self._issued(exchange, head, await pending)

    def _issued(self, exchange: Exchange, head: Head, step: Step) -> Step:
        """Answer who has a good token with a ticket for it. What is bound to a key could not be proved by a ticket."""
        principal, tickets, origin = exchange.principal, exchange.snapshot.tickets, head.headers.text("origin")
        if step.outcome is not Outcome.ADMIT or principal is None or tickets is None:
            return step
        if challenges.is_of_key(principal):
            return self._refuse(exchange, UNSUPPORTED)
        if origin is not None and origin not in _own_origins(exchange, head):
            rule = exchange.snapshot.cors.rule(origin)
            if rule is None or "*" in rule.origins:
                return self._refuse(exchange, FOREIGN)
        token = (head.headers.one(b"authorization") or b"").partition(b" ")[2].strip(b" ")
        body = {"ticket": issue(tickets, token, exchange.now), "expires_in": int(tickets.lifetime)}
        exchange.answer = Answer(Reason.TICKET.status, _TICKET, json.dumps(body).encode("ascii") + b"\n")
        return Step(self.name, Outcome.ANSWER, Reason.TICKET)

    async def _opened_later(
        self, exchange: Exchange, head: Head, pending: Awaitable[bytes | Refusal], names: tuple[str, ...]
    ) -> Step:
        step = self._opened(exchange, head, await pending, names)
        return step if isinstance(step, Step) else await step

    def _opened(
        self, exchange: Exchange, head: Head, token: bytes | Refusal, names: tuple[str, ...]
    ) -> Step | Awaitable[Step]:
        if isinstance(token, Refusal):
            return self._refuse(exchange, token)
        exchange.shown = Shown("ticket", token)
        return self._of_token(exchange, head, token, False, names)

    def _of_browser(self, exchange: Exchange, head: Head, names: tuple[str, ...]) -> Step | Awaitable[Step] | None:
        """Decide on a credential that the route accepts in another place; None: there is none."""
        route = exchange.route
        accepted: tuple[Place, ...] = ("header",) if route is None else route.places
        found = _presented(exchange, head)
        if isinstance(found, Refusal):
            return self._refuse(exchange, found)
        if found is None:
            return self._refuse(exchange, _NO_CREDENTIAL) if "header" not in accepted else None
        allowed = () if route is None or route.cors is None else route.cors.origins
        refusal = page_refusal(found.place, head, allowed, _own_origins(exchange, head))
        if refusal is not None:
            return self._refuse(exchange, refusal)
        exchange.shown = found
        snapshot = exchange.snapshot
        if found.place == "ticket" and snapshot.tickets is not None:
            opened = self._tickets.open(snapshot.tickets, snapshot.proofs, found.text, exchange.now, exchange.started)
            if isinstance(opened, bytes | Refusal):
                return self._opened(exchange, head, opened, names)
            return self._opened_later(exchange, head, opened, names)
        return self._of_token(exchange, head, found.text, False, names)

    async def _later(
        self, exchange: Exchange, head: Head, pending: Awaitable[Principal | Refusal], token: bytes, dpop: bool
    ) -> Step:
        step = self._conclude(exchange, head, await pending, token, dpop)
        return step if isinstance(step, Step) else await step

    def _conclude(
        self, exchange: Exchange, head: Head, result: Principal | Refusal, token: bytes, dpop: bool
    ) -> Step | Awaitable[Step]:
        if isinstance(result, Refusal):
            return self._refuse(exchange, result, dpop)
        refusal = self._revocations.refusal(result, exchange.started)
        if refusal is not None:
            return self._refuse(exchange, refusal, dpop)
        if dpop or result.confirmation is not None:
            proved = self._proved(exchange, head, result, token, dpop)
            if proved is not None and not isinstance(proved, Refusal):
                return self._proved_later(exchange, head, result, proved, dpop)
            if proved is not None:
                return self._refuse(exchange, proved, dpop)
        return self._admit(exchange, head, result, dpop)

    def _proved(
        self, exchange: Exchange, head: Head, principal: Principal, token: bytes, dpop: bool
    ) -> Refusal | Awaitable[Refusal | None] | None:
        """Check what the token is bound to; None: whoever brings it is its holder."""
        if dpop and not challenges.is_of_key(principal):
            return NOT_BOUND
        confirmation = principal.confirmation
        if confirmation is None:
            return None
        if confirmation.certificate is not None:
            thumbprint = _certificate(exchange)
            if thumbprint != confirmation.certificate:
                return CERTIFICATE_MISSING if thumbprint is None else CERTIFICATE_OTHER
        if confirmation.key is None:
            return None
        if not dpop:  # RFC 9449, section 7.2
            return AS_BEARER
        fields, rule = exchange.request.headers.all(b"dpop"), exchange.snapshot.proofs
        return self._proofs.check(
            fields, confirmation.key, _asked(exchange, head), token, rule, exchange.now, exchange.started
        )

    async def _proved_later(
        self, exchange: Exchange, head: Head, principal: Principal, pending: Awaitable[Refusal | None], dpop: bool
    ) -> Step:
        refusal = await pending
        return (
            self._admit(exchange, head, principal, dpop) if refusal is None else self._refuse(exchange, refusal, dpop)
        )

    def _admit(self, exchange: Exchange, head: Head, principal: Principal, dpop: bool) -> Step:
        route = exchange.route
        if route is not None and route.bound and "cnf" not in principal.claims:
            return self._refuse(exchange, UNBOUND, dpop)
        exchange.principal = principal
        if head.query is not None and holds_token(head.query):
            # RFC 6750, section 2: one method in a request. The other token would go on, to whoever logs addresses.
            return self._refuse(exchange, _TWO_CREDENTIALS, dpop)
        if _key_in_target(exchange):
            return self._refuse(exchange, api_key.IN_TARGET, dpop)
        return self.admitted

    def _refuse(self, exchange: Exchange, refusal: Refusal, dpop: bool = False) -> Step:
        """Deny with the challenge of RFC 6750, section 3, or RFC 9449, section 7.1.

        Details are constants, safe in a quoted string.
        """
        reason = refusal.reason
        if refusal is _NO_CREDENTIAL or refusal is _OTHER_SCHEME:
            exchange.challenge = told_challenge(exchange, challenges.BARE)
        elif reason.status == 401 or reason is Reason.CREDENTIAL_AMBIGUOUS:
            two = reason is Reason.CREDENTIAL_AMBIGUOUS
            error = _ERRORS.get(reason, "invalid_token") if dpop or two else "invalid_token"
            if refusal is NOT_BOUND:
                error = "invalid_token"
            dpop = dpop or refusal is AS_BEARER
            text = f'{"DPoP" if dpop else "Bearer"} error="{error}", error_description="{refusal.detail}"'
            exchange.challenge = told_challenge(exchange, f'{text}, algs="{challenges.ALGS}"' if dpop else text)
        if reason is Reason.TOKEN_PROOF_NONCE:
            rule = exchange.snapshot.proofs
            nonce = nonce_at(rule.nonce or b"", exchange.now, rule.lifetime)
            exchange.answer = Answer(reason.status, ((b"DPoP-Nonce", nonce.encode("ascii")),))
        return self.deny(reason, refusal.detail)


def _key_in_target(exchange: Exchange) -> bool:
    """Tell whether an API key would go on in the target, percent-encoded or not, to whoever logs addresses."""
    target = exchange.request.target
    return exchange.snapshot.key_field is not None and (
        api_key.in_text(target) or ("%" in target and api_key.in_text(unquote(target)))
    )


def _presented(exchange: Exchange, head: Head) -> Shown | Refusal | None:
    """Return the token that a request shows where the route accepts it, beside Authorization."""
    if exchange.carried is NOTHING or exchange.route is None:
        return None
    authorization, websocket = b"authorization" in head.headers, head.upgrade is not None
    return presented(exchange.carried, exchange.route.places, authorization=authorization, websocket=websocket)


def _own_origins(exchange: Exchange, head: Head) -> frozenset[str]:
    """Return the origins of pages of the host that was asked: as the client saw it, or over TLS."""
    host = exchange.public_host or head.headers.text("host") or exchange.request.authority
    hosts = [host] if exchange.public_port is None else [host, f"{host}:{exchange.public_port}"]
    return frozenset(f"{scheme}://{name}" for name in hosts for scheme in (exchange.scheme, "https"))


def _certificate(exchange: Exchange) -> str | None:
    """Return the thumbprint of the client's certificate: of the connection's, or of what a trusted proxy passes on.

    The certificate of such a proxy itself is nobody else's.
    """
    snapshot, request = exchange.snapshot, exchange.request
    name = snapshot.proofs.certificate
    peer = None if name is None else peer_address(request.peer)
    if name is None or peer is None or peer not in snapshot.trusted_proxies or exchange.check is not None:
        return request.thumbprint
    passed = request.headers.one(name)
    return None if passed is None else passed_thumbprint(passed)


def _of_certificate(exchange: Exchange) -> Principal | Refusal | None:
    """Find out whose certificate the client has shown, to us or to a trusted proxy; None: it has shown none.

    The certificate of such a proxy itself is nobody else's; what others say in its field was dropped. What a proxy says
    that asks for a decision, Arrival has read.
    """
    snapshot, request = exchange.snapshot, exchange.request
    rule, peer = snapshot.certificates, peer_address(request.peer)
    if rule is None or peer is None:
        return None
    shown: certificate.ClientCertificate | Refusal | None = request.names
    if exchange.check is None and snapshot.trusted_proxies.networks and peer in snapshot.trusted_proxies:
        shown = passed_on(request.headers, rule)
    if shown is None or isinstance(shown, Refusal):
        return shown
    return certificate.principal_of(shown, rule, exchange.now)


def _asked(exchange: Exchange, head: Head) -> Asked:
    """Say what was asked for as the client saw it, as far as a trusted proxy tells."""
    host, port = head.host, head.port
    told = None if exchange.public_host is None else parse_authority(exchange.public_host)
    if told is not None:
        host, port = told
    if exchange.public_port is not None:
        port = int(exchange.public_port)
    target = exchange.request.target.partition("?")[0]
    return Asked(exchange.request.method, exchange.scheme, host, port, target, head.path)


def _accepted_issuers(exchange: Exchange) -> tuple[str, ...] | None:
    """Return the names of the issuers that this request may authenticate with; None: it need not."""
    if exchange.route is not None:
        return exchange.route.issuers
    missing = exchange.no_route
    if missing is None:
        raise LookupError("routing has not spoken")
    if missing.public:
        return None
    default, kinds = exchange.snapshot.default_issuers, exchange.snapshot.credentials
    return () if default is None and kinds and kinds != TOKEN else default


def _time_change(denial: Denial) -> list[str]:
    if denial.token is None:
        return ["the token needs to be valid at the time of the request"]
    times = read_times(denial.token.unverified_claims)
    if isinstance(times, Refusal):
        return ["the token needs an expiry (exp) that is a number of seconds"]
    now = denial.exchange.now
    if denial.step.reason is Reason.TOKEN_EXPIRED:
        return [f"a fresh token: this one expired {now - times.expires:.0f} s before the request"]
    if denial.step.reason is Reason.TOKEN_NOT_YET_VALID:
        begins = max(times.not_before or 0.0, times.issued or 0.0)
        return [f"wait: the token is valid {begins - now:.0f} s after the request"]
    issuer = next((i for i in denial.exchange.snapshot.issuers.values() if denial.token.issuer in i.urls), None)
    place = "" if issuer is None else denial.place("identity", "issuers", named(issuer.name), "max_lifetime")
    return [f"a token of a shorter life, or a longer max_lifetime: {place}"]


def _issuer_change(denial: Denial) -> list[str]:
    names = (
        denial.exchange.snapshot.default_issuers if denial.exchange.route is None else denial.exchange.route.issuers
    ) or ()
    known = [f"{name} ({denial.exchange.snapshot.issuers[name].issuer})" for name in names]
    lines = [f"a token of {' or '.join(known)}"]
    if denial.token is not None:
        lines.append(
            f"this one is of {denial.token.issuer}; the route would have to accept it: {denial.member('auth')}"
        )
    return lines


def _audience_change(denial: Denial) -> list[str]:
    if denial.token is None:
        return []
    issuer = next((i for i in denial.exchange.snapshot.issuers.values() if denial.token.issuer in i.urls), None)
    if issuer is None:
        return []
    audience = denial.token.unverified_claims.get("aud")
    place = denial.place("identity", "issuers", named(issuer.name), "audience")
    return [f"the token's audience is {audience!r} and needs to have one of {list(issuer.audience)}: {place}"]


def _algorithm_change(denial: Denial) -> list[str]:
    if denial.token is None:
        return ["a signed token: `none` is never accepted"]
    issuer = next((i for i in denial.exchange.snapshot.issuers.values() if denial.token.issuer in i.urls), None)
    if issuer is None:
        return []
    place = denial.place("identity", "issuers", named(issuer.name), "algorithms")
    return [f"the token is signed with {denial.token.algorithm}; accepted is {', '.join(issuer.algorithms)}: {place}"]


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.TOKEN_EXPIRED: _time_change,
    Reason.TOKEN_NOT_YET_VALID: _time_change,
    Reason.TOKEN_LIFETIME_EXCEEDED: _time_change,
    Reason.TOKEN_ISSUER_UNKNOWN: _issuer_change,
    Reason.TOKEN_AUDIENCE_REFUSED: _audience_change,
    Reason.TOKEN_ALGORITHM_REFUSED: _algorithm_change,
}


def _browsers(policy: Policy, document: Document) -> Iterator[Problem]:
    """A cookie that others can set makes users act as somebody else."""
    if policy.identity.browsers.tickets is not None and not any(
        "ticket" in route.credentials for route in policy.routes
    ):
        place = ("identity", "browsers", "tickets")
        yield document.warning(place, Code.UNUSED, "no route takes them", "add credentials: [header, ticket]", key=True)
    cookie, at = policy.identity.browsers.cookie, ("identity", "browsers", "cookie")
    if cookie is None:
        return
    if not cookie.startswith("__Host-"):
        message = "other hosts of the domain, and whoever is on the way without TLS, can set this cookie"
        yield document.warning(at, Code.COOKIE_OF_OTHERS, message, f"name it __Host-{cookie.removeprefix('__Secure-')}")
    if not any("cookie" in route.credentials for route in policy.routes):
        yield document.warning(at, Code.UNUSED, "no route takes it", "add credentials: [header, cookie]")


def _of_machines(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find API keys and certificates that no route takes, and names of certificates that none can have."""
    rules = [accepted(route.auth) for route in policy.routes]
    taken = {kind for rule in rules if rule is not None for kind in rule.kinds}
    if policy.api_keys is not None and "api-key" not in taken:
        yield document.warning(("api_keys",), Code.UNUSED, "no route takes API keys", "add auth: api-key", key=True)
    certificates, at = policy.identity.certificates, ("identity", "certificates")
    if certificates is None:
        return
    if "certificate" not in taken:
        yield document.warning(at, Code.UNUSED, "no route takes certificates", "add auth: certificate", key=True)
    if (certificates.forwarded or certificates.header) and not (policy.trusted_proxies or policy.decide.trusted):
        message = "no proxy is trusted, so that no certificate which one passes on counts"
        member = "forwarded" if certificates.forwarded else "header"
        yield document.warning((*at, member), Code.UNUSED, message, "add trusted_proxies")
    for pattern in certificates.roles:
        scheme, slashes, rest = pattern.partition("://")
        domain = rest.partition("/")[0]
        if scheme == "spiffe" and slashes and "*" not in domain and domain not in certificates.spiffe:
            message = f"{domain} is no trust domain of spiffe, so that no principal has such a name"
            yield document.warning(
                (*at, "roles", pattern), Code.NEVER_MATCHES, message, nearest(domain, certificates.spiffe), key=True
            )


def _resources(policy: Policy, document: Document) -> Iterator[Problem]:
    """Find published resources that no route serves: clients would ask their issuer for tokens in vain."""
    for index, published in enumerate(policy.identity.resources):
        parts = urlsplit(published.resource)
        base = (parts.path or "/").rstrip("/") + "/"
        for route in policy.routes:
            path = (route.match.exact or route.match.prefix or "").rstrip("/") + "/"
            hosts = route.match.hosts
            above = route.match.prefix is not None and base.startswith(path)
            named = not hosts or any(host_matches(host, parts.hostname or "") for host in hosts)
            if route.auth != "none" and named and (path.startswith(base) or above):
                break
        else:
            at = ("identity", "resources", index, "resource")
            yield document.warning(at, Code.UNUSED, "no route that needs a token is at or below this resource")


def _issuers(policy: Policy, document: Document) -> Iterator[Problem]:
    kinds = {
        algorithm.startswith("HS") for issuer in policy.identity.issuers.values() for algorithm in issuer.algorithms
    }
    for name, issuer in policy.identity.issuers.items():
        location: Location = ("identity", "issuers", name)
        if not issuer.audience:
            yield document.warning(
                location, Code.ANY_AUDIENCE, "tokens for any audience are accepted", "add audience", key=True
            )
        if issuer.leeway > LONGEST_LEEWAY:
            yield document.warning(
                (*location, "leeway"), Code.LONG_LEEWAY, "a leeway above 5m lets expired tokens live on"
            )
        if issuer.max_lifetime is None:
            yield document.warning(
                location, Code.ANY_LIFETIME, "tokens of any lifetime are accepted", "add max_lifetime", key=True
            )
        urls = [url for _, _, url in issuer.of_tenants()]
        asked = issuer.introspection
        if asked is not None and asked.plain_http and needs_consent(asked.url):
            at = (*location, "introspection", "plain_http")
            yield document.warning(
                at, Code.KEYS_OVER_HTTP, "tokens go over plain http: who is on the way has them", "use https"
            )
        if (
            issuer.keys is not None
            and issuer.keys.plain_http
            and any(needs_consent(url or issuer.issuer[0]) for url in urls)
        ):
            at = (*location, "keys", "plain_http")
            yield document.warning(
                at, Code.KEYS_OVER_HTTP, "keys over plain http: who is on the way can replace them", "use https"
            )
        if len(kinds) > 1 and any(algorithm.startswith("HS") for algorithm in issuer.algorithms):
            at = (*location, "algorithms")
            yield document.warning(
                at,
                Code.SHARED_SECRET,
                "a shared secret beside issuers with public keys: whoever verifies can also sign",
            )


def _two_issuers(policy: Policy, document: Document) -> Iterator[Problem]:
    """Two issuers may each have an alice; a policy that names the issuer's field has thought of it."""
    identity = policy.identity
    if identity.forward.issuer is not None:
        return
    places: list[tuple[Location, tuple[str, ...]]] = [(("identity", "default"), identity.default or ())]
    for index, route in enumerate(policy.routes):
        if isinstance(route.auth, Credentials):
            others = tuple(kind for kind in route.auth.any or () if kind != "jwt")
            given = route.auth.issuers or ()
            if others and "jwt" in route.auth.kinds:
                given = given or default_issuers(identity) or ()
            places.append((("routes", index, "auth", "any" if others else "issuers"), (*given, *others)))
    for location, given in places:
        names = [name for issuer in given for name in identity.names_of(issuer)]
        if len(set(names)) > 1:
            message = f"{' and '.join(names)} may each have a subject of the same name: one {identity.forward.subject}"
            hint = "have services read X-User-Issuer with it, and name it: identity.forward.issuer"
            yield document.warning(location, Code.TWO_ISSUERS, message, hint)


def _claims(policy: Policy, document: Document) -> Iterator[tuple[Location, str]]:
    """Yield the claims that issuers' tokens are asked for, with their places."""
    for name, issuer in policy.identity.issuers.items():
        at: Location = ("identity", "issuers", name)
        for member in ("subject", "roles", "scopes", "audience", "required"):
            yield from document.items((*at, "claims", member), getattr(issuer.claims, member))
        yield from (((*at, "require", claim), claim) for claim in issuer.require)
