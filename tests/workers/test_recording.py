"""Recordings in a rolling restart: for a while the old worker and the new one have the same file name."""

from pathlib import Path

import pytest

from mitmgate.audit.rotation import rotated
from mitmgate.replay.recorder import RecordingFile


def records(path: Path) -> list[bytes]:
    """Return the records of all files, each checked to be whole."""
    found = []
    for name in [*(one.path for one in rotated(str(path))), str(path)]:
        data = Path(name).read_bytes()
        lines = data.split(b"\n")
        assert lines.pop() == b""
        found += lines
    assert all(len(line) == 9 for line in found), found
    return found


@pytest.mark.parametrize("before", [0, 3])
def test_no_record_is_lost_or_torn(tmp_path: Path, before: int) -> None:
    path = tmp_path / "traffic.mitm"
    old = RecordingFile(str(path), rotate_at=50, keep=20)
    written = []

    def write(file: RecordingFile, who: str, number: int) -> None:
        record = f"{who}-{number:05d}--"[:9].encode()
        file.append(record + b"\n")
        written.append(record)

    for number in range(before):
        write(old, "old", number)
    new = RecordingFile(str(path), rotate_at=50, keep=20)
    for number in range(before, 20):
        write(old, "old", number)
        write(new, "new", number)
    old.close()
    write(new, "new", 20)
    new.close()
    assert sorted(records(path)) == sorted(written)


def test_an_empty_file_of_nobody_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "traffic.mitm"
    path.touch()
    RecordingFile(str(path), rotate_at=50, keep=20).close()
    assert rotated(str(path)) == []
