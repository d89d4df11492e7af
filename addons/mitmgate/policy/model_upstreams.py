"""The `upstreams` of a policy: services, their endpoints, and how to talk to them."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from mitmgate.core.authority import parse_authority
from mitmgate.core.rules import Endpoint
from mitmgate.core.trailers import never_forwarded
from mitmgate.policy.scalars import Duration, HeaderName, Integer, Share, Text, duration, share, wrong
from mitmgate.policy.section import Section

_PORTS = {"http": 80, "https": 443}


def parse_endpoint(text: str, *, http2: bool = False) -> Endpoint:
    """Read an endpoint's URL, scheme://host[:port]. Raises ValueError for anything else."""
    scheme, colon, rest = text.partition("://")
    authority = parse_authority(rest.removesuffix("/"))
    if not colon or authority is None:
        raise ValueError("not scheme://host[:port]")
    host, port = authority
    if scheme == "http":
        return Endpoint("http", host, port or _PORTS["http"], http2)
    if scheme == "https":
        return Endpoint("https", host, port or _PORTS["https"], http2)
    raise ValueError("neither http nor https")


def _endpoint(text: str) -> str:
    try:
        parse_endpoint(text)
    except ValueError:
        hint = "write http://HOST:PORT"
        scheme, colon, rest = text.rpartition("@")[2].partition("://")  # a password may hold any other mark of a URL
        if not colon:
            scheme, rest = text.partition("://")[0] if "://" in text else "http", scheme
        try:
            parts = urlsplit(f"{scheme}://{rest}")
            shorter = f"{parts.scheme}://{parts.netloc}"
            parse_endpoint(shorter)
            hint = f"did you mean {shorter}?"
        except ValueError:
            pass
        message = "must be http://host[:port] or https://host[:port], without a path or credentials"
        raise wrong(message, hint, unquoted=message) from None
    return str(text)


def _host(text: str) -> str:
    if text not in {"preserve", "upstream"} and parse_authority(text) is None:
        raise wrong("must be preserve, upstream, or a host")
    return text


def _trailer(text: str) -> str:
    if never_forwarded(text.lower().encode("ascii")):
        hint = "it belongs in a head (RFC 9110, section 6.5.1), or says what only the gateway may"
        raise wrong("can't follow a body", hint)
    return text


Status = Annotated[Integer, Field(ge=500, le=599)]


class Circuit(Section):
    """When an endpoint is left alone for a while. Every endpoint has a circuit of its own."""

    failures: Annotated[Integer, Field(ge=1, le=10000)] = 5
    """How many failures within the window open the circuit, where they are `share` of all requests in it."""
    share: Share = share("50%", "The part of the requests within the window that has to fail (percent); 0%: any.")
    window: Duration = duration("30s", "How long a failure counts (seconds).")
    open_for: Duration = duration("30s", "How long the circuit stays open before a probe (seconds).")
    probes: Annotated[Integer, Field(ge=1, le=1000)] = 1
    """How many requests may probe a half-open circuit at once."""
    statuses: tuple[Status, ...] = (500, 502, 503, 504)
    """Responses that count as failures; a client's error is none."""
    slow: Duration | None = Field(
        default=None, description="A response that takes longer (seconds) counts as a failure; unset: never."
    )


class UpstreamTls(Section):
    """TLS towards an https endpoint. Files are PEM, relative to the policy."""

    ca: Text | None = None
    """The authorities that the endpoint is verified against; unset: the system's."""
    certificate: Text | None = None
    """The certificate that the gateway shows."""
    key: Text | None = None
    """The private key of the certificate."""
    server_name: Text | None = None
    """The name that is asked for and verified; unset: the endpoint's host."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise wrong(f"a certificate and its key come together: {missing} is missing", f"add {missing}")
        authority = None if self.server_name is None else parse_authority(self.server_name)
        if self.server_name is not None and (authority is None or authority[1] is not None):
            raise wrong("must be a host name", at="server_name")
        return self


class Upstream(Section):
    """A service behind the gateway."""

    endpoints: Annotated[tuple[Annotated[Text, AfterValidator(_endpoint)], ...], Field(min_length=1)]
    """Where it listens: http://host[:port] or https://host[:port], each with its own circuit."""
    protocol: Literal["http1", "h2"] = "http1"
    """What it speaks: HTTP/1.1, or HTTP/2 (as gRPC does): with TLS by ALPN, on http:// without asking."""
    connect_timeout: Duration = duration("2s", "How long connecting may take (seconds).")
    response_timeout: Duration = duration("30s", "How long the head of a response may take (seconds).")
    body_timeout: Duration | None = Field(
        default=None,
        description="How long the body of a response that is held back may take after its head (seconds); unset: as"
        " long as response_timeout.",
    )
    retries: Annotated[Integer, Field(ge=0, le=10)] = 1
    """How many further endpoints are tried, where nothing was sent or the request can be repeated."""
    host: Annotated[Text, AfterValidator(_host)] = "preserve"
    """The Host field that it gets: the client's (preserve), its own (upstream), or a literal."""
    trailers: tuple[Annotated[HeaderName, AfterValidator(_trailer)], ...] = ()
    """Fields behind a request's body (RFC 9110, section 6.5) that it knows and is given; all others are dropped."""
    circuit: Circuit = Circuit()
    tls: UpstreamTls | None = None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        urls = [parse_endpoint(endpoint).url for endpoint in self.endpoints]
        if len(set(urls)) < len(urls):
            raise wrong("an endpoint is listed twice", at="endpoints")
        return self
