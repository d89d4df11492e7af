"""What `check` says where a stage's own warnings go wrong: one warning at the entry, and all the others as ever."""

from pathlib import Path

import pytest

from mitmgate.policy.loader import load
from mitmgate.review import lint
from tests.command_line import command

STAGE = """\
from mitmgate.stage import Options, Reason, Stage


class Odd:
    def __str__(self):
        raise RuntimeError("no text")


class Warns(Stage[Options]):
    reasons = (Reason("odd", 403, "Odd"),)

    def decide(self, facts):
        return self.skip()

    def warnings(self):
        {body}
"""
POLICY = """\
version: 1
stages:
  odd: {use: warns.py:Warns, after: cors}
  even: {use: warns.py:Warns, after: odd}
upstreams: {service: {endpoints: ["http://127.0.0.1:9"]}}
routes: [{name: all, match: {prefix: /}, upstream: service, auth: none}]
"""


def written(directory: Path, body: str) -> Path:
    (directory / "warns.py").write_text(STAGE.replace("{body}", body))
    path = directory / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return ()", []),
        ('return ("one", "two")', ["one", "two"]),
        ('yield f"{self.name} does nothing"', ["{} does nothing"]),
        ('return "a sentence alone"', ["a sentence alone"]),
        ('return "on two\\nlines",', ["on two\\nlines"]),
        ("return [7]", ["7"]),
        ("return None", ["its warnings can't be asked for: TypeError"]),
        ("return 7", ["its warnings can't be asked for: TypeError"]),
        ("return [Odd()]", ["its warnings can't be asked for: RuntimeError"]),
        ('raise ValueError("a secret")', ["its warnings can't be asked for: ValueError"]),
        ("raise SystemExit(0)", ["its warnings can't be asked for: SystemExit"]),
        ("raise KeyboardInterrupt", ["its warnings can't be asked for: KeyboardInterrupt"]),
        ('yield "first"; raise GeneratorExit', ["its warnings can't be asked for: GeneratorExit"]),
        ('while True: yield "more"', ["more"]),
    ],
)
def test_what_goes_wrong_is_one_warning(tmp_path: Path, body: str, said: list[str]) -> None:
    found = lint(load(written(tmp_path, body), {}))
    of_stages = [(one.line, one.column, one.path, str(one)) for one in found if one.code == "stage-warns"]
    assert [(line, column, path) for line, column, path, _ in of_stages] == [
        *[(3, 3, "stages.odd")] * len(said),
        *[(4, 3, "stages.even")] * len(said),
    ]
    for (_, _, path, text), sentence in zip(of_stages, said * 2, strict=True):
        name = path.removeprefix("stages.")
        assert text.endswith(f": warning: {path}: {sentence.format(name)} [stage-warns]")
    assert {one.code for one in found} >= {"public", "no-rate-limit", "no-audit"}


def test_check_goes_on_and_shows_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(written(tmp_path, "raise SystemExit(0)"))
    status, text = command(capsys, "check", "--strict", path)
    assert status == 1
    assert f"{path}:3:3: warning: stages.odd: its warnings can't be asked for: SystemExit [stage-warns]\n" in text
    assert f"{path}: ok, 1 route, 1 upstream" in text and "Traceback" not in text
