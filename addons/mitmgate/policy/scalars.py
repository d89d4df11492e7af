"""The types of single values in a policy: strict, with messages that say what would be right."""

import re
from collections.abc import Callable
from ipaddress import ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from mitmgate.core.address import CidrSet
from mitmgate.core.authority import parse_authority
from mitmgate.core.path import Ambiguous, Oddity, canonical_path
from mitmgate.core.pointer import problem
from mitmgate.core.token import MAX_NAME
from mitmgate.policy.interpolation import FromEnvironment
from mitmgate.policy.problem import nearest
from mitmgate.policy.units import DURATION, SHARE, SIZE, UnitError, parse_duration, parse_share, parse_size

TOKEN = r"^[!#$%&'*+.^`|~0-9A-Za-z-]+$"  # RFC 9110, section 5.6.2, without "_"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# Fields that frame a message or belong to one connection; a policy can't set or remove them.
FRAMING = frozenset(
    {
        *("host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"),
        *("keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
    }
)
READ_BY_THE_GATEWAY = frozenset(
    {
        *("authorization", "cookie", "dpop", "origin", "sec-fetch-site", "sec-fetch-mode", "x-request-id"),
        *("access-control-request-method", "access-control-request-headers", "content-type", "content-encoding"),
        *("sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "sec-websocket-extensions"),
        *("via", "max-forwards", "forwarded", "traceparent"),
    }
)
"""Fields of a client by which it is decided. Who writes one of these towards services has the client's own removed
first, and the gateway would decide without it."""


def wrong(message: str, hint: str = "", at: str = "", unquoted: str = "") -> PydanticCustomError:
    """Make the error of a validator. hint: what would be right. at: the member of the section that it is about.

    unquoted: the message for a value that nobody may see, where message or hint quote a part of the value.
    """
    context = {"message": message, "hint": hint, "at": at, "unquoted": unquoted}
    return PydanticCustomError("policy", "{message}", context)


def _from_environment(read: Callable[[str], object]) -> BeforeValidator:
    """Let a value that is no text come from the environment, which knows only text."""

    def validate(value: Any) -> Any:
        return read(value) if isinstance(value, FromEnvironment) else value

    return BeforeValidator(validate)


def _integer(text: str) -> object:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else text


def _boolean(text: str) -> object:
    return {"true": True, "false": False}.get(text, text)


Integer = Annotated[int, Strict(), _from_environment(_integer)]
Boolean = Annotated[bool, Strict(), _from_environment(_boolean)]
Port = Annotated[Integer, Field(ge=0, le=65535)]
Count = Annotated[Integer, Field(ge=1, le=10**12)]


def _visible(text: str) -> str:
    if not text:
        raise wrong("must not be empty")
    if not text.isprintable():
        raise wrong("must not hold control characters")
    if text != text.strip():
        raise wrong("must not begin or end with a space")
    return str(text)


Text = Annotated[str, Strict(), AfterValidator(_visible)]


def _duration(value: object) -> float:
    return _with_unit(value, parse_duration, "a duration, like 30s")


def _positive_duration(value: object) -> float:
    seconds = _duration(value)
    if seconds == 0:
        raise wrong("must be more than zero")
    return seconds


def _size(value: object) -> int:
    return _with_unit(value, parse_size, "a size, like 512KiB")


def _share(value: object) -> float:
    return _with_unit(str(value) if isinstance(value, float) else value, parse_share, "a share, like 50%")


def _with_unit[N: (int, float)](value: object, parse: Callable[[str], N], wanted: str) -> N:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong(f"must be {wanted}")
    try:
        return parse(str(value))
    except UnitError as error:
        raise wrong(str(error), error.hint, unquoted=str(error)) from None


_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": DURATION, "examples": ["250ms", "2s", "5m", "1h"]})
Duration = Annotated[float, PlainValidator(_positive_duration), _DURATION_SCHEMA]
DurationOrZero = Annotated[float, PlainValidator(_duration), _DURATION_SCHEMA]
Size = Annotated[
    int,
    PlainValidator(_size),
    WithJsonSchema({"type": "string", "pattern": SIZE, "examples": ["100B", "512KiB", "10MiB"]}),
]


Share = Annotated[
    float,
    PlainValidator(_share),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": SHARE}, {"const": 0}], "examples": ["50%"]}),
]


def duration(default: str, description: str) -> Any:
    """Make a field of type Duration: its default as a policy writes it, in the model and in the schema."""
    return Field(parse_duration(default), description=description, json_schema_extra={"default": default})


def size(default: str, description: str) -> Any:
    """Make a field of type Size: its default as a policy writes it, in the model and in the schema."""
    return Field(parse_size(default), description=description, json_schema_extra={"default": default})


def share(default: str, description: str) -> Any:
    """Make a field of type Share: its default as a policy writes it, in the model and in the schema."""
    return Field(parse_share(default), description=description, json_schema_extra={"default": default})


def _name(text: str) -> str:
    if re.fullmatch(NAME, text) is None:
        raise wrong("must be a name: letters, digits, '.', '_' and '-', 64 at most")
    return str(text)


Name = Annotated[str, Strict(), AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME})]


def _cidr(text: str) -> str:
    try:
        CidrSet([text])
    except ValueError:
        try:
            hint = f"did you mean {ip_network(text, strict=False)}?"
            message = "must be a network without host bits"
        except ValueError:
            hint, message = "write 192.0.2.0/24, 2001:db8::/32 or one address", "must be a network"
        raise wrong(message, hint, unquoted=message) from None
    return str(text)


