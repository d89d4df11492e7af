"""The alert rules and the Grafana board, held to what a gateway says on /metrics.

promtool (Debian's prometheus) parses and evaluates every query, over the series of a running gateway. What it does not
say, which metrics and labels a query names, is read here: identifiers by their place in the text, no whole grammar.
"""

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mitmgate.admin.families import FAMILIES
from mitmgate.core.reason import Reason
from tests.admin.asking import Samples, admin_gateway
from tests.live.harness import ROOT, mint
from tests.live.harness_http import free_port
from tests.live.harness_upstream import RecordingUpstream

RULES = ROOT / "deploy" / "prometheus" / "mitmgate.rules.yaml"
BOARD = ROOT / "deploy" / "grafana" / "mitmgate.json"
TARGET = {"job": "mitmgate", "instance": "a:8090"}
"""The labels that Prometheus itself adds to what it scrapes."""
UNSEEN = {
    "mitmgate_decision_service_answers_total": {"service": "opa", "said": "allow", "cached": "false"},
    "mitmgate_decision_service_duration_seconds_bucket": {"service": "opa", "le": "+Inf"},
    "mitmgate_key_set_age_seconds": {"issuer": "corp"},
    "mitmgate_own_stage_duration_seconds_bucket": {"stage": "mine", "le": "+Inf"},
    "mitmgate_shadow_differences_total": {"change": "now-denied", "reason": "no-route"},
}
"""Series that a gateway without decision services, fetched keys, own stages and a shadow policy does not have."""

MINUTES = 90
Series = dict[str, str]
"""Values of each series, in promtool's notation, one a minute."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]]


def board() -> dict[str, Any]:
    made: dict[str, Any] = json.loads(BOARD.read_text())
    return made


@dataclass
class Query:
    """One query, with what it names: metrics with their matchers, labels by which it groups."""

    where: str
    text: str
    shown: set[str]
    """Labels that the words beside the query show."""
    metrics: list[tuple[str, dict[str, tuple[str, str]]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        text = re.sub(r"\[[^\]]*\]", "", self.text)
        for lists in re.finditer(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", text):
            self.grouped |= set(re.findall(r"\w+", lists[1]))
        text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
        for name, matchers in re.findall(r"\b([a-z]\w+)\b(?!\s*\()\s*(?:\{((?:[^\"}]|\"[^\"]*\")*)\})?", text):
            if name not in {"and", "or", "unless", "bool", "offset"}:
                found = re.findall(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"", matchers)
                self.metrics.append((name, {label: (how, value) for label, how, value in found}))


def queries() -> list[Query]:
    return [*of_rules(), *of_board()]


def of_rules() -> list[Query]:
    return [
        Query(rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])))
        for rule in rules()
    ]


def of_board() -> list[Query]:
    found = []
    for panel in board()["panels"]:
        for target in panel.get("targets", []):
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            found.append(Query(panel["title"], target["expr"], shown))
    for note in board()["annotations"]["list"]:
        found.append(Query(note["name"], note["expr"], set(re.findall(r"\{\{(\w+)\}\}", note["textFormat"]))))
    for variable in board()["templating"]["list"]:
        if variable["type"] == "query":
            text, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]  # else it fails, as it should
            found.append(Query(f"${variable['name']}", text, {label}))
    return found


def name_of(series: str, labels: dict[str, str]) -> str:
    return f"{series}{{{','.join(f'{name}={json.dumps(value)}' for name, value in sorted(labels.items()))}}}"


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Scrape a gateway that has admitted, denied, limited and failed to reach a service."""
    with RecordingUpstream() as upstream:
        away = {"endpoints": [f"http://127.0.0.1:{free_port()}"]}
        upstreams = {"users": {"endpoints": [upstream.url]}, "orders": away}
        with admin_gateway(tmp_path_factory.mktemp("scraped"), upstream, upstreams=upstreams) as gateway:
            said = [gateway.get(f"/api/v1/{name}/1", token=mint()).status for name in ("users", "orders")]
            said += [gateway.get("/api/v1/users/1").status, gateway.get("/nowhere", token=mint()).status]
            assert said == [200, 502, 401, 404]
            return gateway.samples()


