"""A further stage of the gateway's own: its file, its line in chain.py, and nothing else of the package is changed.

It has members of the policy and of routes, a reference between them, files that they name, reasons of its own, and what
it decides by. Every command and host sees all of it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.harness import ROOT, Gateway, Host, policy, route, write_policy
from tests.live.harness_upstream import RecordingUpstream

STAGE = '''\
"""Maintenance: routes that are closed for now."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final

from pydantic import Field

from mitmgate.core.reason import Reason
from mitmgate.core.token import UnverifiedToken
from mitmgate.core.verdict import Step
from mitmgate.pipeline.coverage import Branch, Rule
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage, route_at
from mitmgate.pipeline.warnings import unused
from mitmgate.policy.declared import of
from mitmgate.policy.document import Document
from mitmgate.policy.files import UnreadableError
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.material import Reader
from mitmgate.policy.problem import Location, Problem, nearest
from mitmgate.policy.scalars import Duration, HeaderName, Name, Text, duration
from mitmgate.policy.section import Section
from mitmgate.policy.snapshot import Snapshot

CLOSED: Final = Reason.declare("closed-for-now", 503, "Closed for now")


class Window(Section):
    """While something is worked at."""

    says: Text = "Come back later."
    """What clients are told."""
    lasts: Duration = duration("1h", "How long it will take (seconds).")
    notice: Text | None = None
    """A file with what clients are told in its place."""
    field: HeaderName = "X-Window"
    """Where a service would be told of it."""


class OfPolicy(Section):
    """Its members of the policy."""

    maintenance: dict[Name, Window] = Field(default={})
    """Windows by name, for routes."""


class OfRoute(Section):
    """Its members of a route."""

    closed: Name | None = None
    """The name of the window that the route is closed for; unset: it is open."""


class Maintenance(Stage):
    """Refuse what comes by a route that is closed."""

    name: ClassVar[str] = "maintenance"
    section, route_section = OfPolicy, OfRoute
    reasons: ClassVar[tuple[Reason, ...]] = (CLOSED,)
    changes: ClassVar[Mapping[Reason, str]] = {CLOSED: "a route that is open"}

    @classmethod
    def mistakes(cls, document: Document) -> Iterator[Problem]:
        """Yield names of windows that are not there."""
        windows, routes = document.at(("maintenance",)), document.at(("routes",))
        known = list(windows) if isinstance(windows, dict) else []
        for index in range(len(routes) if isinstance(routes, list) else 0):
            at = ("routes", index, "closed")
            name = document.at(at)
            if isinstance(name, str) and name not in known:
                yield document.problem(at, "no window has this name", hint=nearest(name, known))

    @classmethod
    def fields(cls, document: Document) -> Iterator[tuple[str, str]]:
        """Yield where services would be told."""
        windows = document.at(("maintenance",))
        for name in windows if isinstance(windows, dict) else ():
            field = document.at(("maintenance", name, "field"))
            if isinstance(field, str):
                yield field, f"the window {name}"

    @classmethod
    def read(cls, reader: Reader) -> tuple[dict[str, str], list[Problem]]:
        """Read the notices."""
        notices, problems = dict[str, str](), list[Problem]()
        windows = reader.document.at(("maintenance",))
        for name in windows if isinstance(windows, dict) else ():
            at = ("maintenance", name, "notice")
            file = reader.document.at(at)
            if isinstance(file, str):
                try:
                    content = reader.files.read(file)
                except UnreadableError as error:
                    problems.append(reader.document.problem(at, f"the file {error}"))
                    continue
                reader.material.hashes["/".join(at)] = hashlib.sha256(content).hexdigest()
                notices[name] = content.decode()
        return notices, problems

    @classmethod
    def compiled(cls, loaded: Loaded) -> dict[str, str]:
        """Return what is told on each route that is closed, by the route's name."""
        windows, notices = of(loaded.policy, OfPolicy).maintenance, loaded.read[cls.name]
        names = {known.name: of(known, OfRoute).closed for known in loaded.policy.routes}
        said = {name: window.says for name, window in windows.items()} | notices
        return {route: said[name] for route, name in names.items() if name is not None}

    def reads(self, exchange: Exchange) -> dict[str, object]:
        """Return what it has looked at."""
        return {"closed": _says(exchange) is not None}

    def goes_by(self, exchange: Exchange) -> list[Location]:
        """Name the members of the policy."""
        return [(*route_at(exchange), "closed"), ("maintenance",)]

    @classmethod
    def rules(cls, loaded: Loaded) -> Iterator[Rule]:
        """Count what each window has kept away."""
        for name in of(loaded.policy, OfPolicy).maintenance:
            yield Rule(("maintenance", name), f"window {name}", ("kept-away",))

    def covered(self, exchange: Exchange, step: Step, token: UnverifiedToken | None) -> Iterator[Branch]:
        """Tell what this request has exercised."""
        at = route_at(exchange)
        if step.reason is CLOSED:
            yield ("maintenance", of(exchange.snapshot.policy.routes[int(at[1])], OfRoute).closed or ""), "kept-away"

    @classmethod
    def warnings(cls, loaded: Loaded, snapshot: Snapshot) -> Iterator[Problem]:
        """Find windows that no route has."""
        used = {of(known, OfRoute).closed for known in loaded.policy.routes}
        yield from unused(loaded.document, ("maintenance",), of(loaded.policy, OfPolicy).maintenance, used)

    def decide(self, exchange: Exchange) -> Step:
        """Refuse, or go on."""
        if exchange.head is not None and b"x-undeclared" in exchange.head.headers:
            return self.deny(Reason.ROLE_MISSING, "Not for this stage to say.")
        says = _says(exchange)
        return self.skipped if says is None else self.deny(CLOSED, says)


