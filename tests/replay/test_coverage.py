"""What `--coverage` counts of a policy with every kind of rule, to the byte (tests/replay/coverage)."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mitmgate.core.decision_service import ServiceAnswer
from mitmgate.replay import coverage_report
from mitmgate.replay.cases import case
from mitmgate.replay.coverage import Coverage
from mitmgate.replay.offline import OfflinePolicy, load_offline
from mitmgate.replay.run import replay
from mitmgate.replay.traffic import Aftermath, Listed, Recorded
from tests.live.harness import ROOT

PINNED = Path(__file__).with_name("coverage")
BEGIN = 1_800_000_000.0
FULL = {"tenant": "acme", "role": ["admin", "user"], "level": 1, "acr": "gold", "auth_time": BEGIN, "plan": "free"}
CLAIMS: list[dict[str, Any] | None] = [
    None,
    {},
    {"iss": "https://nobody.example"},
    {"aud": "another"},
    {"iss": "https://b.example", "exp": 1},
    {"sub": "alice", "scope": "users.read"},
    {"sub": "alice", "scope": "orders.read"},
    {"iss": "https://dev.example", "role": "guest"},
    {"iss": "https://dev.example", "sub": None, "role": "guest"},
    {"role": ["user", "admin"], "plan": "free"},
    {"role": "auditor"},
    {"tenant": "elsewhere", "role": "user"},
    {"tenant": ["globex", "x"], "role": "admin", "level": True},
    {"tenant": "acme", "role": "user", "level": 1},
    {"tenant": "acme", "role": "user", "level": 1, "acr": "gold", "auth_time": BEGIN, "plan": "pro"},
    {"tenant": "acme", "role": "user", "level": 1, "acr": "silver", "auth_time": BEGIN - 7200},
    FULL,
]
ALL = {"scope": "users.read users.write orders.read watched.read"}
SHOWN: list[dict[str, Any]] = [
    {"headers": ()},
    {"ip": "203.0.113.7"},
    {"ip": "192.0.2.1", "headers": [("Origin", "https://app.example")]},
    {"ip": "198.51.100.1"},
    {"ip": "10.0.0.13"},
    {"ip": "10.0.0.5", "headers": [("Origin", "https://evil.example")]},
    {"ip": "10.0.0.6", "headers": [("Origin", "https://www.example")], "body": 1 << 21},
    {"ip": "10.0.0.7", "headers": [("X-Odd", "yes")]},
    {"ip": "10.0.0.8", "headers": [("X-Odd", "raise")]},
    {"ip": "10.0.0.9", "headers": [("X-Forwarded-For", "10.0.0.13")]},
]
METHODS = ("GET", "POST", "PATCH", "OPTIONS")
PREFLIGHT = [("Origin", "https://app.example"), ("Access-Control-Request-Method", "GET")]


def paths(policy: OfflinePolicy) -> Iterator[tuple[str, str]]:
    """Yield hosts and paths of every route, and of none."""
    for route in policy.snapshot.routes.routes:
        below = "" if route.exact else "/7"
        for host in route.hosts or ("api.example",):
            yield host.replace("*.", "any."), route.path.rstrip("/") + below
    yield from (("api.example", path) for path in ("/pets", "/pets?limit=x", "/pets/x", "/pets/7/more", "/nothing"))


def traffic(policy: OfflinePolicy) -> Iterator[Recorded]:
    """Make requests of every kind: by who asks, from where, for what; the same ones each time."""
    number = 0
    for (host, path), method, claims, shown in product(paths(policy), METHODS, CLAIMS, SHOWN):
        number += 1
        if number % 3 and claims != FULL and shown != SHOWN[number // 30 % len(SHOWN)]:
            continue  # a third of all is plenty, and what is admitted everywhere is kept
        at = BEGIN + number / 50
        known = claims if claims is None or "role" not in claims else {"sub": "alice", **ALL, **claims}
        more = {"headers": PREFLIGHT} if method == "OPTIONS" else shown
        url = f"http://{host}{path}"
        made = case(policy.snapshot, method, url, at=at, claims=known, identity=str(number), **more)
        answer = ServiceAnswer("pdp", ("allow", "deny", "unavailable")[number % 3])
        yield made._replace(aftermath=Aftermath(at + 0.001, 503 if number % 7 < 5 else 200), service_answer=answer)
    for route in policy.snapshot.routes.routes:  # and at once, until limits and circuits say no
        host = route.hosts[0].replace("*.", "any.") if route.hosts else "api.example"
        for method in sorted(route.methods or {"GET"}):
            number += 1_000
            for turn in range(320 if method == "GET" else 3):
                at = BEGIN + number / 50 + turn / 1_000
                claims = {"sub": f"at-once-{turn % 2}", **ALL, **FULL, "plan": ("pro", "other")[turn % 2]}
                shown = {"ip": "192.0.2.1", "body": (turn % 3 == 2) << 24, "identity": f"{number}-{turn}"}
                made = case(policy.snapshot, method, f"http://{host}{route.path}", at=at, claims=claims, **shown)
                answer = ServiceAnswer("pdp", "invalid" if turn == 1 else "allow")
                yield made._replace(aftermath=Aftermath(at + 0.0001, 503), service_answer=answer)


def counted(policy: OfflinePolicy) -> Coverage:
    covered = Coverage(policy)
    report = replay(Listed("traffic.mitm", list(traffic(policy))), policy, observers=[covered])
    assert report.decided > 1_000
    return covered


def written(covered: Coverage, path: str) -> str:
    """Write everything that is shown of a coverage, and every count behind it."""
    every = [[*rule.location, rule.what, branch, count] for rule, branch, count in covered.branches]
    return "\n".join(
        [
            coverage_report.as_table(covered, 140),
            coverage_report.annotated(covered, Path(path).read_text()),
            json.dumps(covered.members(), indent=1),
            *map(json.dumps, every),
            "",
        ]
    )


@pytest.mark.parametrize("name", ["rich", "production", "policy-example"])
def test_coverage_is_what_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of what is counted shows here; `MITMGATE_PIN=1` writes what it is now."""
    monkeypatch.chdir(shutil.copytree(PINNED, tmp_path / "coverage"))
    monkeypatch.setenv("S", "s" * 32)
    for source in (ROOT / "policies" / "production.yaml", ROOT / "tests" / "policy" / "policy-example.yaml"):
        shutil.copy(source, source.name)
    found = written(counted(load_offline(f"{name}.yaml", os.environ)), f"{name}.yaml")
    pinned = PINNED / f"{name}.txt"
    if "MITMGATE_PIN" in os.environ:
        pinned.write_text(found)
    assert found.splitlines() == pinned.read_text().splitlines()
