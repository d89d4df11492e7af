"""The structlog logger of audit events: its processors end in the serialiser, its output is the sinks' queues."""

from collections.abc import Sequence
from typing import cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from mitmgate.audit.record import Event, render
from mitmgate.audit.sink import SinkThread


class AuditLogger(structlog.BoundLoggerBase):
    """A structlog logger that takes an event as it is.

    structlog's own methods take members as keyword arguments, and copy them twice: 4 µs for an event of this size.
    """

    def record(self, event: EventDict) -> None:
        """Run the processors, put the record that the last one makes into the queues."""
        made = event
        for processor in self._processors:
            made = cast(EventDict, processor(self._logger, "record", made))
        self._logger.put(made)


def serialise(logger: WrappedLogger, method: str, event: EventDict) -> bytes:
    """Be the last processor: the event as a line of JSON."""
    return render(cast(Event, event))


class Queues:
    """The end of the logger: every sink's queue."""

    __slots__ = ("threads",)

    def __init__(self) -> None:
        """Start without a sink."""
        self.threads: tuple[SinkThread, ...] = ()

    def put(self, record: bytes) -> None:
        """Queue a record for every sink."""
        for thread in self.threads:
            thread.put(record)


def audit_logger(queues: Queues, processors: Sequence[Processor] = ()) -> AuditLogger:
    """Make the logger, bound once. processors run on each event before it is serialised."""
    wrapped = structlog.wrap_logger(
        queues, processors=[*processors, serialise], wrapper_class=AuditLogger, context_class=dict
    )
    return cast(AuditLogger, wrapped.bind())