@pytest.fixture(scope="module")
def world(scraped: Samples) -> Series:
    """Make an hour and a half of a healthy gateway's series out of one scrape.

    Counters that have counted go on by one a minute, with all durations in the first bucket: whether this machine is
    fast says nothing of the rules.
    """
    made = {name_of("up", TARGET): f"1x{MINUTES}"}
    kinds = {family.full_name: family.kind for family in FAMILIES}
    for (name, labels), value in scraped.items():
        counts = kinds.get(name, "histogram") in {"counter", "histogram"}
        healthy = not any(re.match(r"upstream-", shown) for _, shown in labels)
        step = 1 if counts and healthy and (value or name.endswith("_bucket")) else 0
        made[name_of(name, dict(labels) | TARGET)] = f"{value:g}+{step}x{MINUTES}"
    for name, unseen in UNSEEN.items():
        made[name_of(name, unseen | TARGET)] = f"1+{int(name != 'mitmgate_key_set_age_seconds')}x{MINUTES}"
    return made


def promtool(*words: str | Path) -> str:
    """Run promtool; return what it had to say against it."""
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def evaluated(directory: Path, tests: list[dict[str, Any]]) -> str:
    """Have promtool evaluate tests (its format of unit tests) with the rules; return what is otherwise."""
    path = directory / "tests.yaml"
    for test in tests:
        test["interval"] = "1m"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    return promtool("test", "rules", path)


def inputs(series: Series, asking: Iterable[Query]) -> list[dict[str, str]]:
    """Give promtool the series that these queries read: it takes a while for each."""
    read = {name for query in asking for name, _ in query.metrics}
    return [{"series": name, "values": values} for name, values in series.items() if name.partition("{")[0] in read]


def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    assert promtool("check", "rules", RULES) == ""
    broken = tmp_path / "broken.yaml"
    broken.write_text(RULES.read_text().replace("== 0", "== == 0", 1))
    assert "parse error" in promtool("check", "rules", broken)


def test_promtool_takes_the_configuration_of_the_page(tmp_path: Path) -> None:
    text = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "admin.md").read_text(), re.DOTALL)[-1]
    (tmp_path / "prometheus.yaml").write_text(text)
    (tmp_path / RULES.name).write_text(RULES.read_text())
    assert promtool("check", "config", tmp_path / "prometheus.yaml") == ""
    assert f"job_name: {TARGET['job']}\n" in text


def test_every_metric_and_label_of_a_query_is_what_the_gateway_says(scraped: Samples) -> None:
    known: dict[str, set[str]] = {"up": set()}
    for name, labels in scraped:
        known.setdefault(name, set()).update(label for label, _ in labels)
    assert not set(UNSEEN) & set(known), "the gateway has them: take them from it"
    tables = {family.full_name: set(family.labels) for family in FAMILIES}
    for name, unseen in UNSEEN.items():
        base = name.removesuffix("_bucket")
        assert tables[base] | ({"le"} if base != name else set()) == set(unseen)
        known[name] = set(unseen)
    wrong = []
    for query in queries():
        assert query.metrics, query
        names = {name for name, _ in query.metrics}
        wrong += [(query.where, name) for name in names - set(known)]
        theirs = set().union(*(known.get(name, set()) for name in names)) | set(TARGET)
        wrong += [(query.where, label) for label in query.grouped - theirs]
        wrong += [(query.where, label) for label in query.shown - (query.grouped or theirs)]
        for name, matchers in query.metrics:
            wrong += [(query.where, label) for label in set(matchers) - known.get(name, set()) - set(TARGET)]
    assert wrong == []


def test_queries_are_read_with_all_that_they_name() -> None:
    text = 'sum by (a, le) (rate(m_total{b=~"x|y{2}", c!="}"}[5m])) / on (d) group_left (e) n_info{f="g"} or vector(0)'
    query = Query("", text, set())
    assert query.metrics == [("m_total", {"b": ("=~", "x|y{2}"), "c": ("!=", "}")}), ("n_info", {"f": ("=", "g")})]
    assert query.grouped == {"a", "le", "d", "e"}


