"""The pages of the admin listener. All of these only read; whatever is wrong is a problem document (RFC 9457)."""

import asyncio
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial, wraps
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from importlib.resources import files
from ipaddress import IPv6Address, ip_address
from typing import ClassVar, Final
from urllib.parse import urlsplit

import orjson
from tornado.iostream import StreamClosedError
from tornado.template import Template
from tornado.web import Application, HTTPError, RequestHandler

from mitmgate.admin.exposition import MEDIA_TYPE, open_metrics
from mitmgate.admin.feed import Feed
from mitmgate.admin.report import Report
from mitmgate.admin.status import concerns, duration, state_of, status_of
from mitmgate.admin.workers import Inquire

Ask = Callable[[], Awaitable[Report]]

METHODS: Final = "GET, HEAD"
PROBLEM: Final = "application/problem+json"

STREAMS: Final = 20
"""How many may watch the status page at once."""
PATIENCE: Final = 10.0
"""Seconds that one of them has to read what it is told; then it is dropped."""

LONGEST_REST: Final = 1.0
"""Seconds at the most that the pages rest behind one that has taken as long."""

_STYLE, _SCRIPT = (files("mitmgate.admin").joinpath(name).read_text("utf-8") for name in ("status.css", "status.js"))
_PAGE: Final = Template(files("mitmgate.admin").joinpath("status.html").read_text("utf-8"), autoescape="xhtml_escape")
_NUMBER: Final = r"([0-9]{1,18})"
_FIELDS: Final = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)


def _hash(text: str) -> str:
    """Name a script or a style that a page holds (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STATUS_POLICY: Final = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may do with the status page: run its one script, which asks the listener alone."""


class Turns:
    """Gives the pages their turn on the loop that carries the traffic: one at a time, at most half of the time.

    Whoever can reach the listener may ask without end, and what a page takes is taken from every request.
    """

    def __init__(self) -> None:
        """Nobody asks yet."""
        self._lock = asyncio.Lock()

    async def take(self, page: Callable[[], Awaitable[None]], gone: Callable[[], bool]) -> None:
        """Wait for a turn, answer, and leave the loop to others for as long as that took.

        gone: whether the client has left: no bound of connections bounds those, so that they take no turn.
        """
        async with self._lock:
            if gone():
                return
            began = time.perf_counter()
            try:
                await page()
            finally:
                await asyncio.sleep(min(time.perf_counter() - began, LONGEST_REST))


