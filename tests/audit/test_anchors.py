"""Anchors: a cut tail, and an older log with its older head, show; and what can't be anchored is on record."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mitmgate.audit.commands import audit
from mitmgate.audit.settings import AnchorSettings, AuditSettings, ChainSettings, FileSink
from mitmgate.cli import main
from tests.audit.conftest import Open, wait_for
from tests.live.harness import SECRET, Gateway, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream

KEY, ANCHORS_KEY = "k" * 32, "a" * 32


class Kept:
    def __init__(self, folder: Path, every: float = 3600.0) -> None:
        self.log, self.anchors = folder / "log" / "audit.jsonl", folder / "elsewhere" / "anchors.jsonl"
        rule = AnchorSettings(str(self.anchors), ANCHORS_KEY.encode(), every)
        sinks = (FileSink(str(self.log), rotate=100_000),)
        self.settings = AuditSettings(sinks=sinks, chain=ChainSettings(KEY.encode(), rule))

    def run(self, trail_of: Open, count: int) -> None:
        """Write records in one run of a process; it is anchored at the beginning and the end."""
        trail = trail_of(self.settings)
        for number in range(count):
            trail.emit({"event": "request", "number": number, "outcome": "proxied", "decision": "admit"})
        assert trail.close()

    def verify(self, *more: str, key: str = ANCHORS_KEY) -> Result:
        options = ["--key-env", "K", "--anchors", str(self.anchors), "--anchors-key-env", "A", *more]
        return CliRunner().invoke(audit, ["verify", str(self.log), *options], env={"K": KEY, "A": key})


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_sound_log_and_its_anchors(kept: Kept, trail_of: Open) -> None:
    kept.run(trail_of, 5)
    kept.run(trail_of, 5)
    assert kept.verify().exit_code == 0, kept.verify().output
    anchors = [json.loads(line) for line in kept.anchors.read_bytes().splitlines()]
    assert {anchor["anchor"] for anchor in anchors} == {"audit.jsonl"}
    assert anchors[-1]["seq"] == 14
    last = json.loads(kept.log.read_bytes().splitlines()[-1])
    assert (anchors[-1]["record"], last["seq"]) == (last["mac"], 14)
    assert kept.anchors.stat().st_mode & 0o777 == 0o600


def test_an_older_log_with_its_older_head_shows_and_what_is_missing(kept: Kept, trail_of: Open) -> None:
    kept.run(trail_of, 5)
    older = kept.log.parent.with_name("older")
    shutil.copytree(kept.log.parent, older)
    kept.run(trail_of, 5)
    shutil.rmtree(kept.log.parent)
    older.rename(kept.log.parent)
    by_itself = CliRunner().invoke(audit, ["verify", str(kept.log), "--key-env", "K"], env={"K": KEY})
    assert by_itself.exit_code == 0, "without its anchors it is whole"
    result = kept.verify()
    assert result.exit_code == 1
    assert "records 8 to 14 are missing" in result.output


def test_a_log_that_is_cut_with_a_head_made_to_fit_shows(kept: Kept, trail_of: Open) -> None:
    """Who has the chain's key makes a whole chain of a part; not its anchors."""
    kept.run(trail_of, 5)
    forged = Kept(kept.log.parent.parent / "forger")
    forged.run(lambda settings: trail_of(AuditSettings(sinks=settings.sinks, chain=ChainSettings(KEY.encode()))), 5)
    shutil.rmtree(kept.log.parent)
    shutil.copytree(forged.log.parent, kept.log.parent)
    result = kept.verify()
    assert result.exit_code == 1
    assert "is another record 7 than the one that was marked" in result.output


def test_all_of_it_is_gone(kept: Kept, trail_of: Open) -> None:
    kept.run(trail_of, 2)
    kept.log.write_bytes(b"")
    Path(f"{kept.log}.head").unlink()
    result = kept.verify()
    assert result.exit_code == 1
    assert "records 1 to 4 are missing" in result.output


def test_a_log_that_was_begun_anew_shows_though_it_is_as_long(kept: Kept, trail_of: Open) -> None:
    """Its anchors are of the same numbers as those of the log that is gone."""
    kept.run(trail_of, 5)
    shutil.rmtree(kept.log.parent)
    kept.run(trail_of, 5)
    result = kept.verify()
    assert result.exit_code == 1, result.output
    assert "old: " in result.output and "is another record 7 than the one that was marked" in result.output


def test_anchors_of_another_log_alone_say_nothing(kept: Kept, trail_of: Open) -> None:
    kept.run(trail_of, 5)
    kept.log = kept.log.rename(kept.log.with_name("other.jsonl"))
    Path(f"{kept.log.with_name('audit.jsonl')}.head").rename(f"{kept.log}.head")
    result = kept.verify()
    assert result.exit_code == 1, result.output
    assert f"anchor: {kept.anchors}: has no anchor of other.jsonl" in result.output


