"""Redaction of flows: a flow's state as mitmproxy saves it, without any usable credential."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Final

from cachetools import LRUCache

from mitmgate.core.browsers import Places, cookie_of, is_parameter, subprotocol_of
from mitmgate.core.headers import Fields
from mitmgate.core.introspection import UNAVAILABLE, is_opaque
from mitmgate.core.path import Ambiguous, CanonicalPath, Oddity, canonical_path, query_is_plain
from mitmgate.core.refusal import Refusal
from mitmgate.core.token import UnverifiedToken, read_token
from mitmgate.keys.certificate import is_certificate
from mitmgate.replay.decision import UNSEEN
from mitmgate.replay.front import FRONT, front_of
from mitmgate.replay.privacy import Hidden, Privacy, Veil
from mitmgate.replay.resigned import MARK, ReplayKey
from mitmgate.replay.shown_keys import NOTE
from mitmgate.replay.tnetstring import dumps
from mitmgate.replay.traffic import Signature

State = dict[str, Any]
METADATA: Final = "mitmgate"
_ROOM: Final = 4 * 1024 * 1024
"""Octets of what stands for tokens that is kept; anybody may send as many, and as long ones, as a head holds."""
RECORDING: Final = "recording"
VERSION: Final = 1

_ASKED: Final = frozenset({"good", "inactive", "introspection-unavailable"})
_SCHEMES = (b"bearer", b"dpop")
_AMBIGUOUS: Final = "/%2541"
_ODD: Final[Mapping[Oddity, str]] = {
    Oddity.ENCODED_SLASH: "x%2Fx",
    Oddity.PARAMETER: "x;x",
    Oddity.EMPTY_SEGMENT: "//x",
    Oddity.ENCODED_DELIMITER: "x%3Bx",
}
"""What makes a path as odd as one whose oddity is hidden."""
_NOT_PLAIN: Final = "#"
_SHORTEST: Final = 8  # characters of a client's credential that is looked for in fields that the gateway has made


def found_signature(reason: str | None, stage: str | None, authenticated: bool) -> Signature:
    """Say what a decision tells of the token's signature.

    reason and stage: those of the final step. authenticated: there was a principal.
    """
    if authenticated:
        return "good"
    if stage != "authentication":
        return "unchecked"
    found: Mapping[str | None, Signature] = {
        "token-signature-invalid": "bad",
        "token-key-unknown": "key-unknown",
        "keys-unavailable": "keys-unavailable",
        "token-revoked": "revoked",
        "revocations-unknown": "revocations-unknown",
        "token-proof-missing": "proof-missing",
        "token-proof-invalid": "proof-invalid",
        "token-proof-replayed": "proof-replayed",
        "token-proof-nonce": "proof-nonce",
        "token-inactive": "inactive",
        "introspection-unavailable": "introspection-unavailable",
        # What is checked after the signature.
        "token-audience-refused": "good",
        "token-claim-invalid": "good",
        "token-expired": "good",
        "token-not-yet-valid": "good",
        "token-lifetime-exceeded": "good",
        "token-proof-unsupported": "good",
        "token-unbound": "good",
    }
    return found.get(reason, "unchecked")


class Redactor:
    """Redacts the flows of one recording: one replay key, one secret for hashes, both gone with it."""

    def __init__(self, privacy: Privacy | None = None) -> None:
        """privacy: what is hidden; None: the defaults."""
        self.privacy = privacy or Privacy()
        self.key = ReplayKey()
        self._veil = Veil(self.privacy)
        self._named = frozenset(name.lower().encode("latin-1") for name in self.privacy.headers)
        self._places: Places | None = None
        self._ticket: bytes | Refusal | None = None
        self._introspected: Callable[[bytes], UnverifiedToken | Refusal] | None = None
        self._routed = True  # whether the path led to one route
        self._hidden = Hidden({})
        self._tokens: LRUCache[tuple[bytes, Signature], tuple[bytes, dict[str, str]]] = LRUCache(_ROOM, _octets)
        """By the token's digest: a refused one may be as long as a head, and what stands for it is not."""

    def redact(
        self,
        state: State,
        signature: Callable[[bytes], Signature],
        introspected: Callable[[bytes], UnverifiedToken | Refusal] | None = None,
        places: Places | None = None,
        ticket: bytes | Refusal | None = None,
        **facts: object,
    ) -> None:
        """Redact a flow's state in place, and note in its metadata how.

        signature: asked for each bearer token. introspected: asked for each opaque one, what its issuer has said;
        None: nobody knows any more. places: where tokens may be beside Authorization.
        ticket: the token that was in one, or why it was refused. facts: plain values that are added to the note.
        """
        hidden: dict[str, str] = {}
        self._introspected, self._places, self._ticket = introspected, places, ticket
        self._routed = _is_routed(state)
        came: dict[tuple[bytes, bytes], bytes] = {}
        request, saved = state["request"], state["metadata"].get(METADATA)
        before = saved.get(RECORDING) if isinstance(saved, dict) else None
        if isinstance(before, dict) and "key" in before:
            facts = {**facts, **before}
            self._veil.again = True  # it was redacted before: its tokens are of that key, and stay
        else:
            self._veil.again = False
        self._hide_key(facts, hidden)
        if isinstance(saved, dict) and isinstance(saved.get("ingress"), dict):
            ingress = dict(saved["ingress"])
            fields = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in ingress["headers"]]
            redacted = self._fields(tuple(fields), signature, hidden)
            came = {(n.lower(), value): shown for (n, value), (_, shown) in zip(fields, redacted, strict=True)}
            ingress["headers"] = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in redacted]
            ingress["target"] = self._target(str(ingress["target"]), signature, hidden)
            ingress["authority"] = self._veil.authority(str(ingress["authority"]))
            ingress["method"] = self._veil.url(str(ingress["method"]))  # a client writes there what it likes
            saved = {**saved, "ingress": ingress}
        else:
            saved = dict(saved) if isinstance(saved, dict) else {}
        if came:
            known = saved["principal"] if isinstance(saved.get("principal"), dict) else {}
            who = (str(known.get("subject", "")), ",".join(map(str, known.get("roles", ()))))
            request["headers"] = self._forwarded(tuple(request["headers"]), came, hidden, who)
        else:
            request["headers"] = self._fields(tuple(request["headers"]), signature, hidden)
        if isinstance(saved.get("service_answer"), dict):
            saved["service_answer"] = _as_forwarded(saved, request["headers"])
        path = self._target(request["path"].decode("latin-1"), signature, hidden)
        request["path"] = path.encode("latin-1")
        request["method"] = self._veil.url(request["method"].decode("latin-1")).encode("latin-1")
        request["authority"] = self._veil.authority(request["authority"].decode("latin-1")).encode("latin-1")
        for message in (request, state.get("response")):
            if message is not None:
                self._message(message)
        if state.get("websocket"):
            state["websocket"]["messages"] = state["websocket"]["messages"] if self.privacy.bodies else []
        state["backup"] = None
        self._hidden = Hidden(hidden)
        if isinstance(saved.get("principal"), dict):
            subject = self._hidden.whole(str(saved["principal"]["subject"]))
            saved["principal"] = {**saved["principal"], "subject": subject}
        note: dict[str, object] = {"version": VERSION, "key": self.key.public}
        saved[RECORDING] = {**note, **facts}
        # Other addons' metadata is not ours to judge, and may hold anything.
        state["metadata"] = {METADATA: saved}
        state["comment"] = self._veil.url(state.get("comment") or "")

    def _hide_key(self, facts: dict[str, object], hidden: dict[str, str]) -> None:
        """Hide the listed claims of an API key, as those of tokens."""
        key = facts.get(NOTE)
        if isinstance(key, dict) and isinstance(key.get("claims"), dict):
            shown, of_key = self._veil.claims(key["claims"])
            facts[NOTE] = {**key, "claims": shown}
            hidden |= of_key

    def record(self, state: State) -> bytes:
        """Encode the state that was redacted last, with what replay looks for first at the front.

        The record is looked at for what should be gone: an address of a claim may stand in the path, too. Raises
        ValueError where it still is there.
        """
        record = self._encoded(state)
        if self._hidden.left_in(record):
            record = self._encoded(self._hidden.everywhere(state))
            if self._hidden.left_in(record):
                raise ValueError("a record still holds what was to be hidden")
        return record

    @staticmethod
    def _encoded(state: State) -> bytes:
        saved = {name: value for name, value in state["metadata"][METADATA].items() if name != FRONT}
        first: State = {name: saved[name] for name in ("now",) if name in saved}
        front = front_of(state, saved, saved.get(RECORDING, {}))
        if front is not None:
            first[FRONT] = front
        rest = {name: value for name, value in state.items() if name != "metadata"}
        return dumps({"metadata": {METADATA: {**first, **saved}}, **rest})

    def _message(self, message: State) -> None:
        """Redact what request and response have in common; the request's own fields are done."""
        if "status_code" in message:
            message["headers"] = self._veil.fields(tuple(message["headers"]))
        if message.get("trailers"):
            message["trailers"] = self._veil.fields(tuple(message["trailers"]))
        if not self.privacy.bodies:
            message["content"] = None

    def _fields(self, fields: Fields, signature: Callable[[bytes], Signature], hidden: dict[str, str]) -> Fields:
        redacted = []
        for name, value in fields:
            if name.lower() == b"authorization":
                redacted.append((name, self._authorization(value, signature, hidden)))
            else:
                shown = self._elsewhere(name.lower(), value, signature, hidden)
                redacted.append((self._veil.name_of_field(name), shown))
        return tuple(redacted)

    def _target(self, target: str, signature: Callable[[bytes], Signature], hidden: dict[str, str]) -> str:
        """Redact a request's target; in the place of a ticket stands what its token says.

        A path goes by its canonical form, as in every decision: in another one a plain name looks like what somebody
        hides, and what is to be hidden looks like none. Where what the gateway goes by is hidden, something stands for
        it, so that replay admits nothing that was denied for it.
        """
        path, mark, query = target.partition("?")
        canonical = canonical_path(path)
        if isinstance(canonical, CanonicalPath):
            target = f"{canonical.text}{mark}{query}"
        path, mark, rest = self._hidden_target(target, signature, hidden).partition("?")
        shown = canonical_path(path)
        if isinstance(shown, CanonicalPath):
            if isinstance(canonical, Ambiguous):
                path += _AMBIGUOUS
            elif odd := canonical.odd - shown.odd:
                # Where it stood may have made it a path of two routes: then it gets what hardly any route takes.
                path += "".join([_ODD[oddity] for oddity in sorted(odd if self._routed else Oddity)])
        if query_is_plain(rest) and not query_is_plain(query):
            rest += _NOT_PLAIN
        return f"{path}{mark}{rest}"

    def _hidden_target(self, target: str, signature: Callable[[bytes], Signature], hidden: dict[str, str]) -> str:
        shown, places, ticket = self._veil.url(target), self._places, self._ticket
        if places is None or places.ticket is None or ticket is None or MARK.decode("ascii") in target:
            return shown
        if isinstance(ticket, Refusal):
            resigned = self.key.resign(ticket, 64, "unchecked", {})
        else:
            resigned, claims = self._resigned(ticket, signature(ticket))
            hidden |= claims
        (path, mark, query), asked = shown.partition("?"), target.partition("?")[2].split("&")
        pairs = query.split("&")
        if len(pairs) != len(asked):  # too many to look at, and hidden as a whole
            return shown
        for at, pair in enumerate(asked):  # the names as they were asked for, as odd ones are hidden, too
            if is_parameter(pair.partition("=")[0], places.ticket):
                pairs[at] = f"{places.ticket}={resigned.decode('ascii')}"
        return f"{path}{mark}{'&'.join(pairs)}"

    def _elsewhere(
        self, lower: bytes, value: bytes, signature: Callable[[bytes], Signature], hidden: dict[str, str]
    ) -> bytes:
        """Redact a field that may hold a token where browsers have them."""
        if lower not in self._named and is_certificate(value):
            return value  # anybody may know it, and replay finds its names there
        places = self._places
        if places is None or not (
            (lower == b"cookie" and places.cookie is not None)
            or (lower == b"sec-websocket-protocol" and places.subprotocol)
        ):
            return self._veil.field(lower, value)
        separator = b";" if lower == b"cookie" else b","
        return separator.join([self._part(lower, part, places, signature, hidden) for part in value.split(separator)])

    def _part(
        self,
        lower: bytes,
        part: bytes,
        places: Places,
        signature: Callable[[bytes], Signature],
        hidden: dict[str, str],
    ) -> bytes:
        token = cookie_of(part, places.cookie or b"") if lower == b"cookie" else subprotocol_of(part)
        if not token:
            blank = part[: len(part) - len(part.lstrip(b" "))]
            return blank + self._veil.field(lower, part[len(blank) :])
        before, _, after = part.rpartition(token)
        resigned, claims = self._resigned(token, signature(token))
        hidden |= claims
        return before + resigned + after

    def _authorization(self, value: bytes, signature: Callable[[bytes], Signature], hidden: dict[str, str]) -> bytes:
        scheme, _, rest = value.partition(b" ")
        token = rest.strip(b" ")
        if scheme.lower() not in _SCHEMES or not token:
            return self._veil.field(b"authorization", value)
        if token.startswith(MARK) and self._veil.again:
            return value
        before, _, after = rest.partition(token)
        resigned, claims = self._resigned(token, signature(token))
        hidden |= claims
        return scheme + b" " + before + resigned + after

    def _resigned(self, token: bytes, signature: Signature) -> tuple[bytes, dict[str, str]]:
        opaque = self._opaque(token, signature)
        said = b"" if opaque is None else repr(opaque).encode("utf-8", "surrogatepass")
        key = blake2b(token + b"\0" + said, digest_size=20).digest(), signature
        known = self._tokens.get(key)
        if known is None:
            read = opaque or read_token(token)
            claims = dict(read.unverified_claims) if isinstance(read, UnverifiedToken) else {}
            shown, hidden = self._veil.claims(claims)
            known = self.key.resign(read, len(token), signature, shown), hidden
            if _octets(known) <= _ROOM // 64:
                self._tokens[key] = known
        return known

    def _opaque(self, token: bytes, signature: Signature) -> UnverifiedToken | Refusal | None:
        """Return what is recorded of an opaque token: its issuer's word, or why it was refused. None: of any other."""
        if not is_opaque(token):
            return None
        if self._introspected is not None:
            return self._introspected(token)
        return UNAVAILABLE if signature in _ASKED else None

    def _forwarded(
        self,
        fields: Fields,
        came: Mapping[tuple[bytes, bytes], bytes],
        hidden: Mapping[str, str],
        who: tuple[str, str],
    ) -> Fields:
        """Hide what fields that the upstream got have of credentials and of hidden claims, as replay will make them.

        came: what the client's own fields became: one that was passed on is hidden in the same way. Of the others,
        which the gateway has made, one with a credential of the policy is not shown at all. who: subject and roles.
        """
        secrets = {raw.decode("latin-1"): shown.decode("latin-1") for (_, raw), shown in came.items() if raw != shown}
        texts = Hidden({**{raw: shown for raw, shown in secrets.items() if len(raw) >= _SHORTEST}, **hidden})
        shown_fields, named = [], False
        for name, value in fields:
            lower, shown = name.lower(), came.get((name.lower(), value))
            if shown is None:
                text = value.decode("latin-1")
                # The subject's field stands before that of the roles, which may say the same, and stay.
                roles, named = text == who[1] and (named or who[0] != who[1]), named or text == who[0]
                replaced = text if roles else texts.whole(text)
                shown = replaced.encode("latin-1", "replace")
                if replaced == text and text not in who and self._veil.field(lower, value) != value:
                    shown = UNSEEN
            shown_fields.append((self._veil.name_of_field(name), shown))
        return tuple(shown_fields)


def _is_routed(state: State) -> bool:
    saved = state["metadata"].get(METADATA)
    return not isinstance(saved, dict) or saved.get("route") is not None


def _as_forwarded(saved: Mapping[str, Any], forwarded: Fields) -> dict[str, Any]:
    """Show the fields that a decision service has handed on as they stand in the request to the upstream, redacted."""
    sent = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in forwarded}
    answer = saved["service_answer"]
    admitted = saved.get("decision") == "admit"
    unseen = UNSEEN.decode("ascii")
    fields = [[name, sent.get(name.lower(), unseen) if admitted else unseen] for name, _ in answer["fields"]]
    return {**answer, "fields": fields}


def _octets(known: tuple[bytes, dict[str, str]]) -> int:
    """Estimate what stands for a token takes, and the claims that are hidden in it."""
    resigned, hidden = known
    return 512 + len(resigned) + sum([200 + len(text) + len(place) for text, place in hidden.items()])


def is_refused(token: bytes) -> bool:
    """Tell whether a token is refused before any policy is asked: every token of a recording is."""
    return isinstance(read_token(token), Refusal)
