"""Recorder: the addon that writes traffic as redacted flows, to be replayed."""

import fcntl
import logging
import os
import weakref
from hashlib import blake2b
from typing import Any, BinaryIO, ClassVar, NamedTuple, cast

from mitmproxy.http import HTTPFlow

from mitmgate.audit.mirror import mirror
from mitmgate.audit.rotation import open_log, rotate
from mitmgate.core.introspection import INTROSPECTED, UNAVAILABLE
from mitmgate.core.jose import Json
from mitmgate.core.principal import Principal
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.token import UnverifiedToken
from mitmgate.keys.ring import KeyRing
from mitmgate.pipeline.exchange import Exchange, exchange_of
from mitmgate.replay.privacy import Privacy, with_policy
from mitmgate.replay.redaction import METADATA, Redactor, found_signature
from mitmgate.replay.shown_keys import NOTE, found, note_of
from mitmgate.replay.traffic import Signature
from mitmgate.stages.circuit_breaker import blamed
from mitmgate.stores.api_keys import ApiKeys
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)

ROTATE = 100 * 1024 * 1024
KEEP = 10


def recorder(
    path: str,
    *,
    ring: KeyRing | None = None,
    privacy: Privacy | None = None,
    sample: float = 1.0,
    rotate_at: int = ROTATE,
    keep: int = KEEP,
) -> "Recorder":
    """Make the addon, to be added as an observer behind the chain. Raises UserError where the file can't be written.

    ring: the gateway's own; with it, the signature is noted also of tokens that the chain had no reason to look at (a
    public route, a client that was denied for its address). Without it such tokens are noted as unchecked, and replay
    needs --assume-signed where another policy would look at them. sample: the part of all requests that is kept.
    rotate_at: bytes of a file. keep: rotated files.
    """
    if not 0 < sample <= 1:
        raise UserError(f"a sample of {sample:g}: must be more than 0 and at most 1")
    return Recorder(RecordingFile(path, rotate_at, keep), ring, privacy or Privacy(), sample)


class Told(NamedTuple):
    """What the circuit was told of an exchange: a status, or a failure. settled: the times that it knew of by then."""

    status: int | None
    failure: Reason | None
    settled: int


