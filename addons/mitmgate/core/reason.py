"""The closed list of reason codes: why a request was admitted, answered or denied.

Every decision names one of these. A code is kebab-case and never changes its meaning; it appears in
problem bodies, audit events, metrics, replay differences and mitmweb. The HTTP status and the problem
title belong to the code, so that one reason can't be answered in two ways.

Stages of an operator's own declare theirs (`declare`): those are no members of the list, which stays what it is.
"""

from enum import Enum
from typing import Final


class Reason(Enum):
    """A reason code with the HTTP status and the title it is answered with (RFC 9457, section 3.1)."""

    status: int
    title: str

    def __new__(cls, code: str, status: int, title: str) -> "Reason":
        """Make the code the member's value; status and title ride along."""
        member = object.__new__(cls)
        member._value_ = code
        member.status = status
        member.title = title
        return member

    @property
    def code(self) -> str:
        """The kebab-case code, as written in bodies and events."""
        return str(self._value_)

    @classmethod
    def declare(cls, code: str, status: int, title: str) -> "Reason":
        """Make the reason of an operator's own stage; the same one for the same code, status and title.

        It is made as `enum.Flag` makes its combinations: equal to itself alone, and no member of the list. Raises
        ValueError for a code of the list.
        """
        if any(code == reason.code for reason in cls):
            raise ValueError(f"{code} is a reason of the gateway")
        known = _DECLARED.get(code)
        if known is None or (known.status, known.title) != (status, title):
            known = object.__new__(cls)
            known._name_ = known._value_ = code
            known.status, known.title = status, title
            _DECLARED[code] = known
        return known

    @classmethod
    def of(cls, code: str) -> "Reason | None":
        """Return the reason of a code, of the list or declared; None where there is none."""
        return _DECLARED.get(code) or next((reason for reason in cls if reason.code == code), None)

    # Not a denial.
    OK = "ok", 200, "Admitted"
    NOT_APPLICABLE = "not-applicable", 200, "Nothing to decide here"
    HEALTH = "health", 200, "Healthy"
    TICKET = "ticket", 200, "Ticket"
    RESOURCE_METADATA = "resource-metadata", 200, "Metadata of a protected resource"
    PREFLIGHT = "preflight", 204, "Preflight answered"
    MAX_FORWARDS = "max-forwards", 204, "Answered for Max-Forwards"

    # Protocol layer: bytes that never became a request, or a connection that broke a bound.
    HEAD_MALFORMED = "head-malformed", 400, "Malformed request"
    FRAMING_AMBIGUOUS = "framing-ambiguous", 400, "Ambiguous message framing"
    LENGTH_MISMATCH = "length-mismatch", 400, "Content-Length does not match the body"
    BODY_MALFORMED = "body-malformed", 400, "Malformed request body"
    VERSION_UNSUPPORTED = "version-unsupported", 505, "HTTP version not supported"
    HEAD_TOO_LARGE = "head-too-large", 431, "Request header fields too large"
    HEAD_TIMEOUT = "head-timeout", 408, "Request head not received in time"
    BODY_TIMEOUT = "body-timeout", 408, "Request body not received in time"
    UPGRADE_REFUSED = "upgrade-refused", 400, "Upgrade not allowed"
    EXPECTATION_REFUSED = "expectation-refused", 417, "Expectation not supported"
    CONNECTIONS_EXHAUSTED = "connections-exhausted", 503, "Too many connections"
    FRAMES_EXCESSIVE = "frames-excessive", 429, "Too many small or empty frames"

    # A listener that only decides (serve --decide).
    CHECK_UNTRUSTED = "check-untrusted", 403, "No decisions for this peer"
    CHECK_UNCLEAR = "check-unclear", 400, "Check not understood"

    # Hygiene.
    METHOD_INVALID = "method-invalid", 400, "Invalid method"
    TARGET_INVALID = "target-invalid", 400, "Invalid request target"
    TARGET_TOO_LONG = "target-too-long", 414, "Request target too long"
    PATH_AMBIGUOUS = "path-ambiguous", 400, "Ambiguous path"
    HOST_INVALID = "host-invalid", 400, "Invalid Host"
    HEADER_INVALID = "header-invalid", 400, "Invalid header field"
    HEADER_REPEATED = "header-repeated", 400, "Repeated header field"
    LOOP_DETECTED = "loop-detected", 508, "Request goes in circles"

    # Routing.
    NO_ROUTE = "no-route", 404, "Not found"
    METHOD_NOT_ALLOWED = "method-not-allowed", 405, "Method not allowed"

    # CORS and networks.
    ORIGIN_NOT_ALLOWED = "origin-not-allowed", 403, "Origin not allowed"
    PREFLIGHT_REFUSED = "preflight-refused", 403, "Preflight refused"
    ADDRESS_DENIED = "address-denied", 403, "Client address not allowed"
    ADDRESS_UNKNOWN = "address-unknown", 403, "Client address not known"

    # Size.
    BODY_TOO_LARGE = "body-too-large", 413, "Request body too large"

    # Quotas.
    QUOTA_EXCEEDED = "quota-exceeded", 429, "Too many requests"
    STORE_UNAVAILABLE = "store-unavailable", 503, "Counter store unavailable"

    # Authentication.
    CREDENTIAL_MISSING = "credential-missing", 401, "Credential required"
    CREDENTIAL_AMBIGUOUS = "credential-ambiguous", 400, "More than one credential"
    SCHEME_UNSUPPORTED = "scheme-unsupported", 401, "Authentication scheme not supported"
    TOKEN_TOO_LARGE = "token-too-large", 401, "Token too large"
    TOKEN_MALFORMED = "token-malformed", 401, "Malformed token"
    TOKEN_HEADER_INVALID = "token-header-invalid", 401, "Token header not acceptable"
    TOKEN_ALGORITHM_REFUSED = "token-algorithm-refused", 401, "Token algorithm not acceptable"
    TOKEN_TYPE_REFUSED = "token-type-refused", 401, "Token type not acceptable"
    TOKEN_ISSUER_UNKNOWN = "token-issuer-unknown", 401, "Token issuer not acceptable"
    TOKEN_KEY_UNKNOWN = "token-key-unknown", 401, "Token key not known"
    TOKEN_SIGNATURE_INVALID = "token-signature-invalid", 401, "Token signature not valid"
    TOKEN_AUDIENCE_REFUSED = "token-audience-refused", 401, "Token audience not acceptable"
    TOKEN_CLAIM_INVALID = "token-claim-invalid", 401, "Token claim not acceptable"
    TOKEN_EXPIRED = "token-expired", 401, "Token expired"
    TOKEN_NOT_YET_VALID = "token-not-yet-valid", 401, "Token not yet valid"
    TOKEN_LIFETIME_EXCEEDED = "token-lifetime-exceeded", 401, "Token lifetime too long"
    TOKEN_PROOF_UNSUPPORTED = "token-proof-unsupported", 401, "Token bound to a key"
    TOKEN_PROOF_MISSING = "token-proof-missing", 401, "Proof of possession missing"
    TOKEN_PROOF_INVALID = "token-proof-invalid", 401, "Proof of possession not valid"
    TOKEN_PROOF_REPLAYED = "token-proof-replayed", 401, "Proof of possession used before"
    TOKEN_PROOF_NONCE = "token-proof-nonce", 401, "Proof of possession needs a nonce"
    TOKEN_UNBOUND = "token-unbound", 401, "Token not bound to a key"
    TOKEN_REVOKED = "token-revoked", 401, "Token revoked"
    CERTIFICATE_WITHDRAWN = "certificate-withdrawn", 403, "Client certificate no longer accepted"
    REVOCATIONS_UNKNOWN = "revocations-unknown", 503, "Revocations unknown"
    TICKET_INVALID = "ticket-invalid", 401, "Ticket not valid"
    TICKET_USED = "ticket-used", 401, "Ticket used before"
    TOKEN_INACTIVE = "token-inactive", 401, "Token not active"
    INTROSPECTION_UNAVAILABLE = "introspection-unavailable", 503, "Token introspection unavailable"
    KEYS_UNAVAILABLE = "keys-unavailable", 503, "Verification keys unavailable"
    API_KEY_MALFORMED = "api-key-malformed", 401, "Malformed API key"
    API_KEY_UNKNOWN = "api-key-unknown", 401, "API key not known"
    API_KEY_EXPIRED = "api-key-expired", 401, "API key expired"
    API_KEY_REVOKED = "api-key-revoked", 401, "API key revoked"
    API_KEYS_UNAVAILABLE = "api-keys-unavailable", 503, "API keys unavailable"
    CERTIFICATE_REFUSED = "certificate-refused", 401, "Client certificate not acceptable"
    CERTIFICATE_EXPIRED = "certificate-expired", 401, "Client certificate expired"

    # Authorization.
    AUTHENTICATION_INSUFFICIENT = "authentication-insufficient", 401, "Stronger or newer authentication required"
    SCOPE_MISSING = "scope-missing", 403, "Scope missing"
    ROLE_MISSING = "role-missing", 403, "Role missing"
    CLAIM_MISMATCH = "claim-mismatch", 403, "Claim does not match"
    CONDITION_FALSE = "condition-false", 403, "Condition not met"
    CONDITION_ERROR = "condition-error", 403, "Condition could not be evaluated"
    CONDITION_TIMEOUT = "condition-timeout", 403, "Condition took too long"

    # The API's document.
    OPERATION_UNKNOWN = "operation-unknown", 404, "No such operation"
    OPERATION_NOT_ALLOWED = "operation-not-allowed", 405, "No such operation at this path"
    PARAMETER_MISSING = "parameter-missing", 400, "Parameter missing"
    PARAMETER_INVALID = "parameter-invalid", 400, "Parameter not valid"
    PARAMETER_UNKNOWN = "parameter-unknown", 400, "Parameter not known"
    CONTENT_TYPE_REFUSED = "content-type-refused", 415, "Content type not acceptable"
    BODY_UNEXPECTED = "body-unexpected", 400, "Request body missing, or not expected"
    BODY_INVALID = "body-invalid", 400, "Request body not valid"

    # Decision services.
    DECISION_DENIED = "decision-denied", 403, "Denied by a decision service"
    DECISION_UNAVAILABLE = "decision-unavailable", 503, "Decision service unavailable"

    # Circuit, rewrite, upstream.
    CIRCUIT_OPEN = "circuit-open", 503, "Upstream unavailable"
    REWRITE_REFUSED = "rewrite-refused", 403, "Request can't be rewritten safely"
    UPSTREAM_UNREACHABLE = "upstream-unreachable", 502, "Upstream unreachable"
    UPSTREAM_MALFORMED = "upstream-malformed", 502, "Upstream response malformed"
    UPSTREAM_CLOSED = "upstream-closed", 502, "Upstream closed the connection"
    STREAM_TIMEOUT = "stream-timeout", 504, "Response took too long"
    UPSTREAM_TIMEOUT = "upstream-timeout", 504, "Upstream did not answer in time"

    # The gateway itself.
    STAGE_ERROR = "stage-error", 503, "Request not admitted"
    POLICY_UNAVAILABLE = "policy-unavailable", 503, "No policy in force"
    AUDIT_UNAVAILABLE = "audit-unavailable", 503, "Audit log unavailable"
    GATEWAY_STOPPING = "gateway-stopping", 503, "Gateway is shutting down"
    MEMORY_EXHAUSTED = "memory-exhausted", 503, "Gateway at capacity"
    DESCRIPTORS_EXHAUSTED = "descriptors-exhausted", 503, "Gateway at capacity"
    CLIENT_CLOSED = "client-closed", 499, "Client closed the connection"


