"""Enforcer: the last entry of mitmproxy's addon chain, and the only place where a request is let through or denied.

Everything before it may fail: an exception in an addon is logged by mitmproxy and the request goes on
(`addonmanager.safecall`). So Enforcer asks for positive evidence, every required stage's own signature in order, and
until it has that, the flow points to a name that can't be resolved.
"""

import logging
from http import HTTPStatus
from typing import ClassVar

from mitmproxy.http import HTTPFlow, Response
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from mitmgate.core.check import Kind
from mitmgate.core.grpc import is_call, status_fields
from mitmgate.core.problem import MEDIA_TYPE, problem_body
from mitmgate.core.reason import Reason
from mitmgate.core.rules import Endpoint
from mitmgate.core.verdict import Outcome, Step
from mitmgate.descriptors import Seldom
from mitmgate.pipeline.challenges import of_ended
from mitmgate.pipeline.exchange import Answer, Exchange, exchange_of
from mitmgate.pipeline.message import headers_of, make_response
from mitmgate.policy.snapshot import SnapshotSource

logger = logging.getLogger(__name__)
_unsigned, _failed = Seldom(logger), Seldom(logger)

_PROBLEM_FIELDS = ((b"Content-Type", MEDIA_TYPE), (b"Cache-Control", b"no-store"))

BLACK_HOLE = "upstream.invalid"  # RFC 6761, section 6.4: never resolves


class Enforcer:
    """Write the verdict on the flow. An addon entry of its own, so that no other addon's failure skips it.

    Reads: the verdict. Writes: flow.response for a denial or an answer; flow.request, and exchange.admitted, for an
    admitted request. Denies: 503 stage-error where a required stage has not signed. On failure: 503, and where even
    that can't be written, the flow is killed.

    Where this process only decides, an admitted check is answered with 200, and nothing else ever with a 2xx: to the
    proxy that asks, any of these means that the request may go on.
    """

    name: ClassVar[str] = "mitmgate-enforcer"
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.STAGE_ERROR, Reason.POLICY_UNAVAILABLE)

    def __init__(self, source: SnapshotSource, required: tuple[str, ...]) -> None:
        """required: the names of the stages that must have signed, in order."""
        self._source = source
        self.required = required
        self.decides = False
        """Whether requests are checks. Set by the host, before there are any."""

    def requestheaders(self, flow: HTTPFlow) -> None:
        """Let the request through, or answer it."""
        if not flow.live:
            return  # loaded from a file: there is no connection that it could go out on
        try:
            exchange = exchange_of(flow)
            if exchange is None:
                flow.response = _response(Reason.POLICY_UNAVAILABLE, "", "", ())
            elif not self.enforce(exchange):
                flow.response = response_of(exchange)
            elif flow.response is None:
                forward(flow, exchange)
                exchange.admitted = True
                if self.decides:
                    flow.response = _allowed(exchange)
        except Exception as error:
            _failed.log(logging.ERROR, "enforcer failed", error=error)
            try:
                flow.response = _response(Reason.STAGE_ERROR, "", "", ())
            except Exception:
                flow.kill()

    def enforce(self, exchange: Exchange) -> bool:
        """Tell whether the request may go on; where nothing was decided and evidence is missing, deny it here."""
        verdict = exchange.verdict
        if verdict.final is not None:
            return False
        understood = exchange.check is not None and exchange.check.kind is not None
        ready = exchange.forward is not None and exchange.endpoint is not None and understood is self.decides
        if not (ready and verdict.admitted_by(self.required)):
            signed = {step.stage for step in verdict.steps}
            missing = [name for name in self.required if name not in signed]
            text = "request %s denied: not signed by %s"
            _unsigned.log(logging.ERROR, text, exchange.request_id, missing or "all in order")
            verdict.record(
                Step("enforcer", Outcome.DENY, Reason.STAGE_ERROR, "The gateway could not decide on this request.")
            )
            return False
        return True

    def server_connect(self, data: ServerConnectionHookData) -> None:
        """Refuse a connection to anything but an endpoint of the policy in force, whoever asks for it."""
        address = data.server.address
        # First the refusal: if what follows raises, mitmproxy logs it and dials, unless an error is there.
        earlier, data.server.error = data.server.error, "not an endpoint of the policy"
        upstreams = self._source.snapshot.upstreams.values()
        if any(
            address is not None and (endpoint.host, endpoint.port) == (address[0], address[1])
            for upstream in upstreams
            for endpoint in upstream.endpoints
        ):
            data.server.error = earlier


def point_at(flow: HTTPFlow, endpoint: Endpoint) -> None:
    """Point a flow at an endpoint."""
    request = flow.request.data
    request.scheme = endpoint.scheme.encode("ascii")
    request.host = endpoint.host
    request.port = endpoint.port


