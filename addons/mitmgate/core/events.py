"""Security event tokens (RFC 8417) that a transmitter of shared signals sends: whom and what they revoke."""

from collections.abc import Mapping
from typing import Final

from mitmgate.core.jose import Json
from mitmgate.core.revocation import Kind, Revocation, revocation_of
from mitmgate.core.rules import Issuer

TYPE: Final = "secevent+jwt"
"""The `typ` of such a token (RFC 8417, section 2.3): no access token has it, and none of these is an access token."""

_CAEP: Final = "https://schemas.openid.net/secevent/caep/event-type/"
REVOKING: Final = frozenset({f"{_CAEP}session-revoked", f"{_CAEP}credential-change"})
"""The events after which what was issued before must not count (CAEP 1.0, sections 3.1 and 3.3)."""


class EventError(ValueError):
    """An event that is not taken. code: of RFC 8935, section 2.4; the text is for the transmitter."""

    def __init__(self, code: str, text: str) -> None:
        """Say what is wrong."""
        super().__init__(text)
        self.code = code


def revocations_of(
    claims: Mapping[str, Json], issuer: Issuer, audience: tuple[str, ...], now: float
) -> list[Revocation]:
    """Return what a token of events revokes, nothing where it has other events. Raises EventError.

    claims: of a token whose signature is the issuer's. now: Unix seconds. An event is about what was issued up to its
    own time; about what its issuer's tokens say, and nobody else's.
    """
    named = claims.get("aud")
    if not any(name in audience for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)):
        raise EventError("invalid_audience", "The token is not meant for this receiver.")
    issued, identifier, events = claims.get("iat"), claims.get("jti"), claims.get("events")
    if not _is_time(issued) or not isinstance(identifier, str) or not isinstance(events, dict) or not events:
        raise EventError("invalid_request", "A security event token has iat, jti and events.")
    if "exp" in claims and (not _is_time(claims["exp"]) or now >= _time(claims["exp"], 0.0) + issuer.leeway):
        raise EventError("invalid_request", "The token has expired.")
    found: list[Revocation] = []
    for name in sorted(events.keys() & REVOKING):
        event = events[name]
        if not isinstance(event, dict):
            raise EventError("invalid_request", "An event is an object.")
        subject = claims.get("sub_id", event.get("subject"))
        kind, value = _subject(subject, issuer)
        at = min(_time(event.get("event_timestamp"), _time(issued, now)), now)
        before = at if kind == "sub" else None
        try:
            found.append(revocation_of(issuer, kind, value, now, before=before, by=f"event {identifier}"[:255]))
        except ValueError as error:
            raise EventError("invalid_request", f"The subject can't be revoked: {error}.") from error
    return found


def _subject(subject: Json, issuer: Issuer) -> tuple[Kind, str]:
    """Read a subject identifier (RFC 9493): `iss_sub`, `opaque`, or a complex one with a session or a user."""
    if isinstance(subject, dict):
        form = subject.get("format", subject.get("subject_type"))
        if form == "complex" or (form is None and not subject.keys().isdisjoint({"session", "user"})):
            session = subject.get("session")
            if isinstance(session, dict) and session.get("format") == "opaque" and isinstance(session.get("id"), str):
                return "sid", str(session["id"])
            if "session" not in subject and isinstance(subject.get("user"), dict):
                return _subject(subject["user"], issuer)
        elif (
            form in ("iss_sub", "iss-sub") and subject.get("iss") in issuer.urls and isinstance(subject.get("sub"), str)
        ):
            return "sub", str(subject["sub"])
        elif form == "opaque" and isinstance(subject.get("id"), str):
            return "sub", str(subject["id"])
    raise EventError(
        "invalid_request", "The subject is none of this issuer that is understood: iss_sub, opaque, complex."
    )


def _is_time(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _time(value: Json, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise
