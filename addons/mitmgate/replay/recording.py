"""Open a recording of whatever kind: flow files, HAR, the gateway's audit files."""

import os
from collections.abc import Sequence

from mitmgate.audit.refusals import refused_log
from mitmgate.audit.rotation import rotated
from mitmgate.replay.audit_file import AuditFormat
from mitmgate.replay.flow_file import FlowFormat
from mitmgate.replay.har import read_har
from mitmgate.replay.ordered import Format, Merged, OrderedFiles
from mitmgate.replay.traffic import Traffic
from mitmgate.usage import UserError

_MARKS = (b"{", b"\xef\xbb\xbf{")


def open_traffic(paths: Sequence[str]) -> Traffic:
    """Open the files of one recording, each with its rotated files (`traffic.mitm.1` is older than `traffic.mitm`).

    Several files are one recording: the requests of several workers, say. They must be of one kind. Raises UserError.
    """
    name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    kinds = {kind_of(path) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"{name}: the files are of different kinds: {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == "HAR":
        if len(paths) > 1:
            raise UserError(f"{name}: one HAR can be read at a time")
        return read_har(name, _content(paths[0]))
    form: Format = AuditFormat() if kind == "audit file" else FlowFormat()
    known: set[str] = set()
    parts = []
    for path in paths:
        logs = [path]
        if kind == "audit file" and os.path.exists(refused_log(path)):
            logs.append(refused_log(path))
        for log in logs:
            files = [file for file in (*(old.path for old in rotated(log)), log) if file not in known]
            known.update(files)
            parts.append(OrderedFiles(log, files, form))
    return parts[0] if len(parts) == 1 else Merged(name, parts)


def kind_of(path: str) -> str:
    """Say what a file seems to be: "HAR", "audit file" or "flow file". Raises UserError where it can't be read."""
    try:
        with open(path, "rb") as file:
            start = file.readline(1 << 16)
    except OSError as error:
        raise UserError(f"{path}: can't be read: {(error.strerror or str(error)).lower()}") from error
    if not start.lstrip().startswith(_MARKS):
        return "flow file"
    return "audit file" if b'"event":' in start and b'"log"' not in start[:64] else "HAR"


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > 1 << 30:
                raise UserError(f"{path}: a HAR of more than 1 GiB; convert it to a flow file")
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {(error.strerror or str(error)).lower()}") from error
