"""Stages of the operator's own that no policy is loaded with: each is told with its place, and what would be right."""

from pathlib import Path

import pytest

from mitmgate.chain import REQUIRED
from mitmgate.policy.compiler import digest
from mitmgate.policy.loader import PolicyError, load
from mitmgate.policy.own_stages import places

POLICY = """\
version: 1
upstreams: {{users: {{endpoints: ["http://127.0.0.1:9"]}}}}
rate_limits: {{f: {{limit: 5, window: 1m, key: {key}}}}}
client_limits: {early}
stages:
  guard: {{{entry}}}
  {more}
routes: [{{name: all, match: {{prefix: /}}, upstream: users, auth: none, rate_limits: f, rewrite: {{set: {sets}}}}}]
"""
HEAD = '"""A stage."""\nfrom mitmgate.stage import *\n'
DECIDE = "    def decide(self, facts):\n        return self.admit()\n"


def written(
    directory: Path,
    code: str = "",
    entry: str = "use: guard.py:Guard, after: routing",
    *,
    key: str = "client_ip",
    early: str = "[]",
    more: str = "",
    sets: str = "{}",
) -> Path:
    """Write a policy and the stage that it names."""
    (directory / "guard.py").write_text(HEAD + code)
    path = directory / "policy.yaml"
    path.write_text(POLICY.format(entry=entry, key=key, early=early, more=more, sets=sets))
    return path


def stage(declared: str = 'reasons = (Reason("guard-refused", 403, "Refused"),)', options: str = "Options") -> str:
    """Write a stage with these declarations."""
    return f"class Guard(Stage[{options}]):\n    {declared}\n{DECIDE}"


def refused(path: Path) -> list[str]:
    """Return what loading says, without the policy's directory."""
    with pytest.raises(PolicyError) as error:
        load(path, {"SECRET": "hidden-word"})
    return [str(problem).removeprefix(f"{path.parent}/") for problem in error.value.problems]


CODE = {
    "can't be imported: line 3: ModuleNotFoundError: No module named 'nowhere'": "import nowhere",
    "can't be imported: line 3: ZeroDivisionError: division by zero": "1 / 0",
    "can't be imported: line 3: SystemExit: 3": "raise SystemExit(3)",
    "can't be imported: line 3: invalid syntax": "class Guard(:",
    "there is no Guard in it (found 'guard.py:Guard'; did you mean Guards?)": stage().replace("Guard(", "Guards("),
    "Guard is no stage (found 'guard.py:Guard'; derive it from mitmgate.stage.Stage)": "class Guard:\n" + DECIDE,
    "it declares nothing: no reason, no field that it sets, no key": stage("pass"),
    "it has no decide": 'class Guard(Stage[Options]):\n    reasons = (Reason("guard-refused", 403, "Refused"),)',
    "it names the reason a twice": stage('reasons = (Reason("a", 403, "A"), Reason("a", 404, "B"))'),
    "scope-missing is a reason of the gateway (found 'guard.py:Guard'; call it guard-scope-missing)": stage(
        'reasons = (Reason("scope-missing", 403, "A"),)'
    ),
    "its reasons have to be a tuple: (reason,)": stage('reasons = Reason("a", 403, "A").title'),
    "its reasons have to be mitmgate.stage.Reason, and 'a' is none": stage('reasons = ("a",)'),
    "its reason 'Not_kebab' has to have a name in kebab-case": stage('reasons = (Reason("Not_kebab", 403, "A"),)'),
    "its reason a has the status 100": stage('reasons = (Reason("a", 100, "A"),)'),
    "its reason a has the status True": stage('reasons = (Reason("a", True, "A"),)'),
    "its reason a needs a title": stage('reasons = (Reason("a", 403, "A\\nB"),)'),
    "it sets 'X_Odd', which is no name of a field": stage('sets = ("X_Odd",)'),
    "it sets Content-Length, which the gateway alone writes": stage('sets = ("Content-Length",)'),
    "it sets X-Forwarded-For, which the gateway alone writes": stage('sets = ("X-Forwarded-For",)'),
    "it sets authorization, which the gateway alone writes": stage('sets = ("authorization",)'),
    "it sets Cookie, and the client's own is what the gateway goes by": stage('sets = ("Cookie",)'),
    "it sets X.User.ID, which the gateway writes": stage('sets = ("X.User.ID",)'),
    "it sets x-user-role, which the gateway writes": stage('sets = ("x-user-role",)'),
    "it sets a field twice": stage('sets = ("X-A", "x-a")'),
    "its key 'Not kebab' has to be in kebab-case": stage('keys = ("Not kebab",)'),
    "its option after is a member of every stage: call it otherwise": "class O(Options):\n    after: str = ''\n"
    + stage(options="O"),
    "can't be made: ValueError: no": stage() + "    def __init__(self, *given):\n        raise ValueError('no')\n",
    "can't be made: TypeError: its __init__ has to call that of Stage": stage()
    + "    def __init__(self, *given):\n        self.name = 'other'\n",
}


