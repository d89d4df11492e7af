"""Endpoints: what the gateway answers itself: the health check, and the metadata of resources (RFC 9728)."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from mitmgate.core.reason import Reason
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline import warnings
from mitmgate.pipeline.exchange import Answer, Exchange, asked_host
from mitmgate.pipeline.stage import Stage
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot

_HEALTHY = Answer(200, ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")), b'{"status":"ok"}\n')
_METADATA = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"max-age=300"))
_METHODS = frozenset({"GET", "HEAD"})


class Endpoints(Stage):
    """Answer the health check, one exact path: never authenticated, never forwarded, and it discloses nothing.

    Answer what the policy publishes of protected resources, at one exact path of one host each.

    A request of HTTP/1.0 without Host is for no service, and so for the gateway itself: it may be the health check, or
    `OPTIONS /`, with which HAProxy's `option httpchk` asks whether a server is there.
    Reads: head.path, head.method, head.host, public_host, client. Writes: exchange.answer. Denies: 400 host-invalid,
    for any other request without Host; other methods on the path are routed like any request. On failure: stage-error.
    """

    name: ClassVar[str] = "endpoints"
    reportable: ClassVar[bool] = False
    reasons: ClassVar[tuple[Reason, ...]] = (Reason.HEALTH, Reason.RESOURCE_METADATA, Reason.HOST_INVALID)
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.HOST_INVALID: "exactly one valid Host",
    }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [("endpoints", "health")]

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find a path that looks like a pattern, and routes whose requests are answered here."""
        policy, document = loaded.policy, loaded.document
        yield from warnings.like_a_pattern(document, ("endpoints", "health"), policy.endpoints.health)
        for index, route in enumerate(policy.routes):
            if route.match.exact == policy.endpoints.health:
                message = "never reached: the health check answers this path"
                yield document.warning(("routes", index, "match"), Code.NEVER_REACHED, message)

    def decide(self, exchange: Exchange) -> Step:
        """Answer, or skip."""
        head = exchange.head
        if head is None:
            raise ValueError("no head")
        if head.path == exchange.snapshot.health_path and head.method in _METHODS:
            return self._answer(exchange)
        if head.path in exchange.snapshot.resources.paths and head.method in _METHODS:
            step = self._metadata(exchange, head.path)
            if step is not None:
                return step
        if head.host:
            return self.skipped
        if head.method == "OPTIONS" and head.path == "/":
            return self._answer(exchange)
        return self.deny(Reason.HOST_INVALID, "Exactly one Host is required.")

    def _metadata(self, exchange: Exchange, path: str) -> Step | None:
        """Answer with the metadata of a resource of this host, to those whose address may come in at all."""
        document = exchange.snapshot.resources.metadata(asked_host(exchange), path)
        networks = exchange.snapshot.networks
        if document is None or (networks and (exchange.client is None or not networks.admit(exchange.client))):
            return None
        exchange.answer = Answer(200, _METADATA, document + b"\n")
        return Step(self.name, Outcome.ANSWER, Reason.RESOURCE_METADATA)

    def _answer(self, exchange: Exchange) -> Step:
        exchange.answer = _HEALTHY
        return Step(self.name, Outcome.ANSWER, Reason.HEALTH)
