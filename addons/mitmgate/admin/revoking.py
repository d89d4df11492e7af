"""/revocations and /events of the admin listener: revocations from who has the policy's secret, and from issuers."""

import asyncio
import logging
import math
import time
from hmac import compare_digest
from http import HTTPStatus
from typing import ClassVar, Final

from mitmgate.admin.pages import PROBLEM, Page
from mitmgate.core.events import TYPE, EventError, revocations_of
from mitmgate.core.jose import Json, parse_object
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.revocation import KINDS, Revocation, revocation_of
from mitmgate.net.dialler import Dialler
from mitmgate.net.resolver import Resolver
from mitmgate.policy.snapshot import Snapshot
from mitmgate.policy.units import UnitError, parse_duration
from mitmgate.services import open_revocations, open_ring
from mitmgate.stores.revocations import ListFullError, Source

logger = logging.getLogger(__name__)

_CODES: Final = {
    Reason.TOKEN_ISSUER_UNKNOWN: "invalid_issuer",
    Reason.TOKEN_KEY_UNKNOWN: "invalid_key",
    Reason.TOKEN_SIGNATURE_INVALID: "authentication_failed",
    Reason.KEYS_UNAVAILABLE: "authentication_failed",
}
"""Codes of RFC 8935, section 2.4."""
_MEMBERS: Final = frozenset({"issuer", "kind", "value", "before", "for", "lift"})


class Revoker:
    """What the page asks: the list, and whose word counts."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Open the policy's list. Raises UserError."""
        resolver, rule = snapshot.policy.resolver, snapshot.policy.revocation
        dialler = Dialler(Resolver(resolver.addresses, resolver.max_stale))
        self.source: Source = open_revocations(snapshot, dialler)
        self._audience = () if rule is None or rule.events is None else rule.events.audience
        self._ring = open_ring(snapshot, dialler)
        self._ready: asyncio.Task[None] | None = None
        self.issuers = snapshot.issuers
        self._secret = snapshot.revocation_token or b""
        self._secret_name = "" if rule is None else rule.token_env or ""

    def admits(self, authorization: list[str]) -> bool:
        """Tell whether the one Authorization field has the secret. Takes as long for every wrong one."""
        scheme, _, secret = (authorization[0] if len(authorization) == 1 else "").partition(" ")
        told = secret.strip(" ").encode("utf-8", "surrogatepass")
        return compare_digest(told, self._secret) and bool(self._secret) and scheme.lower() == "bearer"

    async def events(self, body: bytes) -> list[Revocation]:
        """Read what a token of events revokes. Raises EventError."""
        if self._ready is None:
            self._ready = asyncio.create_task(self._ring.start(), name="keys for events")
        await asyncio.shield(self._ready)
        found = await self._ring.signed(body, TYPE)
        if isinstance(found, Refusal):
            raise EventError(_CODES.get(found.reason, "invalid_request"), found.detail)
        issuer, signed = found
        return revocations_of(signed.claims, issuer, self._audience, time.time())

    def read(self, body: bytes, peer: str) -> Revocation:
        """Read what is to be revoked. Raises ValueError with a sentence for who asks."""
        members = parse_object(body)
        if members is None:
            raise ValueError("the body is no plain JSON object")
        strange = members.keys() - _MEMBERS
        if strange:
            raise ValueError(f"there is no member {min(strange)!r}; there are {', '.join(sorted(_MEMBERS))}")
        kind = next((one for one in KINDS if one == members.get("kind")), None)
        if kind is None:
            raise ValueError(f"kind is one of {', '.join(KINDS)}")
        name = members.get("issuer")
        if not isinstance(name, str) or name not in self.issuers:
            raise ValueError(f"issuer is one of {', '.join(self.issuers)}")
        value, lift = members.get("value", ""), members.get("lift", False)
        if not isinstance(value, str) or not isinstance(lift, bool):
            raise ValueError("value is text, and lift is true or false")  # noqa: TRY004 - as all that is wrong here
        return revocation_of(
            self.issuers[name],
            kind,
            value,
            time.time(),
            before=_seconds(members.get("before")),
            lasting=_duration(members.get("for")),
            lifted=lift,
            by=f"admin {peer} with {self._secret_name}",
        )


def _seconds(value: Json) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("before is a number of seconds since 1970")
    return float(value)


def _duration(value: Json) -> float | None:
    if value is None:
        return None
    try:
        return parse_duration(value if isinstance(value, str) else "")
    except UnitError as error:
        raise ValueError("for is a duration, like 2h") from error


class Revocations(Page):
    """/revocations: POST with a JSON object puts one on the list; 201 says that it is there."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ("POST",)  # type: ignore[misc]  # as Page
    allowed = "POST"

    async def post(self) -> None:
        """Take one."""
        revoker: Revoker = self.settings["revoker"]
        if not revoker.admits(self.request.headers.get_list("Authorization")):
            self.set_header("WWW-Authenticate", "Bearer")
            self.problem(HTTPStatus.UNAUTHORIZED, "This needs the secret that revocation.token_env names.")
            return
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            self.problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is JSON.")
            return
        try:
            revocation = revoker.read(self.request.body, self.request.remote_ip or "")
        except ValueError as error:
            self.problem(HTTPStatus.BAD_REQUEST, f"Nothing was revoked: {error}.")
            return
        await self.add(revoker, revocation)

    async def add(self, revoker: Revoker, revocation: Revocation) -> None:
        """Put it on the list, and say so."""
        try:
            await revoker.source.add(revocation)
        except ListFullError:
            self.problem(HTTPStatus.INSUFFICIENT_STORAGE, "Nothing was revoked: there are too many revocations.")
        except Exception as error:  # whatever Redis or the disk raises: only what is on the list is revoked
            logger.error("a revocation could not be written: %s", type(error).__name__)
            self.problem(HTTPStatus.SERVICE_UNAVAILABLE, "Nothing was revoked: the list can't be written.")
        else:
            self.set_status(HTTPStatus.CREATED)
            self.told(revocation)

    def told(self, revocation: Revocation) -> None:
        """Say what was revoked."""
        self.json({"kind": revocation.kind, "issuer": revocation.issuer, "until": revocation.until})

    def problem(self, status: HTTPStatus, detail: str) -> None:
        """Answer with a problem."""
        self.set_status(status)
        self.json({"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}, PROBLEM)


class Events(Revocations):
    """/events: POST with a token of security events (RFC 8935); 202 says that what it revokes is on the list."""

    async def post(self) -> None:
        """Take one."""
        revoker: Revoker = self.settings["revoker"]
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != f"application/{TYPE}":
            self.refuse("invalid_request", f"The body is application/{TYPE}.")
            return
        try:
            revocations = await revoker.events(self.request.body.strip())
        except EventError as error:
            self.refuse(error.code, str(error))
            return
        for revocation in revocations:
            await self.add(revoker, revocation)
            if self.get_status() != HTTPStatus.CREATED:
                return
        self.set_status(HTTPStatus.ACCEPTED)
        self.finish()

    def told(self, revocation: Revocation) -> None:
        """Say nothing of one among others."""

    def refuse(self, code: str, description: str) -> None:
        """Answer as RFC 8935, section 2.3, says."""
        self.set_status(HTTPStatus.BAD_REQUEST)
        self.json({"err": code, "description": description})