@pytest.mark.parametrize(("message", "code"), CODE.items(), ids=list(CODE))
def test_code_that_is_no_stage(tmp_path: Path, message: str, code: str) -> None:
    (said,) = refused(written(tmp_path, code))
    where = "6:10" if "can't be made" in message else "6:16"
    assert said.startswith(f"policy.yaml:{where}: error: stages.guard"), said
    assert message in said


ENTRIES = {
    "6:39: error: stages.guard.after: no stage has this name (found 'routin'; did you mean routing?)": (
        "use: guard.py:Guard, after: routin"
    ),
    "6:39: error: stages.guard.after: no stage has this name (found 'guard-2'; one of hygiene": (
        "use: guard.py:Guard, after: guard-2"
    ),
    "error: stages.guard.after: no other stage may come here (found 'arrival'": "use: guard.py:Guard, after: arrival",
    "error: stages.guard.after: no other stage may come here (found 'rewrite'": "use: guard.py:Guard, after: rewrite",
    "error: stages.guard.after: it comes after itself": "use: guard.py:Guard, after: guard",
    "error: stages.guard: the member after is missing": "use: guard.py:Guard",
    "error: stages.guard.use: the file can't be read: no such file": "use: gard.py:Guard, after: routing",
    "error: stages.guard.use: must name a class in the file (found 'guard.py'": "use: guard.py, after: routing",
    "error: stages.guard.use: must name a class in a file (found 'guard:Guard'": '"use": "guard:Guard", after: routing',
    "error: stages.guard.use: no installed package offers a stage of this name": "use: acme-guard, after: routing",
    "error: stages.guard.timeout: must be a duration": "use: guard.py:Guard, after: routing, timeout: [1]",
    "6:48: error: stages.guard.dney: there is no member dney (did you mean deny?)": (
        "use: guard.py:Guard, after: routing, dney: [a]"
    ),
    "6:54: error: stages.guard.deny: must be a list (found 'a'; write [...])": (
        "use: guard.py:Guard, after: routing, deny: a"
    ),
    "6:55: error: stages.guard.deny[0]: must be text (found 7)": "use: guard.py:Guard, after: routing, deny: [7]",
    "error: stages.guard.most: only even ones (found 3)": "use: guard.py:Guard, after: routing, most: 3",
    "error: stages.guard.most: is not what the stage takes": 'use: guard.py:Guard, after: routing, most: "${SECRET}"',
}
WITH_OPTIONS = '''
from pydantic import field_validator
class O(Options):
    deny: tuple[str, ...] = ()
    most: int | str = 2
    @field_validator("most")
    @classmethod
    def even(cls, most):
        if isinstance(most, str) or most % 2:
            raise ValueError(f"only even ones" if isinstance(most, int) else most)
        return most
'''  # fmt: skip


@pytest.mark.parametrize(("message", "entry"), ENTRIES.items(), ids=list(ENTRIES))
def test_an_entry_that_names_no_stage(tmp_path: Path, message: str, entry: str) -> None:
    said = refused(written(tmp_path, WITH_OPTIONS + stage(options="O"), entry))
    assert any(message in line for line in said), said
    assert "hidden-word" not in "".join(said)


WORT = "stage:guard:wort"
AGAIN = "{use: guard.py:Guard, after: guard}"


