"""Reloading: seen when a file changes, swapped as a whole, and never a bad policy."""

import os
from pathlib import Path

import pytest

from mitmgate.policy.problem import PolicyError, Problem
from mitmgate.policy.watcher import Change, PolicySource


@pytest.fixture
def source(example: Path, environ: dict[str, str]) -> PolicySource:
    return PolicySource(example, environ)


def reload(source: PolicySource) -> Change | tuple[Problem, ...]:
    """Do what a host does about a change."""
    try:
        return source.activate(source.read())
    except PolicyError as error:
        source.seen(error.stamps)
        return error.problems


def replace(path: Path, text: str) -> None:
    """Write as editors do: a new file renamed over the old one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_nothing_has_changed(source: PolicySource) -> None:
    assert not source.changed()
    before = source.snapshot
    change = reload(source)
    assert isinstance(change, Change)
    assert not change.decides_otherwise
    assert source.snapshot.digest == before.digest


def test_a_new_policy_is_put_in_force_as_a_whole(source: PolicySource, example: Path) -> None:
    before = source.snapshot
    replace(example, example.read_text().replace("limit: 100,", "limit: 7,"))
    assert source.changed()
    assert source.snapshot is before  # until it is asked to
    change = reload(source)
    assert isinstance(change, Change)
    assert change.decides_otherwise
    assert (change.before, change.after) == (before.digest, source.snapshot.digest)
    assert source.snapshot.policy.rate_limits["per-user"].limit == 7
    assert before.policy.rate_limits["per-user"].limit == 100
    assert source.loaded.policy is source.snapshot.policy
    assert not source.changed()


def test_a_bad_policy_changes_nothing_and_is_a_change_once(source: PolicySource, example: Path) -> None:
    before, text = source.snapshot, example.read_text()
    replace(example, text.replace("upstream: users", "upstream: usres"))
    assert source.changed()
    problems = reload(source)
    assert not isinstance(problems, Change)
    assert {problem.path for problem in problems} >= {"routes[0].upstream", "routes[1].upstream"}
    assert source.snapshot is before
    assert not source.changed()
    replace(example, text)
    assert source.changed()
    assert isinstance(reload(source), Change)


@pytest.mark.parametrize("name", ["keys/assertion.pem", "tls/server.pem", "tls/internal.pem", "tls/gw.key"])
def test_every_file_that_it_names_is_watched(source: PolicySource, example: Path, name: str) -> None:
    path = example.parent / name
    stat = path.stat()
    replace(path, path.read_text())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same time and size: the inode tells
    assert source.changed()


def test_a_time_alone_is_a_change(source: PolicySource, example: Path) -> None:
    stat = example.stat()
    os.utime(example, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert source.changed()


def test_a_policy_that_is_gone_keeps_the_old_one(source: PolicySource, example: Path) -> None:
    before = source.snapshot
    example.unlink()
    assert source.changed()
    problems = reload(source)
    assert not isinstance(problems, Change)
    assert "no such file" in problems[0].message
    assert source.snapshot is before


def test_a_file_that_was_missing_is_waited_for(source: PolicySource, example: Path) -> None:
    secret = example.parent / "secret"
    replace(example, example.read_text().replace("secret_env: MITMGATE_DEV_SECRET", "secret_file: secret"))
    assert not isinstance(reload(source), Change)
    assert not source.changed()
    secret.write_text("s" * 32)
    assert source.changed()
    assert isinstance(reload(source), Change)
    assert source.snapshot.issuers["dev"].keys.material == b"s" * 32


def test_the_environment_is_read_again(source: PolicySource, environ: dict[str, str]) -> None:
    environ["MITMGATE_DEV_SECRET"] = "another secret of more than 32 bytes"
    change = reload(source)
    assert isinstance(change, Change)
    assert change.decides_otherwise


def test_there_is_no_source_without_a_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyError):
        PolicySource(tmp_path / "none.yaml", {})
