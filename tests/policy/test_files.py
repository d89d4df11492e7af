"""What may stand in a file's place: nothing holds the reader up, and what is no file is named."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mitmgate.policy import files
from mitmgate.policy.files import MAX_BYTES
from mitmgate.policy.loader import load
from mitmgate.policy.problem import PolicyError
from mitmgate.policy.watcher import PolicySource

KEYS = "keys: {secret_env: MITMGATE_DEV_SECRET}    # or secret_file, public_key_file, jwks_file"
MEMBERS = ("keys/assertion.pem", *(f"tls/{name}" for name in ("server.pem", "server.key", "clients.pem", "gw.key")))
SOURCES = ("secret_file", "public_key_file", "jwks_file")
PIPE = "is a pipe that was not written and closed within"


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, PIPE),
    "directory": (Path.mkdir, "is a directory"),
    "device without end": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "terminal": (lambda path: path.symlink_to("/dev/ptmx"), "is no regular file"),
    "file of a tebibyte": (sparse, f"is larger than {MAX_BYTES} bytes"),
    "socket": (listening, "can't be read: no such device or address"),
    "link to itself": (lambda path: path.symlink_to(path), "can't be read: too many levels of symbolic links"),
}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for pipes."""
    monkeypatch.setattr(files, "PATIENCE", 0.2)


def problems(path: Path, environ: dict[str, str]) -> list[str]:
    """Load a policy, in a thread: it must come back. Returns the errors."""
    found: list[str] = []

    def run() -> None:
        try:
            load(path, environ)
        except PolicyError as error:
            found.extend(str(problem) for problem in error.problems if problem.severity == "error")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the reader hangs"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_of_the_policy(tmp_path: Path, kind: str) -> None:
    make, expected = KINDS[kind]
    make(tmp_path / "policy.yaml")
    (problem,) = problems(tmp_path / "policy.yaml", {})
    assert problem.startswith(f"{tmp_path}/policy.yaml:1:1: error: the policy {expected}")


@pytest.mark.parametrize("name", [*MEMBERS, *SOURCES])
def test_in_place_of_a_file_that_it_names(example: Path, environ: dict[str, str], name: str) -> None:
    """Every kind in turn, at the member's place."""
    path = example.parent / name
    if name in SOURCES:
        text = example.read_text()
        assert KEYS in text
        algorithm = "HS256" if name == "secret_file" else "ES256"
        text = text.replace(KEYS, f"keys: {{{name}: {name}}}").replace(
            "algorithms: [HS256]", f"algorithms: [{algorithm}]"
        )
        example.write_text(text)
    else:
        path.unlink()
    for make, expected in KINDS.values():
        make(path)
        (problem,) = problems(example, environ)
        assert f"the file {expected}" in problem
        assert ".yaml:1:1:" not in problem
        path.rmdir() if path.is_dir() else path.unlink()


def test_all_pipes_together_are_waited_for_once(
    example: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE", 2)
    for name in MEMBERS:
        (example.parent / name).unlink()
        os.mkfifo(example.parent / name)
    began = time.monotonic()
    assert len(problems(example, environ)) == len(MEMBERS)
    assert time.monotonic() - began < 2 * len(MEMBERS)


@pytest.fixture
def piped(example: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example policy in a pipe: it can be read once."""
    monkeypatch.setattr(files, "PATIENCE", 60)
    path = example.parent / "piped.yaml"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(example.read_text(),), daemon=True)
    writer.start()
    yield path
    writer.join(5)


def test_a_pipe_that_is_written_is_read_once(piped: Path, environ: dict[str, str]) -> None:
    """As by the shell's <(...): the start of a host parses once."""
    loaded = load(piped, environ)
    source = PolicySource(loaded.path, environ, loaded)
    assert source.loaded is loaded
    assert not source.changed()


def test_a_pipe_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    try:
        os.write(end, b"version: 1\n")
        (problem,) = problems(path, {})
    finally:
        os.close(end)
    assert PIPE in problem