class RecordingFile:
    """A flow file that is appended to and rotated. It is readable by its owner alone.

    In a rolling restart the old worker still writes when the new one begins: its file then has a rotated name, it goes
    on there, and leaves rotation to whoever has the name now. The lock (flock) tells an empty file from one in use.
    """

    def __init__(self, path: str, rotate_at: int, keep: int) -> None:
        """Make the folder and begin a new file; what was there is rotated away: behind a torn end nothing is read."""
        self._path, self._rotate_at, self._keep = path, rotate_at, keep
        try:
            os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
            if os.path.exists(path) and (os.path.getsize(path) or _is_locked(path)):
                rotate(path, keep)
            self._file = self._open()
        except OSError as error:
            raise UserError(f"--record {path}: {(error.strerror or str(error)).lower()}") from error
        self._size = 0

    def _open(self) -> BinaryIO:
        file = os.fdopen(open_log(self._path, os.O_WRONLY | os.O_TRUNC), "wb", 0)
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _has_the_name(self) -> bool:
        try:
            named = os.stat(self._path)
        except FileNotFoundError:
            return True  # somebody took it away: a new one is due
        held = os.fstat(self._file.fileno())
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def append(self, record: bytes) -> None:
        """Write a whole record. Raises OSError, and leaves no part of a record behind."""
        try:
            if self._file.write(record) != len(record):
                raise OSError("no space left")
        except OSError:
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise
        self._size += len(record)
        if self._size >= self._rotate_at and self._has_the_name():
            self._file.close()
            if os.path.exists(self._path):
                rotate(self._path, self._keep)
            self._file = self._open()
            self._size = 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_locked(path: str) -> bool:
    """Tell whether a process writes the file."""
    with os.fdopen(open_log(path, os.O_RDONLY), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Recorder:
    """Write each exchange when it has ended: the flow with its ingress request, verdict and policy digest, redacted.

    Stands behind the chain and decides nothing. The order in which requests were decided, and when the circuit learnt
    what came of each, are in the record: replay repeats both. On failure: the request goes on, and the log says so.
    """

    name: ClassVar[str] = "mitmgate-recorder"

    def __init__(self, file: RecordingFile, ring: KeyRing | None, privacy: Privacy, sample: float) -> None:
        """See `recorder`."""
        self.written = 0
        self.failed = 0
        self._file = file
        self._ring = ring
        self._api_keys: ApiKeys | None = None
        self._privacy = privacy
        self._sample = sample
        self._redactor: Redactor | None = None
        self._begun: weakref.WeakSet[HTTPFlow] = weakref.WeakSet()
        self._done: weakref.WeakSet[HTTPFlow] = weakref.WeakSet()
        self._heads: weakref.WeakKeyDictionary[HTTPFlow, Told] = weakref.WeakKeyDictionary()

    def use(self, ring: KeyRing, api_keys: ApiKeys | None = None) -> None:
        """Take the gateway's ring and its API keys, where they were made after this addon."""
        self._ring, self._api_keys = ring, api_keys

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Remember that there is a request to be written."""
        self._begun.add(flow)

    def responseheaders(self, flow: HTTPFlow) -> None:
        """Note what the circuit was told with the response's head."""
        exchange = exchange_of(flow)
        if exchange is not None and flow.response is not None and flow not in self._heads:
            self._heads[flow] = Told(flow.response.data.status_code, exchange.failure, len(exchange.settled))

    def response(self, flow: HTTPFlow) -> None:
        """Write an exchange that ended with its response."""
        if flow.websocket is None:
            self._write(flow)

    def websocket_end(self, flow: HTTPFlow) -> None:
        """Write a WebSocket's exchange, when it is closed."""
        self._write(flow)

    def error(self, flow: HTTPFlow) -> None:
        """Write an exchange that was cut."""
        self._write(flow)

    def done(self) -> None:
        """Write what has not ended, and close the file."""
        for flow in list(self._begun):
            self._write(flow)
        self._file.close()

    def _write(self, flow: HTTPFlow) -> None:
        exchange = exchange_of(flow)
        if exchange is None or flow in self._done:
            return
        self._done.add(flow)
        self._begun.discard(flow)
        if self._sample < 1 and not self._chosen(exchange.request_id):
            return
        try:
            self._file.append(self._record(flow, exchange))
            self.written += 1
        except Exception:
            self.failed += 1
            if self.failed == 1:
                logger.exception("a request could not be recorded; further failures are only counted")

    def _chosen(self, request_id: str) -> bool:
        digest = blake2b(request_id.encode("utf-8"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._sample * 2**64

    def _record(self, flow: HTTPFlow, exchange: Exchange) -> bytes:
        if self._redactor is None:
            redact = exchange.snapshot.redact
            self._redactor = Redactor(with_policy(self._privacy, redact.headers, redact.query))
        state: dict[str, Any] = flow.get_state()
        state["metadata"] = {METADATA: mirror(exchange)}
        told = self._heads.get(flow)
        if told is None or len(exchange.settled) > told.settled:  # the end had something else to say than the head
            told = Told(None, blamed(exchange), 0)
        route = exchange.route
        moves = route is not None and len(route.upstream.endpoints) > 1
        key = found(exchange, self._api_keys)
        self._redactor.redact(
            state,
            lambda token: self._signature(token, exchange),
            lambda token: introspected(token, exchange, self._ring),
            exchange.snapshot.browsers,
            _ticket(exchange),
            settled=list(exchange.settled),
            moved=min(exchange.retries, len(exchange.settled)) if moves else 0,
            failed_over=[reason.code for reason in exchange.failed_over],
            status=told.status if exchange.admitted else None,
            failure=None if told.failure is None else told.failure.code,
            upstream_seconds=exchange.upstream_seconds,
            sample=self._sample,
            **({} if key is None else {NOTE: note_of(key)}),
        )
        return self._redactor.record(state)

    def _signature(self, token: bytes, exchange: Exchange) -> Signature:
        if not _looked_at(token, exchange):
            return checked_signature(token, exchange, self._ring)
        final = exchange.verdict.final
        signature = found_signature(
            None if final is None else final.reason.code,
            None if final is None else final.stage,
            of_token(exchange) is not None,
        )
        return checked_signature(token, exchange, self._ring) if signature == "unchecked" else signature


def of_token(exchange: Exchange) -> Principal | None:
    """Return the principal of a request's token, whoever else it was admitted with; None: no token was found good."""
    issuers = exchange.snapshot.issuers
    return next(
        (one for one in (exchange.principal, *exchange.beside) if one is not None and one.issuer in issuers), None
    )


def _ticket(exchange: Exchange) -> bytes | Refusal | None:
    """Return the token of the ticket that a request has shown, or why there was none to be had; None: no ticket."""
    shown, final = exchange.shown, exchange.verdict.final
    if not exchange.carried.tickets or (shown is not None and shown.place != "ticket"):
        return None
    if shown is not None and shown.text not in exchange.carried.tickets:
        return shown.text
    return UNAVAILABLE if final is None else Refusal(final.reason, final.detail)


def _looked_at(token: bytes, exchange: Exchange) -> bool:
    """Tell whether a token is the one that the decision is about, and not another that the request has as well."""
    if exchange.shown is not None:
        return token == exchange.shown.text
    return all(token not in texts for texts in exchange.carried)


def checked_signature(token: bytes, exchange: Exchange, ring: KeyRing | None) -> Signature:
    """Find out about a signature that the chain had no reason to check; what would have to wait stays unchecked."""
    if ring is None:
        return "unchecked"
    issuers = exchange.snapshot.issuers
    result = ring.authenticate(issuers, tuple(issuers), token, exchange.now)
    if isinstance(result, Principal):
        return "good"
    if isinstance(result, Refusal):
        return found_signature(result.reason.code, "authentication", authenticated=False)
    _drop(result)
    return "unchecked"


def introspected(token: bytes, exchange: Exchange, ring: KeyRing | None) -> UnverifiedToken | Refusal:
    """Return what the issuer of an opaque token has said of it, as claims, or why it was refused."""
    principal, final = (of_token(exchange), exchange.verdict.final) if _looked_at(token, exchange) else (None, None)
    if principal is None and final is not None and final.stage == "authentication":
        return Refusal(final.reason, final.detail)
    if principal is None and ring is not None:
        issuers = exchange.snapshot.issuers
        result = ring.authenticate(issuers, tuple(issuers), token, exchange.now)
        if isinstance(result, Refusal):
            return result
        if isinstance(result, Principal):
            principal = result
        else:
            _drop(result)
    if principal is None:
        return UNAVAILABLE
    claims = cast("dict[str, Json]", dict(principal.claims))
    return UnverifiedToken(INTROSPECTED, None, None, str(claims.get("iss")), b"", b"", claims)


def _drop(pending: object) -> None:
    close = getattr(pending, "close", None)  # a coroutine that never runs would warn
    if close is not None:
        close()
