"""Redact recordings of others: flow files and HARs become flow files without usable credentials."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mitmproxy.exceptions import FlowReadException
from mitmproxy.http import HTTPFlow
from mitmproxy.io import FlowReader

from mitmgate.core.headers import Headers
from mitmgate.core.principal import Principal
from mitmgate.core.refusal import Refusal
from mitmgate.keys.ring import KeyRing
from mitmgate.policy.snapshot import Snapshot
from mitmgate.replay.output import output
from mitmgate.replay.redaction import METADATA, RECORDING, Redactor, found_signature
from mitmgate.replay.shown_keys import NOTE, is_of_token, note_of, of_verdict
from mitmgate.replay.traffic import Signature
from mitmgate.usage import UserError


@dataclass(slots=True)
class Redacted:
    """What was written. dropped: flows of other protocols, whose content nobody can redact."""

    written: int = 0
    dropped: int = 0
    unchecked: int = 0


class SignatureFinder:
    """Finds out about the signatures of real tokens, with the keys of a policy where there is one."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        """snapshot: its issuers' keys are asked, as far as they are at hand; None: no signature is checked."""
        self._snapshot = snapshot
        self._ring = KeyRing(ask=None)
        if snapshot is not None:
            self._ring.configure(snapshot.issuers)

    def of(self, state: dict[str, Any]) -> Callable[[bytes], Signature]:
        """Return what tells the signature of a flow's tokens: its own verdict first, then the keys."""
        saved = state["metadata"].get(METADATA)
        found: Signature = "unchecked"
        if isinstance(saved, dict):
            found = found_signature(saved.get("reason"), saved.get("stage"), is_of_token(saved.get("principal")))
        at = state["request"]["timestamp_start"]

        def signature(token: bytes) -> Signature:
            if found != "unchecked" or self._snapshot is None:
                return found
            issuers = self._snapshot.issuers
            result = self._ring.authenticate(issuers, tuple(issuers), token, at)
            if isinstance(result, Principal):
                return "good"
            known = (
                found_signature(result.reason.code, "authentication", False) if isinstance(result, Refusal) else found
            )
            return "unchecked" if known == "keys-unavailable" else known

        return signature


def redact_file(
    source: str, target: str, redactor: Redactor, signatures: SignatureFinder, progress: Callable[[int], None]
) -> Redacted:
    """Read flows one by one and write them redacted. Raises UserError; then the target is not there.

    progress: told after each flow how many bytes are read.
    """
    done = Redacted()
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UserError(f"{target}: the recording itself; name another file")
    try:
        with open(source, "rb") as read, output(target, 0o600) as written:
            for flow in FlowReader(read).stream():
                progress(read.tell())
                if not isinstance(flow, HTTPFlow):
                    done.dropped += 1
                    continue
                state: dict[str, Any] = flow.get_state()
                signature = signatures.of(state)
                redactor.redact(state, _counted(signature, done), **_key(state))
                written.write(redactor.record(state))
                done.written += 1
    except FlowReadException as error:
        raise UserError(f"{source}: {error}") from error
    except OSError as error:
        raise UserError(f"{error.filename or source}: {(error.strerror or str(error)).lower()}") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply for a flow file") from error
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError, OverflowError) as error:
        number = done.written + done.dropped + 1
        raise UserError(f"{source}: flow {number} can't be read: {type(error).__name__}: {error}") from error
    return done


def _key(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a flow's own verdict tells of its API key, as a note."""
    saved = state["metadata"].get(METADATA)
    if not isinstance(saved, dict) or "ingress" not in saved or RECORDING in saved:
        return {}
    fields = [(name.encode("latin-1"), text.encode("latin-1")) for name, text in saved["ingress"]["headers"]]
    shown = of_verdict(Headers(fields), saved.get("reason"), saved.get("principal"))
    return {} if shown is None else {NOTE: note_of(shown)}


def _counted(signature: Callable[[bytes], Signature], done: Redacted) -> Callable[[bytes], Signature]:
    def count(token: bytes) -> Signature:
        found = signature(token)
        done.unchecked += found == "unchecked"
        return found

    return count
