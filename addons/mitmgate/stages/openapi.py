"""OpenApi: whether a request is an operation of the document that its route names, and rightly made."""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Final, NamedTuple

from mitmgate.core.openapi import Api
from mitmgate.core.path import CanonicalPath
from mitmgate.core.reason import Reason
from mitmgate.core.rewrite import upstream_path
from mitmgate.core.routing import allow_field
from mitmgate.core.shape import shape
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Outcome, Step
from mitmgate.pipeline.coverage import REACHED, Branch, Outside, Rule
from mitmgate.pipeline.exchange import Answer, Exchange
from mitmgate.pipeline.stage import Denial, Stage, route_at
from mitmgate.policy.declared import of
from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Reader
from mitmgate.policy.openapi import OpenApi as Described
from mitmgate.policy.openapi import OpenApis
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot


class OfRoute(Section):
    """Its member of a route."""

    openapi: Described | None = None
    """The API's document: what is no operation of it is denied."""


class Apis(NamedTuple):
    """What the documents describe, by the name of the route that names one."""

    of_routes: Mapping[str, Api]


class OpenApi(Stage):
    """Hold the head to the route's document: path, method, parameters, content type.

    Behind Authorization, so that the document can't be explored without what the route requires, and before RateLimit:
    no quota is spent for what the service never sees. The path is the one that the service gets.

    Reads: head, route, the declared length. Writes: exchange.operation; exchange.body_check, to which the protocol
    layer holds the whole body before anything is sent; answer, for the Allow field. Denies: 404 operation-unknown, 405
    operation-not-allowed, 400 parameter-missing, parameter-invalid, parameter-unknown and body-unexpected, 415
    content-type-refused, 413 body-too-large (more than is checked), 403 rewrite-refused (there is no such path). On
    failure: stage-error.
    """

    name: ClassVar[str] = "openapi"
    route_section: ClassVar[type[Section]] = OfRoute
    reasons: ClassVar[tuple[Reason, ...]] = (
        Reason.OPERATION_UNKNOWN,
        Reason.OPERATION_NOT_ALLOWED,
        Reason.PARAMETER_MISSING,
        Reason.PARAMETER_INVALID,
        Reason.PARAMETER_UNKNOWN,
        Reason.CONTENT_TYPE_REFUSED,
        Reason.BODY_UNEXPECTED,
        Reason.BODY_INVALID,
        Reason.BODY_TOO_LARGE,
        Reason.REWRITE_REFUSED,
    )
    changes: ClassVar[Mapping[Reason, str]] = {
        Reason.REWRITE_REFUSED: "values that a header field can hold: visible ASCII",
    }

    def __init__(self, *, decides: bool = False) -> None:
        """decides: requests are checks (core/check.py): the path is the client's, and nobody has the body to check."""
        self._decides = decides

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        head, route, operation = exchange.head, exchange.route, exchange.operation
        if head is None or route is None or not _is_described(exchange):
            return {}
        return {
            "method": head.method,
            "path": head.path if self._decides else upstream_path(route, head.path),
            "operation": None if operation is None else operation.name,
            "query": sorted(operation.query) if operation is not None else [],
            "content_type": head.headers.text("content-type"),
            "body": "checked when it is there" if exchange.body_check is not None else "not looked at",
        }

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        at = route_at(exchange)
        return [(*at, "openapi")] if at else []

    def change(self, denial: Denial) -> list[str]:
        """Say what would have to be otherwise for it to admit."""
        made = _CHANGES.get(denial.step.reason)
        return super().change(denial) if made is None else made(denial)

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count operations: each is a line of the document."""
        described = _described(loaded)
        for index, route in enumerate(loaded.policy.routes):
            for name in described[index].operations if index in described else ():
                yield Rule(
                    ("routes", index, "openapi", "document", name), f"operation {name} of {route.name}", (REACHED,)
                )

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        if step.outcome is Outcome.ADMIT and exchange.operation is not None:
            yield (*route_at(exchange), "openapi", "document", exchange.operation.name), REACHED

    def outside(self, exchange: Exchange, step: Step) -> Outside | None:
        """Say what a request was that is no operation of the document, or none that is rightly made."""
        head, route = exchange.head, exchange.route
        if step.outcome in {Outcome.ADMIT, Outcome.SKIP} or head is None or route is None:
            return None
        if exchange.operation is not None:
            asked = exchange.operation.name
        else:
            path = upstream_path(route, head.path) or head.path
            asked = f"{head.method} {shape(path)}"
        return Outside(route.name, step.reason.code, asked, step.detail)

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find routes whose document has nothing where their requests go: it denies them all."""
        routes = {route.name: route for route in snapshot.routes.routes}
        for index, api in _described(loaded).items():
            route = routes[loaded.policy.routes[index].name]
            path = upstream_path(route, route.path)
            if path is not None and not api.reaches(path, exact=route.exact):
                message = f"the document has no operation at {path}, which is what the service gets: all is denied"
                hint = "set base to the path that the document's paths are below"
                yield loaded.document.warning(("routes", index, "openapi"), Code.NEVER_MATCHES, message, hint)

    @classmethod
    def mistakes(cls, document: Document) -> Iterator[Problem]:
        """Find bodies that would have to be whole, and stream."""
        routes = document.at(("routes",))
        for index in range(len(routes) if isinstance(routes, list) else 0):
            at: Location = ("routes", index)
            if document.at((*at, "openapi", "body")) is not None and document.at((*at, "stream")) == "always":
                message = "a body that is checked is held until it is whole"
                yield document.problem((*at, "stream"), message, hint="leave stream: always out")

    @classmethod
    def read(cls, reader: Reader) -> tuple[OpenApis, list[Problem]]:
        """Read the documents."""
        described = OpenApis(reader.document, reader.files, reader.material.hashes)
        described.read()
        return described, described.problems

    @classmethod
    def compiled(cls, loaded: Loaded) -> Apis:
        """Take what each document describes, by the route's name."""
        described = _described(loaded)
        routes = enumerate(loaded.policy.routes)
        return Apis({route.name: described[index] for index, route in routes if of(route, OfRoute).openapi is not None})

    def decide(self, exchange: Exchange) -> Step:
        """Find the operation, and hold the head to it."""
        apis, route = exchange.snapshot.compiled[self.name], exchange.route
        if not isinstance(apis, Apis):
            raise TypeError("no documents")
        api = None if route is None else apis.of_routes.get(route.name)
        if route is None or api is None:
            return self.skipped
        head = exchange.head
        if head is None:
            raise LookupError("the head was not made")
        path = head.path if self._decides else upstream_path(route, head.path)
        if path is None:
            return self.deny(Reason.REWRITE_REFUSED, "The rewritten path would be ambiguous.")
        operation, refusal, allow, body = api.judge(
            head.method,
            CanonicalPath(path, head.odd),
            head.query,
            head.headers,
            exchange.request.declared_body,
            (exchange.snapshot.client_fields.identity, route.rewrite.remove),
        )
        exchange.operation = operation
        if refusal is None and self._decides and operation is not None and operation.checks_bodies:
            return self.deny(Reason.BODY_INVALID, "The body has to be checked, and a proxy asks without it.")
        if refusal is None:
            exchange.body_check = body
            return self.admitted
        if allow:
            exchange.answer = Answer(405, fields=allow_field(allow))
        return self.deny(refusal.reason, refusal.detail)


