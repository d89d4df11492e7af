"""The closed list of causes: what went wrong at a service. For the audit event and the log, never for a client.

A reason says what the client is told, a cause what an operator has to mend. A cause never changes its meaning.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from mitmgate.core.reason import Reason


class Cause(StrEnum):
    """Why an endpoint failed. docs/causes.md says what each one means."""

    # There is no connection.
    NAME_UNKNOWN = "name-unknown"
    LOOKUP_FAILED = "lookup-failed"
    LOOKUP_TIMEOUT = "lookup-timeout"
    ADDRESS_REFUSED = "address-refused"
    CONNECT_REFUSED = "connect-refused"
    CONNECT_UNREACHABLE = "connect-unreachable"
    CONNECT_TIMEOUT = "connect-timeout"
    CONNECT_FAILED = "connect-failed"
    TLS_TIMEOUT = "tls-timeout"
    TLS_FAILED = "tls-failed"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_YET_VALID = "certificate-not-yet-valid"
    CERTIFICATE_SELF_SIGNED = "certificate-self-signed"
    CERTIFICATE_UNKNOWN_AUTHORITY = "certificate-unknown-authority"
    CERTIFICATE_WRONG_NAME = "certificate-wrong-name"
    CERTIFICATE_INVALID = "certificate-invalid"
    NOT_HTTP2 = "not-http2"

    # There is no response.
    REQUEST_NOT_TAKEN = "request-not-taken"
    RESPONSE_TIMEOUT = "response-timeout"
    CLOSED = "connection-closed"
    RESET = "connection-reset"
    HEAD_MALFORMED = "head-malformed"
    HEAD_TOO_LARGE = "head-too-large"
    FRAMING_AMBIGUOUS = "framing-ambiguous"
    UPGRADE_INVALID = "upgrade-invalid"

    # There is a part of one.
    BODY_MALFORMED = "body-malformed"
    BODY_CUT = "body-cut"
    BODY_TIMEOUT = "body-timeout"
    BODY_STALLED = "body-stalled"


UNCONNECTED: Final = frozenset(list(Cause)[: list(Cause).index(Cause.REQUEST_NOT_TAKEN)])
"""Causes that came before there was a connection: nothing of the request was sent."""


class Failure(NamedTuple):
    """What went wrong at an endpoint. cause: None: nothing that would be its fault. detail: words for the log."""

    reason: Reason
    cause: Cause | None
    detail: str = ""
