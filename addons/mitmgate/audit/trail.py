"""Open the audit trail that the settings describe."""

from collections.abc import Sequence

from structlog.typing import Processor

from mitmgate.audit.file_sink import FileAppender
from mitmgate.audit.redact import Redaction
from mitmgate.audit.refusals import Share, room
from mitmgate.audit.settings import (
    AnchorSettings,
    AnySink,
    AuditSettings,
    ChainSettings,
    FileSink,
    Redact,
    RedisStreamSink,
    StdoutSink,
    SyslogSink,
)
from mitmgate.audit.sink import Health
from mitmgate.audit.stdout_sink import StdoutAppender
from mitmgate.audit.syslog_sink import SyslogAppender
from mitmgate.audit.writer import AuditTrail

__all__ = [
    "AnchorSettings",
    "AnySink",
    "AuditSettings",
    "ChainSettings",
    "FileSink",
    "Redact",
    "RedisStreamSink",
    "StdoutSink",
    "SyslogSink",
    "open_trail",
]


def open_trail(settings: AuditSettings, processors: Sequence[Processor] = ()) -> AuditTrail:
    """Make the trail with its sinks; `start` opens them. Paths are absolute.

    processors: structlog's, run on each event before it is serialised. Raises UserError for a Redis URL that is none.
    """
    trail = AuditTrail(
        queue=settings.queue,
        on_full=settings.on_full,
        block_for=settings.block_for,
        redaction=Redaction(settings.redact),
        processors=processors,
    )
    for told in settings.sinks:
        if isinstance(told, FileSink):
            file = FileAppender(
                told, settings.chain, trail.emit, Share(room(told.rotate, told.rotate * (told.keep + 1)), len)
            )
            trail.add(file, Health(file.name, trail.emit))
        elif isinstance(told, StdoutSink):
            trail.add(StdoutAppender(), Health(StdoutAppender.name, trail.emit))
        elif isinstance(told, SyslogSink):
            syslog = SyslogAppender(told)
            trail.add(syslog, Health(syslog.name, trail.emit))
        else:
            from mitmgate.audit.redis_stream import StreamAppender  # noqa: PLC0415 - redis takes 70 ms to import

            health = Health(f"redis_stream:{told.stream}", trail.emit)
            trail.add(StreamAppender(told, health, trail.emit), health)
    return trail