def _described(loaded: Loaded) -> Mapping[int, Api]:
    """Return what was read, by the number of the route."""
    described = loaded.read[OpenApi.name]
    if not isinstance(described, OpenApis):
        raise TypeError("no documents")
    return described.apis


def _is_described(exchange: Exchange) -> bool:
    apis, route = exchange.snapshot.compiled[OpenApi.name], exchange.route
    return isinstance(apis, Apis) and route is not None and route.name in apis.of_routes


def _described_change(denial: Denial) -> list[str]:
    route, operation = denial.exchange.route, denial.exchange.operation
    models = denial.exchange.snapshot.policy.routes
    named = [of(model, OfRoute).openapi for model in models if route is not None and model.name == route.name]
    document = named[0].document if named and named[0] is not None else ""
    if not document:
        return []
    what = "a request" if operation is None else f"a request of {operation.name} (line {operation.line})"
    return [f"{what} as {document} describes it: {denial.member('openapi')}"]


_CHANGES: Final[Mapping[Reason, Callable[[Denial], list[str]]]] = {
    Reason.OPERATION_UNKNOWN: _described_change,
    Reason.OPERATION_NOT_ALLOWED: _described_change,
    Reason.PARAMETER_MISSING: _described_change,
    Reason.PARAMETER_INVALID: _described_change,
    Reason.PARAMETER_UNKNOWN: _described_change,
    Reason.CONTENT_TYPE_REFUSED: _described_change,
    Reason.BODY_UNEXPECTED: _described_change,
    Reason.BODY_INVALID: _described_change,
    Reason.BODY_TOO_LARGE: _described_change,
}