@pytest.mark.parametrize(
    ("message", "members"),
    [
        ("f.key: no stage has this name (found 'stage:gard:word'; did you mean guard?)", {"key": "stage:gard:word"}),
        ("f.key: the stage guard has no such key (found 'stage:guard:wort'; did you mean word?)", {"key": WORT}),
        ("f.key: must name a stage of the policy and one of its keys", {"key": "stage:guard"}),
        ("the stage guard comes after this limit is taken (client-quota)", {"key": "[stage:guard:word]", "early": "f"}),
        ("guard.use: it sets X-Kind, which the route all writes", {"sets": "{X-Kind: a}"}),
        ("second.use: it sets X-Kind, which the stage guard writes", {"more": f"second: {AGAIN}"}),
        ("routing: routing is a stage of the gateway", {"more": f"routing: {AGAIN}"}),
    ],
)
def test_what_a_stage_and_the_rest_of_a_policy_say_of_one_another(
    tmp_path: Path, message: str, members: dict[str, str]
) -> None:
    code = stage('sets = ("X-Kind",)\n    keys = ("word",)')
    said = refused(written(tmp_path, code, "use: guard.py:Guard, after: authentication", **members))
    assert any(message in line for line in said), said


def test_a_field_that_a_decision_service_hands_on(tmp_path: Path) -> None:
    path = written(tmp_path, stage('sets = ("X.Kind",)'))
    service = "{protocol: ext_authz, url: 'http://127.0.0.1/', forward: x-kind}"
    path.write_text(f"{path.read_text()}decision_services: {{pdp: {service}}}\ndecision: pdp\n")
    (said,) = refused(path)
    assert "stages.guard.use: it sets X.Kind, which the decision service pdp writes" in said


def test_one_reason_of_two_files(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(HEAD + stage() + "# another\n")
    path = written(tmp_path, stage(), more="second: {use: other.py:Guard, after: guard}")
    (said,) = refused(path)
    assert "stages.second.use: the stage guard has a reason guard-refused as well" in said


def test_two_entries_of_one_class(tmp_path: Path) -> None:
    path = written(tmp_path, stage(), more="second: {use: guard.py:Guard, after: guard}")
    assert list(load(path, {}).stages) == ["guard", "second"]


def test_the_places_are_those_between_the_first_stage_and_the_circuit() -> None:
    """A new stage of the gateway is one that others may come after, or stands at an end of the chain."""
    assert ("arrival", *places(), "circuit-breaker", "rewrite") == REQUIRED


def test_code_and_options_are_part_of_the_digest(tmp_path: Path) -> None:
    def of(code: str, entry: str = "use: guard.py:Guard, after: routing") -> str:
        return digest(load(written(tmp_path, code, entry), {}))

    code = WITH_OPTIONS + stage(options="O")
    usual = of(code)
    assert of(code) == usual
    assert of(code, "use: guard.py:Guard, after: routing, most: 2, deny: []") == usual  # spelled-out defaults
    others = [
        of(code + "# more\n"),
        of(code, "use: guard.py:Guard, after: routing, most: 4"),
        of(code, "use: guard.py:Guard, after: hygiene"),
        of(code, "use: guard.py:Guard, after: routing, mode: report"),
    ]
    assert len({usual, *others}) == 5


def installed(directory: Path, code: str, version: str = "1.0") -> None:
    """Install a package with a stage, as pip leaves it: its module, its entry points and the record of its files."""
    (directory / "acme_guard.py").write_text(HEAD + code)
    info = directory / "acme_guard-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-guard\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        "[mitmgate.stages]\nacme-guard = acme_guard:Guard\nacme-broken = acme_guard:Nothing\n"
    )
    (info / "RECORD").write_text("acme_guard.py,,\n")


def test_an_installed_packages_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    installed(site, stage())
    path = written(tmp_path, "", "use: acme-guard, after: routing")
    loaded = load(path, {})
    assert (loaded.stages["guard"].code.use, [*loaded.stages["guard"].reasons]) == ("acme-guard", ["guard-refused"])
    first = digest(loaded)
    installed(site, stage(), "1.1")
    assert digest(load(path, {})) != first
    assert digest(load(path, {}, loaded.stages)) == first  # at a reload nothing is looked at again
    written(tmp_path, "", "use: acme-gard, after: routing")
    assert "(entry points mitmgate.stages) (found 'acme-gard'; did you mean acme-guard?)" in refused(path)[0]
    written(tmp_path, "", "use: acme-broken, after: routing")
    assert "can't be imported: AttributeError" in refused(path)[0]
