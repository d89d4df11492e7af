"""Authentication: the bearer token of a request becomes a principal."""

from collections.abc import Awaitable

from mitmgate.core.address import peer_address
from mitmgate.core.authority import parse_authority
from mitmgate.core.bearer import holds_token
from mitmgate.core.principal import Principal
from mitmgate.core.proof import (
    ALGORITHMS,
    AS_BEARER,
    CERTIFICATE_MISSING,
    CERTIFICATE_OTHER,
    NOT_BOUND,
    UNBOUND,
    Asked,
    passed_thumbprint,
)
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head
from mitmgate.core.rules import named
from mitmgate.core.token import TOO_LARGE
from mitmgate.core.verdict import Step
from mitmgate.keys.proof import nonce_at
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Answer, Exchange, told_challenge
from mitmgate.pipeline.stage import Stage, route_at
from mitmgate.policy.problem import Location
from mitmgate.stores.proofs import ProofCheck, UsedProofs
from mitmgate.stores.revocations import Revocations

BARE_CHALLENGE = "Bearer"
"""Says that a token is needed, and nothing more, where none was given (RFC 6750, section 3.1)."""

_NO_CREDENTIAL = Refusal(Reason.CREDENTIAL_MISSING, "This request needs an access token.")
_TWO_CREDENTIALS = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds an access token in its query as well.")
_OTHER_SCHEME = Refusal(Reason.SCHEME_UNSUPPORTED, "Only the schemes Bearer and DPoP are accepted.")


_ALGORITHMS = " ".join(ALGORITHMS)
_ERRORS = {
    Reason.CREDENTIAL_AMBIGUOUS: "invalid_request",
    Reason.TOKEN_PROOF_NONCE: "use_dpop_nonce",
    Reason.TOKEN_PROOF_REPLAYED: "invalid_dpop_proof",
    Reason.TOKEN_PROOF_INVALID: "invalid_dpop_proof",
}


class Authentication(Stage):
    """Verify the bearer token for the issuers that the route accepts.

    Reads: head (Authorization, and nothing else: no query, no cookie, no body; for a token that is bound, the DPoP
    field and the client's certificate), route or no_route, snapshot.issuers, snapshot.proofs, now, started. Writes:
    principal, challenge, answer (DPoP-Nonce). Denies: 401 with a reason for each way a token can fail, 400 where the
    query holds a second one, 503 keys-unavailable, revocations-unknown or, where nobody can tell whether a proof was
    used before, store-unavailable. What is said of a token that is not good does not depend on the route. Skips public
    routes, and preflights that Cors answers. On failure: 503 stage-error. Waits only where a published key set may have
    a key that is not known yet, or to ask whether a proof was used before; a bounded time.
    """

    name = "authentication"

    def __init__(self, ring: KeyRing, revocations: Revocations | None = None, proofs: UsedProofs | None = None) -> None:
        """ring: configured with the issuers of the snapshot in force. revocations: None: nothing can be revoked.

        proofs: remembers which proofs were used; None: this process does.
        """
        self._ring = ring
        self._revocations = Revocations() if revocations is None else revocations
        self._proofs = ProofCheck(UsedProofs() if proofs is None else proofs)

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, principal, route = exchange.head, exchange.principal, exchange.route
        read: dict[str, object] = {
            "credential": head is not None and b"authorization" in head.headers,
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
        return read

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at, route = route_at(exchange), exchange.route
        of_route: list[Location] = []
        if route is not None:
            names = dict.fromkeys(map(named, route.issuers or ()))
            of_route = [(*at, "auth"), *(("identity", "issuers", name) for name in names)]
        return [*of_route, ("identity", "default")]

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Admit with a principal, or deny."""
        names = _accepted_issuers(exchange)
        if names is None or exchange.preflight:  # which has no credential, and which Cors ends
            return self.skipped
        if exchange.head is None:
            raise LookupError("the head was not made")
        headers = exchange.head.headers
        credential = headers.one(b"authorization")
        if credential is None:
            return self._refuse(exchange, _NO_CREDENTIAL)
        scheme, _, token = credential.partition(b" ")
        dpop = False
        if scheme != b"Bearer" and scheme.lower() != b"bearer":
            dpop = scheme.lower() == b"dpop"  # RFC 9449, section 7.1
            if not dpop:
                return self._refuse(exchange, _OTHER_SCHEME)
        snapshot, token = exchange.snapshot, token.strip(b" ")
        if len(token) > snapshot.max_token:
            return self._refuse(exchange, TOO_LARGE, dpop)
        result = self._ring.authenticate(snapshot.issuers, names, token, exchange.now)
        if isinstance(result, Principal | Refusal):
            return self._conclude(exchange, exchange.head, result, token, dpop)
        return self._later(exchange, exchange.head, result, token, dpop)

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
        if dpop and not _is_of_key(principal):
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
        return self.admitted

    def _refuse(self, exchange: Exchange, refusal: Refusal, dpop: bool = False) -> Step:
        """Deny with the challenge of RFC 6750, section 3, or RFC 9449, section 7.1.

        Details are constants, safe in a quoted string.
        """
        reason = refusal.reason
        if refusal is _NO_CREDENTIAL or refusal is _OTHER_SCHEME:
            exchange.challenge = told_challenge(exchange, BARE_CHALLENGE)
        elif reason.status == 401 or refusal is _TWO_CREDENTIALS:
            error = _ERRORS.get(reason, "invalid_token") if dpop or refusal is _TWO_CREDENTIALS else "invalid_token"
            if refusal is NOT_BOUND:
                error = "invalid_token"
            dpop = dpop or refusal is AS_BEARER
            text = f'{"DPoP" if dpop else "Bearer"} error="{error}", error_description="{refusal.detail}"'
            exchange.challenge = told_challenge(exchange, f'{text}, algs="{_ALGORITHMS}"' if dpop else text)
        if reason is Reason.TOKEN_PROOF_NONCE:
            rule = exchange.snapshot.proofs
            nonce = nonce_at(rule.nonce or b"", exchange.now, rule.lifetime)
            exchange.answer = Answer(reason.status, ((b"DPoP-Nonce", nonce.encode("ascii")),))
        return self.deny(reason, refusal.detail)


def _is_of_key(principal: Principal) -> bool:
    """Tell whether a token says that it is bound to a key, which may have been proved already."""
    confirmation = principal.claims.get("cnf")
    return isinstance(confirmation, dict) and "jkt" in confirmation


def _certificate(exchange: Exchange) -> str | None:
    """Return the thumbprint of the client's certificate: of the connection's, or of what a trusted proxy passes on.

    The certificate of such a proxy itself is nobody else's.
    """
    snapshot, request = exchange.snapshot, exchange.request
    name = snapshot.proofs.certificate
    peer = None if name is None else peer_address(request.peer)
    if name is None or peer is None or peer not in snapshot.trusted_proxies:
        return request.thumbprint
    passed = request.headers.one(name)
    return None if passed is None else passed_thumbprint(passed)


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
    return exchange.snapshot.default_issuers