def in_turn(page: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Make a page wait for its turn. None of those that probes ask for: they wait for no flood."""

    @wraps(page)
    async def waiting(self: "Page", *asked: str) -> None:
        turns: Turns = self.settings["turns"]
        await turns.take(partial(page, self, *asked), lambda: self.gone)

    return waiting


class Page(RequestHandler):
    """What all pages share: who may ask, how, and what an error looks like."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ("GET", "HEAD")  # type: ignore[misc]  # tornado's is no ClassVar
    allowed: ClassVar[str] = METHODS
    gone = False
    """Whether the client has left: nobody reads an answer any more."""

    def on_connection_close(self) -> None:
        """Note it."""
        self.gone = True

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
        """Answer with JSON, as a line of its own."""
        self.set_header("Content-Type", media_type)
        self.finish(orjson.dumps(members) + b"\n")

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


class Root(Page):
    """/: leads to the status page; `OPTIONS /` in HTTP/1.0 is how HAProxy's `option httpchk` asks for readiness."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = (*Page.SUPPORTED_METHODS, "OPTIONS")  # type: ignore[misc]  # as Page

    def get(self) -> None:
        """Lead to the page for people."""
        self.redirect("/status")

    head = get

    async def options(self) -> None:
        """Answer as /readyz does."""
        if self.request.version != "HTTP/1.0":
            raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED)
        answer_readiness(self, await self.report())


class MetricsText(Page):
    """/metrics: OpenMetrics text."""

    @in_turn
    async def get(self) -> None:
        """Answer with all families."""
        self.set_header("Content-Type", MEDIA_TYPE)
        self.finish(open_metrics((await self.report()).series))

    head = get


class Keys(Page):
    """/.well-known/jwks.json: the keys that upstreams verify identity assertions with (RFC 7517)."""

    @in_turn
    async def get(self) -> None:
        """Answer with the JWK set; without assertions it is empty."""
        self.set_header("Cache-Control", "public, max-age=60")
        self.json({"keys": [dict(key) for key in (await self.report()).keys]}, "application/jwk-set+json")

    head = get


class Guarded(Page):
    """A page for operators: asked from this machine, or with the secret of `admin.token_env` or a certificate."""

    def prepare(self) -> None:
        """Refuse everybody else, and what another site has a browser ask."""
        super().prepare()
        headers = self.request.headers
        opened = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        if headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"} and not opened:
            self.problem(HTTPStatus.FORBIDDEN, "Another site asks for this.")
            return
        token: bytes | None = self.settings["token"]
        if self.settings["certificates"] and self.request.get_ssl_certificate():
            return  # one that an authority of client_ca has signed: others end the handshake
        if token is None:
            if self.settings["certificates"]:
                self.problem(HTTPStatus.FORBIDDEN, "This needs a client certificate of admin.tls.client_ca.")
            elif not _is_this_machine(self.request.remote_ip):
                detail = "Without admin.token_env in the policy this page is for the gateway's own machine."
                self.problem(HTTPStatus.FORBIDDEN, detail)
        elif not _holds(headers.get_list("Authorization"), token):
            self.add_header("WWW-Authenticate", 'Basic realm="mitmgate", charset="UTF-8"')
            self.add_header("WWW-Authenticate", "Bearer")
            self.problem(HTTPStatus.UNAUTHORIZED, "This needs the secret that admin.token_env names, as a password.")

    def problem(self, status: HTTPStatus, detail: str) -> None:
        """Answer with a problem."""
        self.set_status(status)
        self.json({"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}, PROBLEM)

    async def inquire(self, process: str, question: Mapping[str, object]) -> None:
        """Answer with what a process says."""
        inquire: Inquire = self.settings["inquire"]
        told = (await inquire(question, int(process))).get(int(process))
        if told is None:
            self.problem(HTTPStatus.NOT_FOUND, "The process that has decided this has ended.")
        elif "error" in told:
            self.problem(HTTPStatus.CONFLICT, str(told["error"]))
        else:
            self.json(told)


class Status(Guarded):
    """/status: for people, and as JSON for those who ask for it."""

    @in_turn
    async def get(self) -> None:
        """Answer with the page, or its content."""
        self.set_header("Vary", "Accept")
        status = status_of(await self.report(), time.time())
        found = concerns(status)
        status |= {"state": state_of(found), "concerns": [one._asdict() for one in found]}
        if "application/json" in self.request.headers.get("Accept", ""):
            self.json(status)
            return
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", _STATUS_POLICY)
        self.finish(_PAGE.generate(status=status, duration=duration, shown=_shown, style=_STYLE, script=_SCRIPT))

    head = get


class Stream(Guarded):
    """/status/stream: server-sent events, one a second (HTML, section 9.2)."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ("GET",)  # type: ignore[misc]  # as Page
    allowed = "GET"

    async def get(self) -> None:
        """Tell what happens, until the client leaves, or does not read."""
        feed: Feed = self.settings["feed"]
        if feed.looking >= STREAMS:
            self.problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{STREAMS} watch already.")
            return
        self.set_header("Content-Type", "text/event-stream")
        with feed.look():
            number = 0
            while not self.gone:
                told = await feed.after(number)
                if told is None:
                    return
                number, content = told
                self.write(b"data: " + content + b"\n\n")
                try:
                    await asyncio.wait_for(self.flush(), PATIENCE)
                except StreamClosedError:
                    return
                except TimeoutError:
                    self.request.connection.close()  # type: ignore[union-attr]  # HTTP1Connection
                    return


class Detail(Guarded):
    """/status/denials/PROCESS-NUMBER: everything that is kept of one request."""

    @in_turn
    async def get(self, process: str, number: str) -> None:
        """Answer with it."""
        await self.inquire(process, {"ask": "detail", "number": int(number)})

    head = get


class Explain(Guarded):
    """/status/denials/PROCESS-NUMBER/explain: POST decides on an edited copy, and changes nothing."""

    SUPPORTED_METHODS: ClassVar[tuple[str, ...]] = ("POST",)  # type: ignore[misc]  # as Page
    allowed = "POST"

    @in_turn
    async def post(self, process: str, number: str) -> None:
        """Answer with what each stage says."""
        if self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            self.problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body is JSON.")
            return
        try:
            edit = orjson.loads(self.request.body)
        except orjson.JSONDecodeError:
            edit = None
        if not isinstance(edit, dict):
            self.problem(HTTPStatus.BAD_REQUEST, "The body is a JSON object: method, target, fields.")
            return
        asked = {name: edit.get(name) for name in ("method", "target", "fields", "claims")}
        await self.inquire(process, {**asked, "ask": "explain", "number": int(number)})


def application(
    ask: Ask,
    hosts: frozenset[str],
    further: Sequence[tuple[str, type[Page]]] = (),
    inquire: Inquire | None = None,
    token: bytes | None = None,
    *,
    certificates: bool = False,
) -> Application:
    """Make the pages. ask: makes the report. hosts: lower-case names under which the listener may be asked.

    further: pages that do more than read, by path. inquire: asks the processes for what is no figure. token: for which
    pages of operators are shown; None: to this machine alone. certificates: whether those who have one are shown them.
    """
    asked = nobody if inquire is None else inquire
    return Application(
        [
            *further,
            ("/", Root),
            ("/livez", Live),
            ("/readyz", Ready),
            ("/metrics", MetricsText),
            ("/status", Status),
            ("/status/stream", Stream),
            (rf"/status/denials/{_NUMBER}-{_NUMBER}", Detail),
            (rf"/status/denials/{_NUMBER}-{_NUMBER}/explain", Explain),
            (r"/\.well-known/jwks\.json", Keys),
        ],
        default_handler_class=Missing,
        ask=ask,
        hosts=hosts,
        inquire=asked,
        feed=Feed(ask, asked),
        turns=Turns(),
        token=token,
        certificates=certificates,
        log_function=_no_access_log,
    )


async def nobody(question: Mapping[str, object], process: int | None = None) -> Mapping[int, Mapping[str, object]]:
    """Ask no process."""
    return {}


def _is_this_machine(address: str | None) -> bool:
    try:
        peer = ip_address(address or "")
    except ValueError:
        return False
    mapped = peer.ipv4_mapped if isinstance(peer, IPv6Address) else None
    return (peer if mapped is None else mapped).is_loopback


def _holds(authorization: list[str], token: bytes) -> bool:
    """Tell whether the one Authorization field has the secret. Takes as long for every wrong one."""
    scheme, _, told = (authorization[0] if len(authorization) == 1 else "").partition(" ")
    secret = told.strip(" ").encode("utf-8", "surrogatepass")
    if scheme.lower() == "basic":  # RFC 7617: whatever the name is
        try:
            secret = b64decode(secret, validate=True).partition(b":")[2]
        except ValueError:
            secret = b""
    elif scheme.lower() != "bearer":
        secret = b""
    return compare_digest(secret, token)


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