def _says(exchange: Exchange) -> str | None:
    said, route = exchange.snapshot.compiled["maintenance"], exchange.route
    if not isinstance(said, dict):
        raise TypeError("no windows")
    return None if route is None else said.get(route.name)
'''

GUARD = """\
from mitmgate.stage import Options, Stage


class Guard(Stage[Options]):
    sets = ("x.w",)

    def decide(self, facts):
        return self.admit(set={"x.w": "1"})
"""

SEVERAL = """\
import json, sys
from mitmgate.cli import main
for words in json.loads(sys.argv[1]):
    print(f"|{main(words)}|", flush=True)
from mitmgate.policy.schema import schema
print("|||" + json.dumps(schema()))
"""

COVERAGE = """\
import os, sys
from mitmgate.replay.cases import case
from mitmgate.replay.coverage import Coverage
from mitmgate.replay.offline import load_offline
from mitmgate.replay.run import replay
from mitmgate.replay.traffic import Listed
policy = load_offline(sys.argv[1], os.environ)
coverage = Coverage(policy)
asked = [case(policy.snapshot, "GET", url, at=1.8e9) for url in ("/closed", "/closed/7", "/public")]
replay(Listed("made", asked), policy, observers=[coverage])
print([(rule.what, branch, count) for rule, branch, count in coverage.branches if rule.location[0] == "maintenance"])
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the package, and add the stage: its file, and its line."""
    copy = tmp_path_factory.mktemp("package") / "addons"
    shutil.copytree(ROOT / "addons", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "mitmgate" / "stages" / "maintenance.py").write_text(STAGE)
    chain = copy / "mitmgate" / "chain.py"
    text = chain.read_text()
    line = '    "size-limit",\n'
    assert text.count(line) == 1
    chain.write_text(text.replace(line, f'    "maintenance",\n{line}'))
    return copy


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        yield server


def closing(directory: Path, upstream: RecordingUpstream, **members: Any) -> dict[str, Any]:
    made = policy(directory, upstream, maintenance={"tonight": {"says": "Back at nine."}, "spare": {}})
    made["routes"].append({"name": "closed", "match": {"prefix": "/closed"}, "upstream": "users", "auth": "none"})
    return route(made, "closed", **({"closed": "tonight"} | members))


def test_check_explain_and_the_schema(package: Path, upstream: RecordingUpstream, tmp_path: Path) -> None:
    good = write_policy(tmp_path, closing(tmp_path, upstream))
    wrong = closing(tmp_path, upstream, closed="tonigt")
    wrong["maintenance"] = {
        "tonight": {"say": "?", "lasts": "soon"},
        "later": {"notice": "nowhere.txt", "field": "X-W"},
    }
    wrong["upstreams"]["orders"]["trailers"] = "x-w"
    wrong["stages"] = {"guard": {"use": "guard.py:Guard", "after": "routing"}}
    (tmp_path / "guard.py").write_text(GUARD)
    route(wrong, "public", closed=7)
    bad = write_policy(tmp_path, wrong, "bad.yaml")
    url = "http://api.example/closed"
    words = [["check", str(bad)], ["check", str(good)], ["explain", "--policy", str(good), "GET", url]]
    run = subprocess.run(
        [sys.executable, "-c", SEVERAL, json.dumps(words)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", "MITMGATE_TEST_SECRET": "s" * 64},
        check=True,
    )
    said, _, schema = run.stdout.partition("|||")
    errors, failed, checked, passed, explained, shown, _ = said.split("|")
    assert (failed, passed, shown) == ("2", "0", "0"), said
    lines = bad.read_text().splitlines()

    def at(text: str, column: str = "value") -> str:
        (number,) = [number for number, line in enumerate(lines, 1) if text in line]
        begins = lines[number - 1].index(": ") + 2 if column == "value" else lines[number - 1].index('"')
        return f"{bad}:{number}:{begins + 1}: error: "

    assert at('"say"', "key") + "maintenance.tonight.say: there is no member say (did you mean says?)" in errors
    assert at('"lasts"') + "maintenance.tonight.lasts: " in errors
    assert at('"closed": 7') + "routes[2].closed: " in errors
    assert at('"closed": "tonigt"') + "routes[3].closed: no window has this name" in errors
    assert "did you mean tonight?" in errors
    assert at('"trailers"') + "upstreams.orders.trailers: x-w carries identity; the gateway alone writes it" in errors
    assert at('"use"') + "stages.guard.use: it sets x.w, which the window later writes" in errors
    assert at('"notice"') + "maintenance.later.notice: the file can't be read" in errors
    assert "ok, 4 routes" in checked
    assert "maintenance" in explained and "closed-for-now" in explained
    assert "a route that is open" in explained
    (line,) = [number for number, text in enumerate(good.read_text().splitlines(), 1) if '"spare"' in text]
    assert f"{good}:{line}:" in checked and "warning: maintenance.spare: nothing uses this [unused]" in checked
    made = json.loads(schema)
    assert [*made["properties"]["maintenance"]["patternProperties"].values()] == [{"$ref": "#/$defs/Window"}]
    assert made["properties"]["maintenance"]["description"] == "Windows by name, for routes."
    assert made["$defs"]["Window"]["properties"]["says"]["description"] == "What clients are told."
    assert "closed" in made["$defs"]["Route"]["properties"]
    assert made["properties"]["routes"]["items"] == {"$ref": "#/$defs/Route"}


def test_coverage_counts_it(package: Path, upstream: RecordingUpstream, tmp_path: Path) -> None:
    path = write_policy(tmp_path, closing(tmp_path, upstream))
    run = subprocess.run(
        [sys.executable, "-c", COVERAGE, str(path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", "MITMGATE_TEST_SECRET": "s" * 64},
        check=True,
    )
    assert run.stdout == "[('window tonight', 'kept-away', 2), ('window spare', 'kept-away', 0)]\n"


def test_hosts_decide_by_it(package: Path, upstream: RecordingUpstream, host: Host, tmp_path: Path) -> None:
    (tmp_path / "notice.txt").write_text("Back at ten.")
    made = closing(tmp_path, upstream)
    made["maintenance"]["later"] = {"notice": "notice.txt", "field": "X-Later"}
    made["routes"].append(made["routes"][-1] | {"name": "longer", "match": {"prefix": "/longer"}, "closed": "later"})
    path = write_policy(tmp_path, made)
    upstream.forget_requests()
    with Gateway(path, host=host, environment={"PYTHONPATH": str(package)}) as gateway:
        refused = gateway.get("/closed/7")
        assert (refused.status, refused.reason, refused.json["detail"]) == (503, "closed-for-now", "Back at nine.")
        assert gateway.get("/longer").json["detail"] == "Back at ten."
        undeclared = gateway.get("/public", headers={"X-Undeclared": "1"})
        assert (undeclared.status, undeclared.reason) == (503, "stage-error")
        upstream.assert_saw_nothing()
        assert gateway.get("/public", headers={"X-Later": "1", "x.later": "1", "X-Sooner": "1"}).status == 200
        assert [seen.target for seen in upstream.requests] == ["/public"]
        names = {name.lower() for name, _ in upstream.requests[0].headers}
        assert names & {"x-later", "x.later", "x-sooner"} == {"x-sooner"}
        assert "stage maintenance failed" in gateway.log
        assert "maintenance gives the reason role-missing, which it does not declare" in gateway.log
