"""Reasons: each belongs to the stages that declare it, to Enforcer or to the protocol; the code gives no other one."""

import ast
from pathlib import Path

import pytest

from mitmgate import chain
from mitmgate.core.reason import EVERY_STAGE, PROTOCOL, Reason
from mitmgate.pipeline.enforcer import Enforcer
from mitmgate.pipeline.stage import Stage
from mitmgate.stages.own import OwnStage

PACKAGE = Path(chain.__file__).parent
FURTHER = {
    "arrival": ["audit/writer.py"],
    "hygiene": ["core/hygiene.py"],
    "client-quota": ["stages/quota.py"],
    "authentication": [
        *(f"core/{name}.py" for name in ("api_key", "browsers", "certificate", "claims", "introspection", "proof")),
        *("core/revocation.py", "core/token.py", "keys/*.py"),
        *(f"stores/{name}.py" for name in ("api_keys", "proofs", "revocations", "tickets")),
    ],
    "authorization": ["core/authorize.py"],
    "openapi": ["core/openapi.py"],
    "rate-limit": ["stages/quota.py"],
}
"""What says the reasons of a stage beside its own file."""
OF_OTHERS = {
    "arrival": {Reason.CHECK_UNCLEAR, Reason.CHECK_UNTRUSTED},
    "circuit-breaker": {
        *(Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_MALFORMED, Reason.UPSTREAM_CLOSED, Reason.UPSTREAM_TIMEOUT)
    },
}
"""Reasons that a stage's file names, and that are the protocol's."""


def stages() -> dict[str, type[Stage]]:
    found, todo = dict[str, type[Stage]](), [Stage]
    while todo:
        for one in todo.pop().__subclasses__():
            todo.append(one)
            if one.__module__.startswith("mitmgate.stages.") and hasattr(one, "name") and not issubclass(one, OwnStage):
                found[one.name] = one
    return found


def named(*patterns: str) -> set[Reason]:
    """Return the reasons that the modules name."""
    return {
        Reason[node.attr]
        for pattern in patterns
        for file in PACKAGE.glob(pattern)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
        if node.attr in Reason.__members__
    }


def told(page: Path) -> dict[str, tuple[str, ...]]:
    """Return the column `stage` of the page's table, by code."""
    rows = [line.strip("| \n").split(" | ") for line in page.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): tuple(row[3].split(", ")) for row in rows}


def test_every_reason_belongs_to_somebody_and_the_page_says_to_whom() -> None:
    declared = stages()
    assert tuple(sorted(declared)) == tuple(sorted(chain.REQUIRED))
    whose = {reason: ["every stage"] if reason in EVERY_STAGE else [] for reason in Reason}
    for name in chain.REQUIRED:
        assert len(set(declared[name].reasons)) == len(declared[name].reasons)
        for reason in declared[name].reasons:
            whose[reason].append(name)
    for name, reasons in (("enforcer", Enforcer.reasons), ("protocol", PROTOCOL)):
        assert len(set(reasons)) == len(reasons)
        for reason in reasons:
            whose[reason].append(name)
    assert [reason.code for reason, names in whose.items() if not names] == []
    page = PACKAGE.parents[1] / "docs" / "reasons.md"
    assert told(page) == {reason.code: tuple(names) for reason, names in whose.items()}


@pytest.mark.parametrize("name", chain.REQUIRED)
def test_a_stage_declares_what_its_code_says(name: str) -> None:
    stage, file = stages()[name], f"stages/{name.replace('-', '_')}.py"
    said, others = named(file, *FURTHER.get(name, ())), OF_OTHERS.get(name, set())
    assert others <= said
    assert said - others - set(EVERY_STAGE) == set(stage.reasons)


def test_the_protocol_declares_what_its_code_says() -> None:
    """Beside that of the engine's files: no checks (Arrival), what is withdrawn, bodies that a document refuses."""
    elsewhere = {
        *(Reason.CHECK_UNCLEAR, Reason.CHECK_UNTRUSTED, Reason.TOKEN_REVOKED),
        *(Reason.API_KEY_REVOKED, Reason.API_KEY_EXPIRED, Reason.BODY_INVALID),
    }
    assert named("proxy/*.py", "core/http1/*.py", "core/http2*.py", "pipeline/exchange.py") | elsewhere == set(PROTOCOL)
    assert named("chain.py") <= elsewhere
