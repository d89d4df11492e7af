"""A reload puts in force exactly what was looked at, not what the file has become meanwhile."""

from pathlib import Path

from mitmgate.policy.watcher import PolicySource
from tests.policy.test_lint import CLEAN, ENVIRON


def test_what_was_loaded_is_put_in_force_whatever_the_file_says_now(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(CLEAN)
    source = PolicySource(path, ENVIRON)
    path.write_text(CLEAN + "endpoints: {health: /looked-at}\n")
    candidate = source.read()
    path.write_text(CLEAN + "endpoints: {health: /came-later}\nadmin: {}\n")
    change = source.activate(candidate)
    assert change.decides_otherwise
    assert source.snapshot.health_path == "/looked-at"
    assert source.changed()  # so that the later version is looked at in its turn