def test_anchors_that_are_changed_or_of_another_key(kept: Kept, trail_of: Open) -> None:
    kept.run(trail_of, 2)
    assert kept.verify(key="b" * 32).exit_code == 1
    lines = kept.anchors.read_bytes().splitlines(keepends=True)
    kept.anchors.write_bytes(b"".join([lines[0].replace(b'"seq":', b'"seq":1'), b"{}\n", *lines[1:]]))
    result = kept.verify()
    assert result.exit_code == 1
    told = [line for line in result.output.splitlines() if line.startswith("anchor: ")]
    assert len(told) == 2 and f"{kept.anchors}:1: is no anchor that this key has signed" in told[0]


def test_a_users_mistakes(kept: Kept, trail_of: Open) -> None:
    kept.run(trail_of, 1)
    arguments = ["verify", str(kept.log), "--key-env", "K", "--anchors"]
    without = CliRunner().invoke(audit, [*arguments, str(kept.anchors)], env={"K": KEY})
    assert "give --anchors-key-env NAME" in str(without.exception)
    missing = [*arguments, "nowhere", "--anchors-key-env", "A"]
    assert "can't be read" in str(CliRunner().invoke(audit, missing, env={"K": KEY, "A": "a"}).exception)


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"file": "audit.jsonl", "key_env": "ANCHORS"}, "audit.anchors.file: a sink writes this file"),
        ({"file": "anchors.jsonl", "key_env": "SHORT"}, "audit.anchors.key_env: the secret has 5 bytes"),
        ({"file": "anchors.jsonl", "key_env": "NOWHERE"}, "NOWHERE"),
        ({"file": "anchors.jsonl"}, "audit.anchors"),
    ],
)
def test_a_policy_that_can_not_anchor(
    tmp_path: Path,
    rule: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"ANCHORS": ANCHORS_KEY, "SHORT": "short", "MITMGATE_TEST_SECRET": SECRET}.items():
        monkeypatch.setenv(name, value)
    made = policy(tmp_path, "http://127.0.0.1:1", audit={"sinks": [{"file": "audit.jsonl"}], "anchors": rule})
    assert main(["check", str(write_policy(tmp_path, made))]) == 2
    output = capsys.readouterr()
    assert told in output.out + output.err


def test_what_can_not_be_anchored_is_on_record_and_written(kept: Kept, trail_of: Open) -> None:
    kept.anchors.parent.mkdir()
    kept.anchors.mkdir()  # nothing can be appended to it
    kept.run(trail_of, 3)
    events = [json.loads(line)["event"] for line in kept.log.read_bytes().splitlines()]
    assert events.count("anchors-failed") == 1
    assert events.count("request") == 3
    kept.anchors.rmdir()
    kept.run(trail_of, 1)
    assert kept.verify().exit_code == 0, kept.verify().output


def test_it_is_anchored_at_intervals_and_at_each_rotation(tmp_path: Path, trail_of: Open) -> None:
    kept = Kept(tmp_path, every=0.01)
    trail = trail_of(kept.settings)
    seen = 0
    for number in range(3):
        trail.emit({"event": "request", "number": number})

        def grown(before: int = seen) -> bool:
            return kept.anchors.exists() and len(kept.anchors.read_bytes().splitlines()) > before

        wait_for(grown, "a further anchor")
        seen = len(kept.anchors.read_bytes().splitlines())
    assert trail.close()
    assert kept.verify().exit_code == 0


def test_the_gateway_anchors_what_its_policy_says(tmp_path: Path) -> None:
    rule = {"file": "elsewhere/anchors.jsonl", "key_env": "ANCHORS", "every": "1h"}
    with RecordingUpstream() as upstream:
        sinks = {"sinks": [{"file": "audit.jsonl"}], "chain": {"key_env": "CHAIN"}, "anchors": rule}
        path = write_policy(tmp_path, policy(tmp_path, upstream, audit=sinks))
        with Gateway(path, environment={"CHAIN": KEY, "ANCHORS": ANCHORS_KEY}) as gateway:
            assert gateway.get("/public").status == 200
    arguments = ["verify", str(tmp_path / "audit.jsonl"), "--key-env", "K", "--anchors-key-env", "A", "--anchors"]
    anchors = tmp_path / "elsewhere" / "anchors.jsonl"
    result = CliRunner().invoke(audit, [*arguments, str(anchors)], env={"K": KEY, "A": ANCHORS_KEY})
    assert result.exit_code == 0, result.output
    assert json.loads(anchors.read_bytes().splitlines()[-1])["seq"] == 3
