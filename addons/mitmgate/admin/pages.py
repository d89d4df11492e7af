"""The pages of the admin listener. All of these only read; whatever is wrong is a problem document (RFC 9457)."""

import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from importlib.resources import files
from ipaddress import ip_address
from typing import ClassVar, Final
from urllib.parse import urlsplit

import orjson
from tornado.template import Template
from tornado.web import Application, HTTPError, RequestHandler

from mitmgate.admin.exposition import MEDIA_TYPE, open_metrics
from mitmgate.admin.report import Report
from mitmgate.admin.status import duration, status_of

Ask = Callable[[], Awaitable[Report]]

METHODS: Final = "GET, HEAD"
PROBLEM: Final = "application/problem+json"

_PAGE: Final = Template(files("mitmgate.admin").joinpath("status.html").read_text("utf-8"), autoescape="xhtml_escape")
_FIELDS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)


class Page(RequestHandler):
    """What all pages share: who may ask, how, and what an error looks like."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ("GET", "HEAD")  # type: ignore[misc]  # tornado's is no ClassVar
    allowed: ClassVar[str] = METHODS

    def set_default_headers(self) -> None:
        """Say nothing of the server, and keep browsers from doing anything with a page but show it."""
        self.clear_header("Server")
        for name, value in _FIELDS:
            self.set_header(name, value)

    def compute_etag(self) -> None:
        """Make no validator: nothing here may be cached."""
        return None

    def prepare(self) -> None:
        """Refuse a request for another host: a page in a browser may have its own name resolve to this address."""
        hosts = self.request.headers.get_list("Host")
        if not hosts and self.request.version == "HTTP/1.0":
            return  # a health check of a load balancer; no browser asks in this way
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name is None or (name not in self.settings["hosts"] and not _is_address(name)):
            raise HTTPError(HTTPStatus.MISDIRECTED_REQUEST)

    async def report(self) -> Report:
        """Ask for the report."""
        ask: Ask = self.settings["ask"]
        return await ask()

    def json(self, members: object, media_type: str = "application/json") -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", media_type)
        self.finish(orjson.dumps(members))

    def write_error(self, status_code: int, **facts: object) -> None:
        """Answer with a problem, without internals."""
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", self.allowed)
        self.json({"type": "about:blank", "title": HTTPStatus(status_code).phrase, "status": status_code}, PROBLEM)


class Missing(Page):
    """Any other path."""

    def get(self) -> None:
        """Answer 404."""
        raise HTTPError(HTTPStatus.NOT_FOUND)

    head = get


class Live(Page):
    """/livez: the event loop turns."""

    def get(self) -> None:
        """Answer 200."""
        self.json({"status": "live"})

    head = get


class Ready(Page):
    """/readyz: whether requests should be sent here."""

    async def get(self) -> None:
        """Answer 200, or 503 with what is missing."""
        answer_readiness(self, await self.report())

    head = get


def answer_readiness(page: Page, report: Report) -> None:
    """Answer 200, or 503 with what is missing."""
    missing = report.readiness
    if not missing:
        page.json({"status": "ready"})
        return
    page.set_status(HTTPStatus.SERVICE_UNAVAILABLE)
    page.json(
        {
            "type": "urn:mitmgate:problem:not-ready",
            "title": "Not ready",
            "status": HTTPStatus.SERVICE_UNAVAILABLE.value,
            "detail": " ".join(one.detail for one in missing),
            "missing": [{"condition": one.condition.value, "detail": one.detail} for one in missing],
        },
        PROBLEM,
    )


class Root(Missing):
    """/: nothing, but for `OPTIONS /` in HTTP/1.0, with which HAProxy's `option httpchk` asks for readiness."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = (*Page.SUPPORTED_METHODS, "OPTIONS")  # type: ignore[misc]  # as Page

    async def options(self) -> None:
        """Answer as /readyz does."""
        if self.request.version != "HTTP/1.0":
            raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED)
        answer_readiness(self, await self.report())


class MetricsText(Page):
    """/metrics: OpenMetrics text."""

    async def get(self) -> None:
        """Answer with all families."""
        self.set_header("Content-Type", MEDIA_TYPE)
        self.finish(open_metrics((await self.report()).series))

    head = get


class Keys(Page):
    """/.well-known/jwks.json: the keys that upstreams verify identity assertions with (RFC 7517)."""

    async def get(self) -> None:
        """Answer with the JWK set; without assertions it is empty."""
        self.set_header("Cache-Control", "public, max-age=60")
        self.json({"keys": [dict(key) for key in (await self.report()).keys]}, "application/jwk-set+json")

    head = get


class Status(Page):
    """/status: for people, and as JSON for those who ask for it."""

    async def get(self) -> None:
        """Answer with the page, or its content."""
        self.set_header("Vary", "Accept")
        status = status_of(await self.report(), time.time())
        if "application/json" in self.request.headers.get("Accept", ""):
            self.json(status)
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(_PAGE.generate(status=status, duration=duration, shown=_shown))

    head = get


def application(ask: Ask, hosts: frozenset[str], further: Sequence[tuple[str, type[Page]]] = ()) -> Application:
    """Make the pages. ask: makes the report. hosts: lower-case names under which the listener may be asked.

    further: pages that do more than read, by path.
    """
    return Application(
        [
            *further,
            ("/", Root),
            ("/livez", Live),
            ("/readyz", Ready),
            ("/metrics", MetricsText),
            ("/status", Status),
            (r"/\.well-known/jwks\.json", Keys),
        ],
        default_handler_class=Missing,
        ask=ask,
        hosts=hosts,
        log_function=_no_access_log,
    )


def _no_access_log(_: RequestHandler) -> None:
    """Write nothing: a scrape every few seconds is no news."""


def _host_name(field: str) -> str | None:
    """Return the host of a Host field in lower case, without brackets and port; None where there is none."""
    try:
        parts = urlsplit(f"//{field}")
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname if not parts.path and not parts.query and parts.username is None else None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
