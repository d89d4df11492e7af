"""The command `stage`: begin a stage of your own, as a file and its test."""

import re
from pathlib import Path

import click

from mitmgate.policy.own_stages import built_in
from mitmgate.usage import UserError

_STAGE = '''\
"""{cls}: say here in one line what it refuses."""

from mitmgate.stage import Facts, Options, Reason, Stage, Step


class {cls}Options(Options):
    """What an entry of the policy says."""

    deny: tuple[str, ...] = ()
    """Paths that are refused."""


class {cls}(Stage[{cls}Options]):
    """Refuse some paths.

    Reads: the path. Denies: 403 {name}-refused.
    """

    reasons = (Reason("{name}-refused", 403, "Refused", "a path that deny does not name"),)

    def decide(self, facts: Facts) -> Step:
        """Look at the path."""
        if facts.path in self.options.deny:
            return self.deny("{name}-refused", "This path is closed.")
        return self.admit()
'''

_TEST = '''\
"""{cls} in the whole chain: what it refuses, and what it lets pass."""

from pathlib import Path

POLICY = """\\
version: 1
upstreams: {{service: {{endpoints: ["http://127.0.0.1:9000"]}}}}
stages: {{{name}: {{use: {file}:{cls}, after: routing, deny: [/closed]}}}}
routes: [{{name: all, match: {{prefix: /}}, upstream: service, auth: none}}]
"""


def test_what_it_refuses(policy_case, tmp_path):
    (tmp_path / "{file}").write_text(Path(__file__).with_name("{file}").read_text())
    (tmp_path / "gateway.yaml").write_text(POLICY)
    policy = policy_case(tmp_path / "gateway.yaml")
    policy.request("GET", "/closed").is_denied("{name}-refused")
    policy.request("GET", "/open").is_admitted(route="all")
'''


@click.group("stage")
def stage() -> None:
    """Write stages of your own (docs/stages.md)."""


@stage.command()
@click.argument("name")
@click.option("--dir", "directory", default="stages", show_default=True, help="Where the two files go.")
def new(name: str, directory: str) -> None:
    """Write a stage and its test. NAME: kebab-case, such as bot-guard."""
    if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None or len(name) > 48:
        raise UserError(f"stage new {name}: a name in kebab-case is wanted, of 48 letters at most, such as bot-guard")
    if name in built_in():
        raise UserError(f"stage new {name}: the gateway has a stage of this name")
    file, cls = f"{name.replace('-', '_')}.py", "".join(word.capitalize() for word in name.split("-"))
    place = Path(directory)
    made = {place / file: _STAGE, place / f"test_{file}": _TEST}
    for path in made:
        if path.exists():
            raise UserError(f"stage new {name}: {path} is there already")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for path, text in made.items():
            path.write_text(text.format(name=name, cls=cls, file=file), encoding="utf-8")
    except OSError as error:
        raise UserError(f"stage new {name}: {place}: {(error.strerror or str(error)).lower()}") from error
    for path in made:
        click.echo(f"{path}: written")
    click.echo(f"stages: {{{name}: {{use: {place / file}:{cls}, after: routing}}}} puts it into the policy")