def forward(flow: HTTPFlow, exchange: Exchange) -> None:
    """Put the admitted request on the flow: the parts that Rewrite made, the framing that the body has."""
    made, endpoint = exchange.forward, exchange.endpoint
    if made is None or endpoint is None:
        raise ValueError("nothing to forward")
    request = flow.request.data
    declared = exchange.request.declared_body
    fields = made.fields
    if declared is None:
        fields = (*fields, (b"Transfer-Encoding", b"chunked"))
    elif declared or b"content-length" in exchange.request.headers:
        fields = (*fields, (b"Content-Length", b"%d" % declared))
    request.headers = headers_of(fields)
    request.method = made.method.encode("latin-1")
    request.path = made.target.encode("latin-1")
    request.authority = b""
    point_at(flow, endpoint)


def response_of(exchange: Exchange) -> Response:
    """Make the response of a denied or answered request."""
    final = exchange.verdict.final
    if final is None:
        raise ValueError("nothing was decided")
    if final.outcome is Outcome.ANSWER:
        answer = exchange.answer
        if answer is None:
            raise ValueError("an answer without content")
        return _for_check(exchange, _make(answer.status, answer.fields, answer.body))
    if final.outcome is not Outcome.DENY:
        raise ValueError(f"{final.stage} has no outcome {final.outcome!r}")
    return problem_response(exchange, final.reason, final.detail)


def problem_response(exchange: Exchange, reason: Reason, detail: str = "") -> Response:
    """Make a problem response (RFC 9457) with the exchange's request id, challenge and extra fields.

    A gRPC call is answered with a gRPC status: its client would not read anything else. It is a 200, and so none that
    the proxy may be given that asks about a call.
    """
    extra: tuple[tuple[bytes, bytes], ...] = ()
    final = exchange.verdict.final
    if final is not None and final.outcome is Outcome.DENY:
        answer: Answer | None = exchange.answer
        extra = () if answer is None else answer.fields
        # In report mode a challenge may be left of a 401 that was only observed.
        if exchange.challenge is not None and (reason.status in {401, 403} or reason is Reason.CREDENTIAL_AMBIGUOUS):
            extra = (*extra, (b"WWW-Authenticate", exchange.challenge.encode("latin-1")))
    elif reason.status == 401:  # what had admitted it has ended meanwhile
        extra = ((b"WWW-Authenticate", of_ended(exchange, reason).encode("latin-1")),)
    if exchange.check is None and is_call(exchange.request):
        fields = status_fields(reason, detail, exchange.request.headers.one(b"content-type") or b"")
        return _make(HTTPStatus.OK, (*fields, _PROBLEM_FIELDS[1], *extra), b"")
    return _for_check(exchange, _response(reason, detail, exchange.request_id, extra))


def _allowed(exchange: Exchange) -> Response:
    """Answer a check that is admitted: what the gateway would have told the service, for its proxy to tell it.

    A field of identity that there is nothing to say in is there all the same, empty, so that a proxy which copies it
    writes over what its client sent.
    """
    made = exchange.forward
    if made is None:
        raise ValueError("nothing to tell")
    told = {name.lower() for name, _ in made.told}
    empty = tuple((name, b"") for name in sorted(exchange.snapshot.client_fields.identity - told))
    return _make(HTTPStatus.OK, (*made.told, *empty, _PROBLEM_FIELDS[1]), b"")


def _for_check(exchange: Exchange, response: Response) -> Response:
    """Give the response to a check a status that its proxy takes for what it is; the real one is in a field then.

    An answer of ours is no permission. nginx knows 2xx, 401 and 403, makes a 500 of anything else, and drops the body.
    """
    check = exchange.check
    if check is None or check.kind is None:
        return response
    data = response.data
    nginx, permits = check.kind is Kind.NGINX, 200 <= data.status_code < 300
    if permits or nginx:
        told = [(b"X-Decision-Status", b"%d" % data.status_code)]
        body = (data.content or b"").removesuffix(b"\n")
        if nginx and body and body.isascii() and body.decode("ascii").isprintable():
            told.append((b"X-Decision-Body", body))
        data.headers.fields = (*data.headers.fields, *told)
    if permits or (nginx and data.status_code not in {401, 403}):
        fields = data.headers.fields
        return _make(
            403, tuple(field for field in fields if field[0] not in {b"Content-Length", b"Date"}), data.content or b""
        )
    return response


def _response(reason: Reason, detail: str, request_id: str, extra: tuple[tuple[bytes, bytes], ...]) -> Response:
    return _make(reason.status, (*_PROBLEM_FIELDS, *extra), problem_body(reason, detail, request_id))


def _make(status: int, fields: tuple[tuple[bytes, bytes], ...], body: bytes) -> Response:
    if status != 204:
        fields = (*fields, (b"Content-Length", b"%d" % len(body)))
    return make_response(int(status), headers_of(fields), body)  # a plain number: HTTPStatus is none to flow files
