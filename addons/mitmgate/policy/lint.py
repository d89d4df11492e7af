"""Warnings of a policy that are no single stage's: modes, what all responses get, and the audit trail."""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mitmgate.policy.document import Document
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.model import Policy
from mitmgate.policy.model_audit import FileSink, RedisSink
from mitmgate.policy.problem import Code, Location, Problem
from mitmgate.policy.snapshot import Snapshot


def warnings(loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
    """Yield them; the stages' own come from the chain (chain.warnings)."""
    for find in (_modes, _hsts, _audit, _response_headers, _redacted):
        yield from find(loaded.policy, loaded.document)
    yield from _files(snapshot, loaded.policy, loaded.document)


def _modes(policy: Policy, document: Document) -> Iterator[Problem]:
    message = "report admits what it only records"
    if policy.mode == "report":
        yield document.warning(("mode",), Code.REPORT_MODE, f"{message}; nothing is enforced")
    for index, route in enumerate(policy.routes):
        if route.mode == "report":
            yield document.warning(("routes", index, "mode"), Code.REPORT_MODE, message)


def _hsts(policy: Policy, document: Document) -> Iterator[Problem]:
    for name in policy.response_headers.set:
        if name.lower() == "strict-transport-security" and policy.listen.tls is None:
            at = ("response_headers", "set", name)
            yield document.warning(
                at,
                Code.HSTS_OVER_HTTP,
                "browsers ignore HSTS over http; right only behind a proxy that ends TLS",
                key=True,
            )


def _audit(policy: Policy, document: Document) -> Iterator[Problem]:
    audit = policy.audit
    if not audit.sinks:
        yield document.warning(("audit",), Code.NO_AUDIT, "no audit sink: decisions are not kept", "add audit.sinks")
    elif audit.chain.key_env is None:
        yield document.warning(
            ("audit",),
            Code.UNKEYED_CHAIN,
            "the audit chain is unkeyed: anyone can forge it",
            "add chain: {key_env: NAME}",
        )
    if audit.on_full == "drop":
        yield document.warning(("audit", "on_full"), Code.LOSES_EVENTS, "drop loses events while the queue is full")


def _response_headers(policy: Policy, document: Document) -> Iterator[Problem]:
    removed = {name.lower() for name in policy.response_headers.remove}
    for name in policy.response_headers.set:
        if name.lower() in removed:
            at = ("response_headers", "set", name)
            yield document.warning(at, Code.NEVER_MATCHES, f"{name} is in `remove` as well", "keep one", key=True)


def _redacted(policy: Policy, document: Document) -> Iterator[Problem]:
    for index, name in enumerate(policy.audit.redact.query):
        if set(name) & set("=&?#"):
            at = ("audit", "redact", "query", index)
            yield document.warning(at, Code.NEVER_MATCHES, "a parameter's name alone is compared", "write it without =")


def _files(snapshot: Snapshot, policy: Policy, document: Document) -> Iterator[Problem]:
    written: list[tuple[Location, str]] = []
    for index, sink in enumerate(policy.audit.sinks):
        if isinstance(sink, FileSink):
            written.append((("audit", "sinks", index, "file"), sink.file))
        elif isinstance(sink, RedisSink):
            written.append((("audit", "sinks", index, "spill"), sink.spill))
    if policy.audit.anchors is not None:
        written.append((("audit", "anchors", "file"), policy.audit.anchors.file))
    for at, name in written:
        reason = _unwritable(Path(snapshot.resolve(name)))
        if reason is not None:
            yield document.warning(at, Code.UNWRITABLE, f"the file can't be written: {reason}")


def _unwritable(path: Path) -> str | None:
    """Say why a file could not be appended to, or made; None where it could. Nothing is changed by asking."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    try:
        if mode is not None:
            if not stat.S_ISREG(mode):
                return "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file"
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
            return None
        there = next(parent for parent in path.parents if parent.exists())
        tempfile.TemporaryFile(dir=there).close()  # a file without a name, as far as the file system can do that
    except OSError as error:
        return error.strerror
    return None