Cidr = Annotated[str, Strict(), AfterValidator(_cidr)]


def _header(text: str) -> str:
    if re.fullmatch(TOKEN, text) is None:
        suggestion = text.replace("_", "-").replace(" ", "-")
        usable = re.fullmatch(TOKEN, suggestion) is not None
        what = "must be a header name without '_'" if "_" in text else "must be a header name"
        raise wrong(what, f"did you mean {suggestion}?" if usable else "", unquoted=what)
    return str(text)


HeaderName = Annotated[str, Strict(), AfterValidator(_header), WithJsonSchema({"type": "string", "pattern": TOKEN})]


def _header_value(text: str) -> str:
    if re.fullmatch(r"[ -~]*", text) is None or text != text.strip():
        raise wrong("must be a header value: visible ASCII and spaces within")
    return str(text)


HeaderValue = Annotated[str, Strict(), AfterValidator(_header_value)]


def _method(text: str) -> str:
    if text in {"CONNECT", "TRACE"}:
        raise wrong(f"{text} is never forwarded")
    if re.fullmatch(r"[A-Z][A-Z-]{0,31}", text) is None:
        raise wrong("must be a method in capitals", nearest(text, METHODS))
    return str(text)


Method = Annotated[str, Strict(), AfterValidator(_method)]


def _host(text: str) -> str:
    pattern = text[2:] if text.startswith("*.") else text
    parsed = parse_authority(pattern)
    if parsed is None:
        message = "must be a host name"
        raise wrong(message, _host_hint(text), unquoted=message)
    host, port = parsed
    if port is not None:
        message = "must be a host without a port"
        raise wrong(message, f"did you mean {text.rpartition(':')[0]}?", unquoted=message)
    return f"*.{host}" if text.startswith("*.") else host


def _host_hint(text: str) -> str:
    """Say what was probably meant: the host of a URL, or a name as it goes over the wire (RFC 5890, A-label)."""
    if text == "*":
        return "leave hosts out for every host"
    named = text.partition("://")[2] if "://" in text else text
    host = host_on_the_wire(named.partition("/")[0])
    parsed = parse_authority(host.removeprefix("*."))
    if parsed is not None and parsed[0] not in text.split("://")[:1]:
        return f"did you mean {'*.' * host.startswith('*.')}{parsed[0]}?"
    return "write api.example, or *.example for every host below it"


def host_on_the_wire(host: str) -> str:
    """Return a host name as clients send it, where it is one of another script than Latin; else the text itself."""
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


HostPattern = Annotated[str, Strict(), AfterValidator(_host)]


def _path(text: str) -> str:
    canonical, message = canonical_path(text), "must be a canonical path"
    pattern = pattern_in(text)
    if isinstance(canonical, Ambiguous):
        hint = "" if text.startswith("/") else f"did you mean /{text}?"
        if pattern and text.startswith("/"):
            hint = f"a path is no pattern; prefix: {text.partition(pattern)[0].rstrip('/') or '/'} takes all below it"
        why = f"{message}: {canonical.detail[0].lower()}{canonical.detail[1:].rstrip('.')}"
        raise wrong(why, hint, unquoted=why)
    odd = canonical.odd - {Oddity.ENCODED_SLASH, Oddity.ENCODED_DELIMITER}
    if odd:
        why = f"{message}: the path holds {min(odd)}"
        raise wrong(why, unquoted=why)
    if canonical.text != text:
        raise wrong(message, f"did you mean {canonical.text}?", unquoted=message)
    return str(text)


_PATTERN = re.compile(r"\*|^:[A-Za-z_]|\.\+|[{}<>\\|]|^\^|.\$$|\)[+?]")


def pattern_in(path: str) -> str:
    """Return the first segment of a path that looks like a wildcard, a parameter or a regular expression; or ""."""
    return next((segment for segment in path.split("/") if _PATTERN.search(segment)), "")


UrlPath = Annotated[str, Strict(), AfterValidator(_path)]


def _listen_host(text: str) -> str:
    parsed = parse_authority(text.partition("://")[2].partition("/")[0] if "://" in text else text)
    if text.startswith("[") or "/" in text or (parsed is not None and parsed[1] is not None):
        message = "must be an address or a host name alone"
        raise wrong(message, f"did you mean {parsed[0]}?" if parsed is not None else "", unquoted=message)
    return str(text)


ListenHost = Annotated[Text, AfterValidator(_listen_host)]


def _scope(text: str) -> str:
    if not text.isascii() or " " in text or len(text) > MAX_NAME:
        hint = f"write [{', '.join(text.split())}]" if text.isascii() and " " in text else ""
        message = "must be one scope: no token has any with a space, beyond ASCII, or of more than 255 characters"
        raise wrong(message, hint, unquoted=message)
    return str(text)


Scope = Annotated[Text, AfterValidator(_scope)]


def _claim(text: str) -> str:
    message = problem(text)
    if message is not None:
        raise wrong(message, "write /realm_access/roles", unquoted=message)
    return str(text)


Claim = Annotated[Text, AfterValidator(_claim)]
"""A claim by its name, or by a JSON pointer."""


def _role(text: str) -> str:
    if len(text) > MAX_NAME:
        raise wrong("no token has a role of more than 255 characters")
    return str(text)


Role = Annotated[Text, AfterValidator(_role)]


def one_or_more(item: Any) -> BeforeValidator:
    """Let a list of `item` be written as its only member."""

    def as_list(value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    return BeforeValidator(as_list, json_schema_input_type=item | tuple[item, ...])
