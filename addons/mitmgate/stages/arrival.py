"""Arrival: the first stage. It takes the ingress snapshot and says who is at the other end."""

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Final

from cryptography.hazmat.primitives.serialization import Encoding
from mitmproxy.connection import Client, Connection
from mitmproxy.http import HTTPFlow

from mitmgate.audit.writer import Denial
from mitmgate.core.address import peer_address
from mitmgate.core.certificate import ClientCertificate
from mitmgate.core.check import Check, Kind, kind_of, original_request, without_description
from mitmgate.core.forwarding import told_by
from mitmgate.core.headers import Headers
from mitmgate.core.proof import digest_of, passed_thumbprint
from mitmgate.core.reason import Reason
from mitmgate.core.refusal import Refusal
from mitmgate.core.request import Request
from mitmgate.core.trace import Identifiers, valid_request_id, valid_traceparent
from mitmgate.core.verdict import Outcome, Step, Verdict
from mitmgate.keys import certificate as certificates
from mitmgate.pipeline.exchange import Exchange, Rejection, begin, exchange_of, rejection_of, taken
from mitmgate.pipeline.message import headers_of
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot, SnapshotSource

Pressure = Denial | Awaitable[Denial | None] | None

_EVERYONE: Final = frozenset({"0.0.0.0/0", "::/0"})


class Arrival(Stage):
    """Begin an exchange: ingress snapshot, request id, client address, policy in force.

    Reads: the flow's request and peer; X-Request-ID and X-Forwarded-For, -Proto, -Host and -Port, believed from
    `trusted_proxies` alone.
    Where this process only decides, it takes the original request out of a check (core/check.py), which is what every
    other stage, the record and a recording then see; the flow too, so that nothing of the description is shown twice.
    Writes: the exchange. Denies: 503 audit-unavailable, where the policy wants each request recorded and
    there is no room; a flow that the protocol layer refused gets its final step `protocol` here, and so does what is
    no check: 403 check-untrusted, from a peer that the policy does not trust; 400 check-unclear.
    On failure: the flow stays without exchange, and Enforcer denies it.
    """

    name: ClassVar[str] = "arrival"
    reportable: ClassVar[bool] = False
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.AUDIT_UNAVAILABLE,)

    def __init__(
        self,
        source: SnapshotSource,
        pressure: Callable[[], Pressure],
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.perf_counter,
        decides: bool = False,
    ) -> None:
        """pressure: the audit trail's, asked once a request. clock: Unix seconds. ticks: monotonic seconds.

        decides: requests are checks, of which there is nothing to forward.
        """
        self._source = source
        self._pressure = pressure
        self._clock = clock
        self._ticks = ticks
        self._decides = decides
        self._identifiers = Identifiers(os.urandom)

    def requestheaders(self, flow: HTTPFlow) -> Awaitable[None] | None:
        """Begin the exchange of a new flow, then run as any stage."""
        if not flow.live or (exchange_of(flow) is not None and flow.is_replay is None):
            # A flow that was loaded from a file has been decided on, and is going nowhere.
            return None
        request, rejection = taken(flow) or ingress(flow), rejection_of(flow)
        if self._decides:
            exchange, rejection = self._begin_check(flow, request, rejection)
        else:
            exchange = self.begin(request)
        begin(flow, exchange)
        if rejection is not None:
            exchange.verdict.record(Step("protocol", Outcome.DENY, rejection.reason, rejection.detail))
            return None
        return self.run(exchange)

    def begin(self, request: Request) -> Exchange:
        """Make the exchange of a request under the policy that is in force now."""
        snapshot, headers = self._source.snapshot, request.headers
        request_id, trace = self._identifiers()
        scheme, proxies = request.scheme, snapshot.trusted_proxies
        client = peer_address(request.peer)
        host = port = None
        if proxies.networks and client is not None and client in proxies:
            request_id = valid_request_id(headers.one(b"x-request-id")) or request_id
            client, told_scheme, host, port = told_by(client, headers, proxies)
            scheme = told_scheme or scheme
        return Exchange(
            snapshot,
            request,
            request_id,
            self._clock(),
            self._ticks(),
            Verdict(snapshot.digest),
            client,
            scheme,
            valid_traceparent(headers.one(b"traceparent")) or trace,
            host,
            port,
        )

    def _begin_check(
        self, flow: HTTPFlow, request: Request, rejection: Rejection | None
    ) -> tuple[Exchange, Rejection | None]:
        """Make the exchange of what has come to a listener that only decides, and say why it may be no check."""
        snapshot = self._source.snapshot
        kind = kind_of(request.target)  # also of what is refused: the proxy is told in a way that it understands
        if rejection is None and not _is_for_gateway(request, snapshot):
            try:
                request = _original(request, kind, snapshot)
            except ValueError as error:
                rejection = Rejection(Reason.CHECK_UNCLEAR, f"{error}.")
            except PermissionError:
                rejection = Rejection(Reason.CHECK_UNTRUSTED, "The policy lets this peer ask for no decision.")
        check = Check(kind, _peer(flow.client_conn))
        if rejection is not None:
            request = replace(request, headers=Headers(without_description(request.headers)))
        data = flow.request.data
        data.method, data.path = request.method.encode("latin-1"), request.target.encode("latin-1")
        data.headers, data.scheme = headers_of(request.headers.fields), request.scheme.encode("ascii")
        data.authority = request.authority.encode("latin-1")
        exchange = self.begin(request)
        exchange.check = check
        return exchange, rejection

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return {
            "peer": exchange.request.peer,
            "client": "unknown" if exchange.client is None else str(exchange.client),
            "scheme": exchange.scheme,
        }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [("trusted_proxies",)]

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find peers that are believed, and should not be."""
        policy, document = loaded.policy, loaded.document
        for index, network in enumerate(policy.trusted_proxies):
            if network in _EVERYONE:
                message = "everyone is a trusted proxy, and may claim any address"
                yield document.warning(("trusted_proxies", index), Code.TRUSTS_EVERYONE, message)
        for index, network in enumerate(policy.decide.trusted):
            if network in _EVERYONE:
                message = "everyone may ask for decisions, and say of any request what he likes"
                yield document.warning(("decide", "trusted", index), Code.TRUSTS_EVERYONE, message)
        if "decide" in policy.model_fields_set and not policy.decide.trusted:
            message = "no peer is trusted, so that every check is refused"
            hint = "list the proxies in trusted"
            yield document.warning(("decide",), Code.DECIDES_FOR_NOBODY, message, hint, key=True)

    def decide(self, exchange: Exchange) -> Step | Awaitable[Step]:
        """Sign that the request arrived, and that its record will have a place."""
        pressure = self._pressure()
        if pressure is None or isinstance(pressure, Denial):
            return self._signed(pressure)
        return self._signed_later(pressure)

    def _signed(self, denial: Denial | None) -> Step:
        return self.admitted if denial is None else self.deny(denial.reason, denial.detail)

    async def _signed_later(self, pressure: Awaitable[Denial | None]) -> Step:
        return self._signed(await pressure)


def _is_for_gateway(request: Request, snapshot: Snapshot) -> bool:
    """Tell whether a request is one that Endpoints answers, whoever asks."""
    path = request.target.partition("?")[0]
    return request.method in {"GET", "HEAD"} and (path == snapshot.health_path or path in snapshot.resources.paths)


def _original(check: Request, kind: Kind | None, snapshot: Snapshot) -> Request:
    """Take the original request out of a check. Raises PermissionError for a peer that may not ask, ValueError."""
    peer = peer_address(check.peer)
    if peer is None or peer not in snapshot.checks:
        raise PermissionError
    if kind is None:
        raise ValueError("The path is none that a proxy asks at")
    request = original_request(check, kind, snapshot.check_proxies)
    name, rule = snapshot.proofs.certificate, snapshot.certificates
    passed = None if name is None else request.headers.one(name)
    if passed is not None:
        request = replace(request, thumbprint=passed_thumbprint(passed))
    if rule is None or (rule.field is None and kind is not Kind.ENVOY):  # which alone writes X-Forwarded-Client-Cert
        return request
    names = certificates.passed_on(check.headers, rule)
    return replace(request, names=ClientCertificate("") if isinstance(names, Refusal) else names)


def subject_of(client: Client) -> str | None:
    """Return the subject of the client's certificate (RFC 4514); the TLS layer lets only verified ones in."""
    if not client.certificate_list:
        return None
    return client.certificate_list[0].to_cryptography().subject.rfc4514_string()