def test_reasons_are_those_that_there_are() -> None:
    """A denial is what is refused, and neither a service's failure nor a client that left."""
    others = {reason.value for reason in Reason if reason.status < 400 or reason.value.startswith("upstream-")}
    others |= {Reason.STREAM_TIMEOUT.value, Reason.CLIENT_CLOSED.value}
    patterns = [matchers["reason"] for query in queries() for _, matchers in query.metrics if "reason" in matchers]
    assert len(patterns) > 5
    for how, pattern in patterns:
        for part in pattern.split("|"):
            assert any(re.fullmatch(part, reason.value) for reason in Reason), part
        if how == "!~":
            assert {reason.value for reason in Reason if re.fullmatch(pattern, reason.value)} == others


def with_variables(text: str) -> str:
    return text.replace("$__rate_interval", "5m").replace("$job", ".+").replace("$instance", ".+")


def test_every_query_of_the_board_has_an_answer(tmp_path: Path, world: Series) -> None:
    series = world | {
        name_of("mitmgate_policy_loaded_timestamp_seconds", TARGET): f"1x66 2x{MINUTES}",  # loaded again
        name_of("mitmgate_rate_limit_decisions_total", degraded("true") | TARGET): f"0+1x{MINUTES}",
    }
    wanted = [with_variables(query.text) for query in of_board()]
    assert len(wanted) > 40
    assert not any("$" in text for text in wanted)
    tests = [
        {"expr": f"count({text}) > bool 0", "eval_time": "70m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for text in wanted
    ]
    assert evaluated(tmp_path, [{"input_series": inputs(series, of_board()), "promql_expr_test": tests}]) == ""


def degraded(value: str) -> dict[str, str]:
    return {"limit": "per-user", "outcome": "admitted", "degraded": value}


def request(reason: str, status: str = "503", route: str = "users") -> dict[str, str]:
    return {"route": route, "method": "GET", "status": status, "reason": reason}


FALLEN = f"0x{MINUTES}"
MANY = f"0+120x{MINUTES}"
SUDDEN = f"0x60 0+120x{MINUTES}"
FIRING: dict[str, list[tuple[str, dict[str, str], str]]] = {
    "MitmgateDown": [("up", {}, FALLEN)],
    "MitmgateNotReady": [("mitmgate_ready", {}, FALLEN)],
    "MitmgateWorkersNotReady": [("mitmgate_workers", {}, f"2x{MINUTES}")],
    "MitmgateRestarts": [("process_start_time_seconds", {}, f"0+60x{MINUTES}")],
    "MitmgateEventLoopLate": [("mitmgate_event_loop_lag_seconds_bucket", {"le": "+Inf"}, MANY)],
    "MitmgateDecisionsSlow": [("mitmgate_decision_duration_seconds_bucket", {"le": "+Inf"}, MANY)],
    "MitmgateAtCapacity": [("mitmgate_requests_total", request("memory-exhausted"), f"0+1x{MINUTES}")],
    "MitmgateMemoryNearLimit": [
        ("mitmgate_memory_held_bytes", {}, f"90x{MINUTES}"),
        ("mitmgate_memory_limit_bytes", {}, f"100x{MINUTES}"),
    ],
    "MitmgateDescriptorsNearLimit": [
        ("process_open_fds", {}, f"90x{MINUTES}"),
        ("process_max_fds", {}, f"100x{MINUTES}"),
    ],
    "MitmgateDenialsRising": [("mitmgate_requests_total", request("token-expired", "401"), SUDDEN)],
    "MitmgateStageErrors": [("mitmgate_requests_total", request("stage-error"), f"0+1x{MINUTES}")],
    "MitmgateUpstreamFailing": [("mitmgate_requests_total", request("upstream-timeout", "504"), f"0+1x{MINUTES}")],
    "MitmgateUpstreamErrors": [("mitmgate_requests_total", request("ok", "500"), f"0+1x{MINUTES}")],
    "MitmgateCircuitOpen": [("mitmgate_circuit_state", {"upstream": "users", "state": "open"}, f"1x{MINUTES}")],
    "MitmgateNoEndpoint": [("mitmgate_circuit_state", {"upstream": "users", "state": "closed"}, FALLEN)],
    "MitmgateDecisionServiceFailing": [
        (
            "mitmgate_decision_service_answers_total",
            {"service": "opa", "said": "unavailable", "cached": "false"},
            f"0+1x{MINUTES}",
        )
    ],
    "MitmgateStoreLost": [("mitmgate_store_available", {}, FALLEN)],
    "MitmgateKeysUnusable": [("mitmgate_key_set_usable", {}, FALLEN)],
    "MitmgateKeySetStale": [("mitmgate_key_set_age_seconds", {}, f"0+60x{MINUTES}")],
    "MitmgatePolicyRefused": [("mitmgate_policy_reloads_total", {"outcome": "rejected"}, f"0x65 1x{MINUTES}")],
    "MitmgatePoliciesDiffer": [("mitmgate_policy_info", {"digest": "sha256:other"}, f"1x{MINUTES}")],
    "MitmgateAuditSinkFailing": [("mitmgate_audit_sink_failing", {}, f"1x{MINUTES}")],
    "MitmgateAuditRecordsLost": [("mitmgate_audit_dropped_total", {}, f"0x65 7x{MINUTES}")],
}
"""What makes each alert fire: series whose labels hold these, or a new one, have these values."""


def changed(world: Series, alert: str) -> Series:
    """Return a world with the series that FIRING has for the alert."""
    series = dict(world)
    for name, labels, values in FIRING[alert]:
        wanted = [f"{label}={json.dumps(value)}" for label, value in labels.items()]
        known = [one for one in world if one.startswith(f"{name}{{") and all(pair in one for pair in wanted)]
        series |= dict.fromkeys(known or [name_of(name, labels | TARGET)], values)
    return series


def firing(series: Series, alerts: Iterable[dict[str, str]]) -> dict[str, Any]:
    """Make a test that just these alerts fire, each by its name and, where it is of one gateway, its instance."""
    return {
        "input_series": inputs(series, of_rules()),
        "promql_expr_test": [
            {
                "expr": 'count by (alertname, instance) (ALERTS{alertstate="firing"}) > bool 0',
                "eval_time": "70m",
                "exp_samples": [{"labels": name_of("", labels), "value": 1} for labels in alerts],
            }
        ],
    }


def test_each_alert_fires_for_what_it_is_about_and_none_for_a_healthy_gateway(tmp_path: Path, world: Series) -> None:
    """Alerts of one gateway are tried side by side, each on a gateway of its own; those of a job one by one."""
    assert set(FIRING) == {rule["alert"] for rule in rules()}
    of_job = {query.where for query in of_rules() if query.grouped and "instance" not in query.grouped}
    assert 0 < len(of_job) < 8
    fleet, alone = dict(world), sorted(set(FIRING) - of_job)
    for alert in alone:
        fleet |= {
            name.replace(json.dumps(TARGET["instance"]), json.dumps(alert)): values
            for name, values in changed(world, alert).items()
        }
    tests = [firing(fleet, [{"alertname": alert, "instance": alert} for alert in alone])]
    tests += [firing(changed(world, alert), [{"alertname": alert}]) for alert in sorted(of_job)]
    assert evaluated(tmp_path, tests) == ""


def test_what_is_as_it_was_does_not_rise(tmp_path: Path, world: Series) -> None:
    """Denials that have come all the time, and three times as many of them, are no news."""
    key = name_of("mitmgate_requests_total", request("token-expired", "401") | TARGET)
    tests = [firing(world | {key: values}, []) for values in (MANY, f"0+120x45 5760+360x{MINUTES}")]
    assert evaluated(tmp_path, tests) == ""


def anchors(path: Path) -> Iterator[str]:
    for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pages_that_rules_and_board_name_are_there() -> None:
    assert all(re.search(r"\b(docs|deploy)/", rule["annotations"]["runbook"]) for rule in rules())
    assert {rule["labels"]["severity"] for rule in rules()} == {"critical", "warning"}
    named = re.findall(r"((?:docs|deploy)/[\w-]+\.md)(?:#([\w-]+))?", RULES.read_text() + BOARD.read_text())
    assert len(named) > 40
    for page, anchor in named:
        assert not anchor or anchor in anchors(ROOT / page), f"{page}#{anchor}"
        assert (ROOT / page).exists(), page


def test_the_panels_of_the_board_stand_beside_each_other() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel.get("targets", []))
