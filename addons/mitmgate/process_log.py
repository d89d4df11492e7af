"""The process log: structlog on stderr, for people on a terminal, JSON lines otherwise.

It is not the audit trail: it tells what the gateway itself is about, and never names a credential or a body.
"""

import io
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TextIO

import click
import structlog

from mitmgate.audit.redact import mark
from mitmgate.core.credentials import hide_in_body

LEVELS: Final = ("debug", "info", "warning", "error")


def log_level_option[Result](command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command `--log-level`, its argument `log_level` of `configure`."""
    return click.option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="info",
        show_default=True,
        help="The least that the log on stderr says; debug is of the gateway itself alone.",
    )(command)


def configure(log_level: str = "info") -> None:
    """Send the standard library's logging, ours and mitmproxy's, through structlog to stderr.

    log_level: one of LEVELS. mitmproxy speaks of every connection at INFO and of bytes that it could not parse; from
    it, warnings alone pass. What libraries say at DEBUG may be what clients have sent, and never passes.
    """
    level = logging.getLevelNamesMapping()[log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_credentials,
    ]
    terminal = sys.stderr.isatty()
    final: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if terminal:
        # Its own choice, where rich is installed, shows every local variable: tokens, headers, passwords.
        final.append(structlog.dev.ConsoleRenderer(exception_formatter=_traceback))
    else:
        final += [structlog.processors.format_exc_info, _without_credentials, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("mitmgate").setLevel(level)
    logging.getLogger("mitmproxy").setLevel(max(level, logging.WARNING))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    out.write(without_credentials(text.getvalue()))


def _without_credentials(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut tokens and passwords out of every text, wherever a library may have put them."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = without_credentials(value)
    return event


def without_credentials(text: str) -> str:
    """Cut credentials out of a text, line by line."""
    return "\n".join([hide_in_body(line, mark, ids=True) for line in text.split("\n")])
