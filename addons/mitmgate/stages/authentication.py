"""Authentication: the bearer token of a request becomes a principal."""

from collections.abc import Awaitable

from mitmgate.core.bearer import holds_token
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Head
from mitmgate.core.token import TOO_LARGE
from mitmgate.core.verdict import Step
from mitmgate.keys.ring import KeyRing
from mitmgate.stages.exchange import Exchange, told_challenge
from mitmgate.stages.stage import Stage
from mitmgate.stores.revocations import Revocations

BARE_CHALLENGE = "Bearer"
"""Says that a token is needed, and nothing more, where none was given (RFC 6750, section 3.1)."""

_NO_CREDENTIAL = Refusal(Reason.CREDENTIAL_MISSING, "This request needs an access token.")
_TWO_CREDENTIALS = Refusal(Reason.CREDENTIAL_AMBIGUOUS, "The request holds an access token in its query as well.")
_OTHER_SCHEME = Refusal(Reason.SCHEME_UNSUPPORTED, "Only the Bearer scheme is accepted.")


class Authentication(Stage):
    """Verify the bearer token for the issuers that the route accepts.

    Reads: head (Authorization, and nothing else: no query, no cookie, no body), route or no_route, snapshot.issuers,
    now, started. Writes: principal, challenge. Denies: 401 with a reason for each way a token can fail, 400 where the
    query holds a second one, 503 keys-unavailable or revocations-unknown. What is said of a token that is not good does
    not depend on the route. Skips public routes, and preflights that Cors answers. On failure: 503 stage-error. Waits
    only where a published key set may have a key that is not known yet, a bounded time.
    """

    name = "authentication"

    def __init__(self, ring: KeyRing, revocations: Revocations | None = None) -> None:
        """ring: configured with the issuers of the snapshot in force. revocations: None: nothing can be revoked."""
        self._ring = ring
        self._revocations = Revocations() if revocations is None else revocations

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
        if scheme != b"Bearer" and scheme.lower() != b"bearer":
            return self._refuse(exchange, _OTHER_SCHEME)
        snapshot, token = exchange.snapshot, token.strip(b" ")
        if len(token) > snapshot.max_token:
            return self._refuse(exchange, TOO_LARGE)
        result = self._ring.authenticate(snapshot.issuers, names, token, exchange.now)
        if isinstance(result, Principal | Refusal):
            return self._conclude(exchange, exchange.head, result)
        return self._later(exchange, exchange.head, result)

    async def _later(self, exchange: Exchange, head: Head, pending: Awaitable[Principal | Refusal]) -> Step:
        return self._conclude(exchange, head, await pending)

    def _conclude(self, exchange: Exchange, head: Head, result: Principal | Refusal) -> Step:
        if isinstance(result, Refusal):
            return self._refuse(exchange, result)
        refusal = self._revocations.refusal(result, exchange.started)
        if refusal is not None:
            return self._refuse(exchange, refusal)
        exchange.principal = result
        if head.query is not None and holds_token(head.query):
            # RFC 6750, section 2: one method in a request. The other token would go on, to whoever logs addresses.
            return self._refuse(exchange, _TWO_CREDENTIALS)
        return self.admitted

    def _refuse(self, exchange: Exchange, refusal: Refusal) -> Step:
        """Deny with the challenge of RFC 6750, section 3. Details are constants, safe in a quoted string."""
        if refusal is _NO_CREDENTIAL or refusal is _OTHER_SCHEME:
            exchange.challenge = told_challenge(exchange, BARE_CHALLENGE)
        elif refusal is _TWO_CREDENTIALS:
            text = f'Bearer error="invalid_request", error_description="{refusal.detail}"'
            exchange.challenge = told_challenge(exchange, text)
        elif refusal.reason.status == 401:
            text = f'Bearer error="invalid_token", error_description="{refusal.detail}"'
            exchange.challenge = told_challenge(exchange, text)
        return self.deny(refusal.reason, refusal.detail)


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
