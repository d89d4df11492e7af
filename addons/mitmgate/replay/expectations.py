"""Expected decisions beside a recording: what a team says must become of each request, whatever the policy."""

import json
from pathlib import Path
from typing import BinaryIO, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mitmgate.core.reason import Reason
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay.decision import ADMIT, NO_RULE, Decision, reason_of
from mitmgate.replay.traffic import Recorded
from mitmgate.usage import UserError

SUFFIX: Final = ".expect.yaml"
_HEAD = """\
# What must become of each request of {name}, by its id. Made by `replay --write-expected`; edit what should be
# otherwise: admit, deny REASON or answer REASON, and where the route matters ", route NAME".
version: 1
expected:
"""


def beside(traffic: str) -> Path:
    """Return where a recording's expectations are: traffic.mitm.expect.yaml."""
    return Path(traffic + SUFFIX)


class Expectations:
    """The expected decisions of one recording."""

    def __init__(self, path: Path, expected: dict[str, Decision]) -> None:
        """expected: by request id."""
        self.path = path
        self._expected = expected
        self._met: set[str] = set()

    def __call__(self, recorded: Recorded) -> Decision | None:
        """Return what is expected of a request; None where nothing is."""
        found = self._expected.get(recorded.id)
        if found is not None:
            self._met.add(recorded.id)
        return found

    @property
    def unmet(self) -> int:
        """How many expectations are of requests that the recording does not have."""
        return len(self._expected) - len(self._met)


def read_expectations(path: Path) -> Expectations:
    """Read a file of expectations. Raises UserError, which names the entry that is wrong."""
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: can't be read: {(error.strerror or str(error)).lower()}") from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply for a file of expectations") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).partition('\n')[0]}") from error
    entries = document.get("expected") if isinstance(document, dict) else None
    if not isinstance(document, dict) or document.get("version") != 1 or not isinstance(entries, dict):
        raise UserError(f"{path}: no file of expectations: it needs `version: 1` and `expected:`, a mapping by id")
    expected = {}
    for identity, text in entries.items():
        try:
            expected[str(identity)] = parse_expected(str(text))
        except ValueError as error:
            raise UserError(f"{path}: {identity}: {error}") from error
    return Expectations(path, expected)


def parse_expected(text: str) -> Decision:
    """Read "admit", "deny scope-missing" or "admit, route users". Raises ValueError for anything else."""
    words, comma, more = text.partition(",")
    outcome, _, code = words.strip().partition(" ")
    route = NO_RULE
    if comma:
        kind, _, route = more.strip().partition(" ")
        if kind != "route" or not route:
            raise ValueError(f"{text!r}: after the comma `route NAME` is expected")
    if outcome == ADMIT and not code:
        return Decision(ADMIT, Reason.OK.code, route=route, observed=None)
    if outcome not in {"deny", "answer"} or not code:
        raise ValueError(f"{text!r}: must be admit, deny REASON or answer REASON")
    return Decision(outcome, reason_of(code.strip()).code, route=route, observed=None)


class ExpectationWriter:
    """Writes the decisions of a replay as expectations, while it runs (run.Observer)."""

    def __init__(self, path: Path, name: str, file: BinaryIO) -> None:
        """Begin the file."""
        self.path = path
        self._file = file
        self._file.write(_HEAD.format(name=name).encode())

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        """Write one."""
        route = "" if decision.route == NO_RULE else f", route {decision.route}"
        self._file.write(f"  {json.dumps(recorded.id)}: {decision.label}{route}\n".encode())