EVERY_STAGE: Final = (Reason.OK, Reason.NOT_APPLICABLE, Reason.STAGE_ERROR)
"""What any stage may say, beside the reasons that it declares."""

PROTOCOL: Final = (
    Reason.HEAD_MALFORMED,
    Reason.FRAMING_AMBIGUOUS,
    Reason.LENGTH_MISMATCH,
    Reason.BODY_MALFORMED,
    Reason.VERSION_UNSUPPORTED,
    Reason.HEAD_TOO_LARGE,
    Reason.HEAD_TIMEOUT,
    Reason.BODY_TIMEOUT,
    Reason.UPGRADE_REFUSED,
    Reason.EXPECTATION_REFUSED,
    Reason.CONNECTIONS_EXHAUSTED,
    Reason.FRAMES_EXCESSIVE,
    Reason.CHECK_UNTRUSTED,
    Reason.CHECK_UNCLEAR,
    Reason.METHOD_INVALID,
    Reason.TARGET_INVALID,
    Reason.TARGET_TOO_LONG,
    Reason.BODY_TOO_LARGE,
    Reason.TOKEN_EXPIRED,
    Reason.TOKEN_REVOKED,
    Reason.CERTIFICATE_WITHDRAWN,
    Reason.API_KEY_EXPIRED,
    Reason.API_KEY_REVOKED,
    Reason.CERTIFICATE_EXPIRED,
    Reason.BODY_INVALID,
    Reason.REWRITE_REFUSED,
    Reason.UPSTREAM_UNREACHABLE,
    Reason.UPSTREAM_MALFORMED,
    Reason.UPSTREAM_CLOSED,
    Reason.STREAM_TIMEOUT,
    Reason.UPSTREAM_TIMEOUT,
    Reason.STAGE_ERROR,
    Reason.POLICY_UNAVAILABLE,
    Reason.GATEWAY_STOPPING,
    Reason.MEMORY_EXHAUSTED,
    Reason.DESCRIPTORS_EXHAUSTED,
    Reason.CLIENT_CLOSED,
)
"""What events have beside the stage `protocol`: why there was no request to decide on, and what became of admitted ones
that ended otherwise."""

_DECLARED: Final[dict[str, Reason]] = {}
"""By code. Filled where policies are loaded, so bounded by what they name."""