def thumbprint_of(client: Client) -> str | None:
    """Return the thumbprint of the client's certificate, which the TLS layer has verified."""
    if not client.certificate_list:
        return None
    return digest_of(client.certificate_list[0].to_cryptography().public_bytes(Encoding.DER))


_NAMES = "mitmgate_names"


def names_of(client: Client) -> ClientCertificate | None:
    """Return the names of the client's certificate, which are read once for a connection."""
    if not client.certificate_list:
        return None
    certificate = client.certificate_list[0]
    known: ClientCertificate | None = client.__dict__.get(_NAMES)
    if known is None:
        known = client.__dict__[_NAMES] = certificates.names_of(certificate.to_cryptography())
    return known


def _peer(connection: Connection) -> str:
    """Return its address, "" where it is gone: `Client` is annotated as if it always had one."""
    return connection.peername[0] if connection.peername else ""


def ingress(flow: HTTPFlow) -> Request:
    """Take the request of a flow as it arrived.

    A body without Content-Length is there only where Transfer-Encoding says so (RFC 9112, section 6.3).
    """
    data = flow.request.data
    headers = Headers(data.headers.fields)
    length = headers.one(b"content-length")
    if b"transfer-encoding" in headers:
        declared = None
    else:
        declared = int(length) if length is not None and length.isdigit() and len(length) < 19 else 0
    client = flow.client_conn
    return Request(
        method=data.method.decode("latin-1"),
        target=data.path.decode("latin-1"),
        version=data.http_version.decode("latin-1"),
        headers=headers,
        scheme="https" if client.tls else "http",
        authority=data.authority.decode("latin-1"),
        peer=_peer(client),
        declared_body=declared,
        certificate=subject_of(client),
        thumbprint=thumbprint_of(client),
        names=names_of(client),
    )
