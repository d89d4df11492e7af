"""API keys of recorded requests: what was found out of each, in the place of the key.

A recording notes whose key a request showed, or why it was refused; the field itself holds as many digits as the key
had characters, which are no key anywhere. Replay believes the note for that field, and takes every other value for
what it is: malformed, or a key of which nobody can say anything offline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mitmgate.core.api_key import EXPIRED, ISSUER, SEVERAL, UNAVAILABLE, ApiKey, check, id_of
from mitmgate.core.certificate import ISSUER as CERTIFICATE
from mitmgate.core.certificate import ClientCertificate
from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay.traffic import KeyShown
from mitmgate.stores.api_keys import ApiKeys

NOTE = "api_key"
"""The member of a recording's note."""


def found(exchange: Exchange, keys: ApiKeys | None) -> KeyShown | None:
    """Return the one key that a request showed, and what was found out of it; None: there is none, or nothing was.

    keys: asked where the chain had no reason to.
    """
    field = exchange.snapshot.key_field
    shown = None if field is None else exchange.request.headers.one(field)
    if field is None or shown is None:
        return None
    for principal in (exchange.principal, *exchange.beside):
        if principal is not None and principal.issuer == ISSUER:
            return KeyShown(field, shown, principal)
    final = exchange.verdict.final
    if final is not None and final.stage == "authentication" and final.reason.code.startswith("api-key"):
        return KeyShown(field, shown, Refusal(final.reason, final.detail))
    return None if keys is None else KeyShown(field, shown, keys.authenticate([shown], exchange.now, exchange.started))


def note_of(shown: KeyShown) -> dict[str, Any]:
    """Write a note, which has no key in it; the claims are still to be hidden."""
    result = shown.found
    note: dict[str, Any] = {"field": shown.field.decode("ascii")}
    if isinstance(result, Refusal):
        return note | {"reason": result.reason.code, "detail": result.detail}
    return note | {
        "roles": list(result.roles),
        "scopes": sorted(result.scopes),
        "claims": dict(result.claims),
        "expires": result.expires,
        "id": result.token_id,
        "issued": result.issued,
    }


def read_note(headers: Headers, note: Mapping[str, Any] | None) -> KeyShown | None:
    """Read what a recording notes.

    Raises ValueError, KeyError, TypeError or AttributeError for what nobody has noted.
    """
    if note is None:
        return None
    field = str(note["field"]).encode("ascii")
    shown = headers.one(field)
    if shown is None:
        return None
    if "reason" in note:
        reason = Reason.of(str(note["reason"]))
        if reason is None:
            raise ValueError("no reason")
        return KeyShown(field, shown, Refusal(reason, str(note["detail"])))
    claims = note["claims"]
    principal = Principal(
        subject=str(claims["sub"]),
        issuer=ISSUER,
        roles=tuple(map(str, note["roles"])),
        scopes=frozenset(map(str, note["scopes"])),
        claims=dict(claims),
        expires=float(note["expires"]),
        token_id=str(note["id"]),
        issued=float(note["issued"]),
    )
    return KeyShown(field, shown, principal)


def names_of(saved: object) -> ClientCertificate | None:
    """Read the names of a recorded client's certificate."""
    if not isinstance(saved, Mapping):
        return None
    uris, dns, emails = [tuple(map(str, saved[kind])) for kind in ("uris", "dns", "emails")]
    until = None if saved["until"] is None else float(saved["until"])
    return ClientCertificate(str(saved["subject"]), uris, dns, emails, until)


def is_of_token(who: object) -> bool:
    """Tell whether a verdict's principal is that of a token."""
    return isinstance(who, Mapping) and who.get("issuer") not in {ISSUER, CERTIFICATE}


def of_verdict(headers: Headers, code: str | None, who: object) -> KeyShown | None:
    """Read what the verdict of a flow that was saved with its key, by mitmweb say, tells of it.

    code: of the verdict's reason. who: its principal, of whose claims nothing is known.
    """
    fields = [(name.lower(), text) for name, text in headers.fields if id_of(text) is not None]
    if len(fields) != 1:
        return None
    ((field, shown),) = fields
    if isinstance(who, Mapping) and who.get("issuer") == ISSUER:
        note = {"roles": who["roles"], "scopes": who["scopes"], "expires": who["expires"], "id": who["token_id"]}
        note |= {"claims": {"sub": who["subject"], "key_id": who["token_id"]}, "issued": 0.0}
        return read_note(headers, note | {"field": field.decode("latin-1")})
    reason = Reason.of(code or "")
    if reason is None or not reason.code.startswith("api-key"):
        return None
    return KeyShown(field, shown, Refusal(reason, "The API key was not good."))


class OfflineKeys(ApiKeys):
    """What decides of keys in a replay. The decider puts what a recorded request showed into `shown` before each."""

    def __init__(self, known: Mapping[str, ApiKey] | None = None) -> None:
        """known: keys that are at hand, by id, for those of which no recording says anything."""
        super().__init__()
        self.shown: KeyShown | None = None
        self._at_hand = known
        self.unknown = 0
        """Keys of which nobody has said anything."""

    def authenticate(self, values: Sequence[bytes], now: float, started: float) -> Principal | Refusal:
        """Find out who asks: as it was found out then, at the time of now."""
        if len(values) != 1:
            return SEVERAL
        shown = self.shown
        if shown is None or shown.text != values[0]:
            known = check(values[0], self._at_hand or {}, now)
            nobody_knows = (
                self._at_hand is None and isinstance(known, Refusal) and known.reason is Reason.API_KEY_UNKNOWN
            )
            self.unknown += nobody_knows
            return UNAVAILABLE if nobody_knows else known
        if isinstance(shown.found, Refusal):
            return shown.found
        return shown.found if now < shown.found.expires else EXPIRED
