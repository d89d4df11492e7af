"""What the audit trail is told: sinks, queue, chain and redaction, as plain values with absolute paths."""

from dataclasses import dataclass, field
from typing import Literal

from mitmgate.net.resolver import MAX_STALE

OnFull = Literal["block", "drop", "deny"]


@dataclass(frozen=True, slots=True)
class FileSink:
    """JSON lines in a file. rotate: bytes a file may have; keep: rotated files kept; fsync: seconds, 0: each batch."""

    path: str
    rotate: int = 100 * 1024 * 1024
    keep: int = 10
    fsync: float = 1.0


@dataclass(frozen=True, slots=True)
class RedisStreamSink:
    """A Redis stream of about `maxlen` entries.

    spill: the file that takes the records while Redis is away; None: they wait in the queue. timeout: seconds that
    one exchange with Redis may take. url is never logged, nor shown: it may hold a password. nameservers, max_stale:
    see net.resolver.Resolver.
    """

    stream: str
    url: str = field(repr=False)
    maxlen: int = 1_000_000
    spill: str | None = None
    timeout: float = 1.0
    nameservers: tuple[tuple[str, int], ...] = ()
    max_stale: float = MAX_STALE


@dataclass(frozen=True, slots=True)
class StdoutSink:
    """JSON lines on standard output."""


@dataclass(frozen=True, slots=True)
class SyslogSink:
    """A syslog server: at `path`, a Unix socket, or at `host` and `port`.

    timeout: seconds that a record may wait for it. facility: a name of RFC 5424, see syslog_sink.FACILITIES.
    nameservers, max_stale: see net.resolver.Resolver.
    """

    transport: Literal["unix", "udp", "tcp"]
    path: str = ""
    host: str = ""
    port: int = 514
    facility: str = "local0"
    app_name: str = "mitmgate"
    timeout: float = 1.0
    nameservers: tuple[tuple[str, int], ...] = ()
    max_stale: float = MAX_STALE


AnySink = FileSink | RedisStreamSink | StdoutSink | SyslogSink


@dataclass(frozen=True, slots=True)
class AnchorSettings:
    """Where the ends of chains are anchored, under a key of their own; every: seconds, while a log grows."""

    path: str
    key: bytes = field(repr=False)
    every: float = 60.0


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """The hash chain of every file sink: HMAC-SHA256 with `key`, plain SHA-256 where it is None."""

    key: bytes | None = field(default=None, repr=False)
    anchors: AnchorSettings | None = None


@dataclass(frozen=True, slots=True)
class Redact:
    """What is not written: values of these header fields and query parameters, named without regard to case.

    Authorization, Proxy-Authorization and Cookie are never written, nor are the query parameters in which OAuth
    (RFC 6749, RFC 6750) sends credentials, nor anything that looks like a JWT.
    """

    headers: tuple[str, ...] = ("Authorization", "Cookie")
    query: tuple[str, ...] = ("token", "api_key")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The whole trail.

    queue: records that may wait for each sink. on_full: what becomes of requests while a queue is full; see
    writer.AuditTrail. block_for: the longest wait of `block`, in seconds.
    """

    sinks: tuple[AnySink, ...] = ()
    queue: int = 10_000
    on_full: OnFull = "block"
    chain: ChainSettings | None = None
    redact: Redact = Redact()
    block_for: float = 5.0
