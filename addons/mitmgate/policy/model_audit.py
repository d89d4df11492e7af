"""The `audit` of a policy: where events go, and what becomes of them when they can't."""

import re
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from mitmgate.policy.scalars import (
    Count,
    Duration,
    DurationOrZero,
    HeaderName,
    Integer,
    Size,
    Text,
    duration,
    size,
    wrong,
)
from mitmgate.policy.section import Section


class FileSink(Section):
    """A file of JSON lines, relative to the policy; beside it, NAME.refused.jsonl for a flood of refused requests."""

    file: Text
    """The file that is appended to."""
    rotate: Size = size("100MiB", "The size at which a new file is begun (bytes).")
    keep: Annotated[Integer, Field(ge=0, le=100_000)] = 10
    """How many rotated files are kept."""
    fsync: DurationOrZero = duration("1s", "The longest time until an event is on the disk (seconds); 0s: at once.")


class RedisSink(Section):
    """A stream in the Redis server of `store`."""

    redis_stream: Text
    """The key of the stream."""
    maxlen: Count = 1_000_000
    """How many events the stream keeps, about."""
    spill: Text = "audit/spill.jsonl"
    """The file that takes the events while Redis does not, relative to the policy."""


class StdoutSink(Section):
    """Standard output, as JSON lines; what else the process prints there goes to standard error."""

    stdout: Literal[True]
    """true."""


SYSLOG: Final = (
    r"unix:(?P<path>/.+)|(?P<transport>udp|tcp)://(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]+)"
)


def _syslog(text: str) -> str:
    found = re.fullmatch(SYSLOG, text)
    if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65536):
        raise wrong("must be unix:/PATH, udp://HOST:PORT or tcp://HOST:PORT", "such as unix:/dev/log")
    return text


Facility = Literal[
    "user",
    "daemon",
    "auth",
    "syslog",
    "authpriv",
    "audit",
    "alert",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
]


class SyslogSink(Section):
    """A syslog server, as messages of RFC 5424 whose text is the event's JSON."""

    syslog: Annotated[Text, AfterValidator(_syslog)]
    """unix:/dev/log, udp://HOST:514 or tcp://HOST:601. UDP loses events without anyone noticing."""
    facility: Facility = "local0"
    """The facility of the messages."""
    app_name: Annotated[str, Field(pattern="^[!-~]{1,48}$")] = "mitmgate"
    """The APP-NAME of the messages."""


_KINDS: Final = {
    "redis_stream": (RedisSink, "(redis)"),
    "stdout": (StdoutSink, "(stdout)"),
    "syslog": (SyslogSink, "(syslog)"),
}


def _sink_kind(value: Any) -> str:
    for member, (kind, tag) in _KINDS.items():
        if isinstance(value, kind) or (isinstance(value, dict) and member in value):
            return tag
    return "(file)"


Sink = Annotated[
    Annotated[FileSink, Tag("(file)")]
    | Annotated[RedisSink, Tag("(redis)")]
    | Annotated[StdoutSink, Tag("(stdout)")]
    | Annotated[SyslogSink, Tag("(syslog)")],
    Discriminator(_sink_kind),
]


class Chain(Section):
    """The hash chain that shows whether events were changed or cut."""

    key_env: Text | None = None
    """The environment variable that holds the chain's key, but for a newline at its end; without a key anyone can
    forge a chain."""


class Anchors(Section):
    """Where the ends of the chains are written, signed, so that an older log that was put back shows."""

    file: Text
    """The file, relative to the policy: in a place where whoever can write the logs can't."""
    key_env: Text
    """The environment variable that holds the anchors' key; another one than the chain's."""
    every: Duration = duration("1m", "How often, while a log grows (seconds); also at each rotation and at the end.")


class Redact(Section):
    """What events and process logs never show."""

    headers: tuple[HeaderName, ...] = ("Authorization", "Cookie", "Set-Cookie", "Proxy-Authorization")
    """Header fields."""
    query: tuple[Text, ...] = ("token", "access_token", "api_key")
    """Parameters of the query."""


class Audit(Section):
    """One event for every request that arrives."""

    sinks: tuple[Sink, ...] = ()
    """Where events go, each to all of them."""
    queue: Annotated[Integer, Field(ge=1, le=10_000_000)] = 10000
    """How many events may wait; a process that is killed loses twice as many at most."""
    on_full: Literal["block", "drop", "deny"] = "block"
    """A full queue: wait (block), lose events and say so in the log (drop), or refuse requests (deny)."""
    chain: Chain = Chain()
    anchors: Anchors | None = None
    """Unset: there are none."""
    redact: Redact = Redact()
