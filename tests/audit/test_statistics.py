"""`mitmgate audit stats`, and what is asked for: figures beside those that are counted by other means."""

import csv
import gzip
import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.audit.commands import audit
from mitmgate.audit.selection import moment, statuses
from mitmgate.audit.statistics import Frequent, Quantiles, Statistics
from mitmgate.usage import UserError

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
REASONS = {200: "ok", 401: "token-expired", 429: "rate-limited", 502: "upstream-closed"}
OUTCOMES = {200: "proxied", 401: "denied", 429: "denied", 502: "failed"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(audit, [str(argument) for argument in arguments])


def request(number: int, dice: random.Random) -> dict[str, object]:
    status = dice.choices([200, 401, 429, 502], [80, 10, 8, 2])[0]
    return {
        "time": f"2027-01-15T{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}Z",
        "event": "request",
        "request_id": f"{number:032x}",
        "client_ip": f"198.51.100.{dice.randrange(256)}",
        "user": f"user-{int(dice.paretovariate(0.7)) % 1000}",
        "method": "GET",
        "path": f"/{number}",
        "route": f"route-{dice.randrange(12)}",
        "status": status,
        "outcome": OUTCOMES[status],
        "reason": REASONS[status],
        "duration_ms": round(dice.lognormvariate(1.5, 1.5), 3),
        "upstream_ms": round(dice.lognormvariate(1.0, 1.5), 3),
    }


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, an older file of it, and the log of refused requests."""
    path = tmp_path_factory.mktemp("statistics") / "audit.jsonl"
    dice = random.Random(11)
    lines = [json.dumps(request(number, dice)) for number in range(4000)]
    other = json.dumps({"time": "2027-01-15T00:00:00.000Z", "event": "policy-reloaded"})
    Path(f"{path}.1").write_text("\n".join([other, *lines[:1500], ""]))
    path.write_text("\n".join([*lines[1500:3500], "no event", ""]))
    path.with_name("audit.refused.jsonl").write_text("\n".join([*lines[3500:], ""]))
    return path


def records(log: Path) -> list[dict[str, object]]:
    files = (Path(f"{log}.1"), log, log.with_name("audit.refused.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines() if line.startswith("{")]
    return [event for event in map(json.loads, lines) if event["event"] == "request"]


def test_figures_are_those_of_a_count_by_other_means(log: Path) -> None:
    report = json.loads(run("stats", log, "--format", "json", "--top", 1000).output)
    found = records(log)
    assert (report["requests"], report["events"], report["other_events"]) == (4000, 4001, {"policy-reloaded": 1})
    assert (report["first"], report["last"]) == ("2027-01-15T00:00:00.000Z", max(str(event["time"]) for event in found))
    for name in ("outcome", "reason", "status", "route", "user", "client_ip"):
        expected = Counter(str(event[name]) for event in found)
        assert Counter(report[name]["top"]) == expected
        assert list(report[name]["top"].values()) == sorted(expected.values(), reverse=True)
    for member in ("duration_ms", "upstream_ms"):
        exact = sorted(float(str(event[member])) for event in found)
        assert report[member]["max"] == exact[-1]
        for percent in (50, 90, 95, 99):
            value = exact[-(-len(exact) * percent // 100) - 1]
            assert report[member][f"p{percent}"] == pytest.approx(value, rel=0.0101)
    route = [event for event in found if event["route"] == "route-3"]
    assert report["routes"]["route-3"]["requests"] == len(route)
    assert Counter(report["routes"]["route-3"]["outcomes"]) == Counter(event["outcome"] for event in route)


def test_the_table_has_the_figures(log: Path) -> None:
    output = run("stats", log, "--top", 3).output
    found = records(log)
    user, count = Counter(event["user"] for event in found).most_common(1)[0]
    assert "4,000 requests and 1 other events" in output
    assert any(str(user) in line and f"{count:,}" in line for line in output.splitlines())
    assert f"And {len({event['user'] for event in found}) - 3:,} more" in output


def test_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("")
    assert run("stats", path).output == "0 requests and 0 other events\n"
    assert json.loads(run("stats", path, "--format", "json").output)["duration_ms"] == {"max": 0.0}


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(1, 8))
def test_a_count_lacks_no_more_than_is_said(names: list[int], most: int) -> None:
    frequent = Frequent(most)
    for name in names:
        frequent.add(str(name))
        assert len(frequent.counts) <= 2 * most
    exact = Counter(map(str, names))
    for each, count in exact.items():
        assert count - frequent.missed <= frequent.counts[each] <= count
    if len(exact) <= most:
        assert frequent.missed == 0


@given(st.lists(st.floats(0, 1e7), min_size=1, max_size=200), st.integers(1, 100))
def test_a_quantile_is_right_to_a_hundredth(durations: list[float], percent: int) -> None:
    quantiles = Quantiles()
    for duration in durations:
        quantiles.add(duration)
    value = sorted(durations)[-(-len(durations) * percent // 100) - 1]
    assert quantiles.at(percent) == pytest.approx(value, rel=0.0101, abs=1e-3)


def test_memory_does_not_grow_with_names() -> None:
    statistics = Statistics()
    for frequent in statistics.named.values():
        frequent._most = 100
    for number in range(5000):
        statistics.add({"event": "request", "user": f"u{number}", "route": f"r{number}", "duration_ms": 1.0 + number})
    assert len(statistics.named["user"].counts) <= 200
    assert len(statistics.by_route) == 1000
    assert statistics.requests == 5000


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--status", "401"), lambda event: event["status"] == 401),
        (("--status", "4xx"), lambda event: event["status"] in (401, 429)),
        (("--status", "429-502", "--status", "200"), lambda event: event["status"] != 401),
        (("--user", "user-1", "--user", "user-2"), lambda event: event["user"] in ("user-1", "user-2")),
        (
            ("--route", "route-3", "--reason", "ok"),
            lambda event: (event["route"], event["reason"]) == ("route-3", "ok"),
        ),
        (("--outcome", "failed"), lambda event: event["outcome"] == "failed"),
        (("--client", "198.51.100.16/29"), lambda event: 16 <= int(event["client_ip"].rpartition(".")[2]) < 24),
        (("--client", "198.51.100.7"), lambda event: event["client_ip"] == "198.51.100.7"),
        (
            ("--since", "2027-01-15T01:00:00Z", "--until", "2027-01-15T03:00:00+01:00"),
            lambda event: "2027-01-15T01" <= event["time"] < "2027-01-15T02",
        ),
        (("--request-id", f"{77:032x}"), lambda event: event["path"] == "/77"),
        (("--event", "request"), lambda event: True),
    ],
)
def test_what_is_asked_for_is_found(log: Path, options: tuple[str, ...], wanted: "object") -> None:
    assert callable(wanted)
    expected = sorted(str(event["path"]) for event in records(log) if wanted(event))
    found = [json.loads(line) for line in run("show", log, *options, "--format", "json").output.splitlines()]
    assert sorted(event["path"] for event in found) == expected
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)
    assert json.loads(run("stats", log, *options, "--format", "json").output)["requests"] == len(expected)
    assert len(run("tail", log, *options, "-n", "50").output.splitlines()) == min(50, len(expected))


def test_a_table_fits_its_terminal_and_says_what_is_left_out(log: Path) -> None:
    for columns in (80, 120, 200):
        result = CliRunner(env={"COLUMNS": str(columns)}).invoke(audit, ["show", str(log), "--last", "5"])
        lines = result.output.splitlines()
        assert max(map(len, lines)) <= columns
        assert "The latest 5 of 4,001; --last N shows more." in lines
        assert ("request id" in lines[1]) is (columns == 200)
        assert ("Not shown" in result.output) is (columns < 200)


def test_csv_has_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    users = ["=HYPERLINK(1)", "+1", "-1", "@x", "a,b", 'a"b', "a\nb", "", "/x;=1+1;-2", " =1", "＝1"]  # noqa: RUF001 - as below
    path.write_text("".join(json.dumps({"event": "request", "user": user}) + "\n" for user in users))
    rows = list(csv.DictReader(io.StringIO(run("show", path, "--format", "csv").output)))
    assert [row["user"] for row in rows] == [
        *("'=HYPERLINK(1)", "'+1", "'-1", "'@x"),
        *("a,b", 'a"b', "a\\u000ab", ""),
        *("/x;'=1+1;'-2", "' =1", "'＝1"),  # noqa: RUF001 - where lists are parted by `;`, so are cells
    ]


def test_json_is_ascii_and_the_event(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    event = {"event": "request", "path": "/\x1b[2J\u202e", "roles": ["a"], "status": 200}
    path.write_text(json.dumps(event, ensure_ascii=False) + "\n")
    output = run("show", path, "--format", "json").output
    assert output.isascii() and "\x1b" not in output
    assert json.loads(output) == event


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15m", "2027-01-15T07:45:00.000Z"),
        ("2h", "2027-01-15T06:00:00.000Z"),
        ("1d", "2027-01-14T08:00:00.000Z"),
        ("2027-01-15", "2027-01-15T00:00:00.000Z"),
        ("2027-01-15T10:00:00+02:00", "2027-01-15T08:00:00.000Z"),
        ("2027-01-15 10:00", "2027-01-15T10:00:00.000Z"),
        ("7:30", "2027-01-15T07:30:00.000Z"),
        ("07:30:05.5", "2027-01-15T07:30:05.500Z"),
    ],
)
def test_times(text: str, expected: str) -> None:
    assert moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "soon", "15", "m", "25:00", "2027-13-01", "99999-01-01"])
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        moment(text, NOW)
    assert run("show", "x", "--since", text).exit_code == 2


def test_statuses() -> None:
    assert (statuses("404"), statuses("5xx"), statuses("400-418")) == (
        range(404, 405),
        range(500, 600),
        range(400, 419),
    )
    for text in ("", "4", "4xy", "418-400", "600", "abc"):
        result = run("show", "x", "--status", text)
        assert (result.exit_code, "is not 401, 4xx or 400-418" in result.output) == (2, True)
    assert run("show", "x", "--client", "10.0.0.0/99").exit_code == 2


ODD = [
    *("1.79e308", "-1.79e308", "-1", "0", "5e-324", "true", "null", "[]", "{}", "[1]", '{"a":"\\u001b[2J"}', '""'),
    *(
        "18446744073709551615",
        "1" + "0" * 300,
        "1e400",
        "NaN",
        "Infinity",
        '"\\ud800"',
        '"\\u0000"',
        '"[red]"',
        "401.0",
    ),
    *("[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, '"' + "é" * 3000 + '"'),
]
MEMBERS = ("time", "event", "status", "outcome", "reason", "cause", "method", "path", "query", "route", "user")


@pytest.mark.parametrize("command", ["stats", "show", "tail"])
def test_no_value_of_a_member_ends_a_command(tmp_path: Path, command: str) -> None:
    """A file is read to the end whatever was written into it: who can append one line must not blind its readers."""
    path, good = tmp_path / "audit.jsonl", json.dumps(request(1, random.Random(1)))
    lines = [good]
    for name in (*MEMBERS, "client_ip", "duration_ms", "upstream_ms", "issuer", "request_id", "seq", "prev", "mac"):
        for odd in ODD:
            kept = [
                f'"{name}":{odd}',
                *(f'"{key}":{json.dumps(value)}' for key, value in json.loads(good).items() if key != name),
            ]
            lines += ["{" + ",".join(kept) + "}", f'{{"event":"other","{name}":{odd}}}']
    path.write_text("\n".join([*lines, good, ""]))
    forms = {"tail": ("text", "json")}.get(command, ("table", "json", "csv"))
    chosen: list[tuple[str, ...]] = [("--format", form) for form in forms]
    for form in chosen:
        for asked in ((), ("--status", "4xx"), ("--client", "198.51.100.0/24"), ("--since", "2027-01-15")):
            more = ("-n", 9999) if command == "tail" else ("--last", 9999) if command == "show" else ()
            result = run(command, path, *form, *more, *asked)
            assert (result.exit_code, result.exception) == (0, None), asked
            if form == ("--format", "json"):
                for text in result.output.splitlines() if command != "stats" else [result.output]:
                    json.loads(text, parse_constant=pytest.fail)


@given(st.lists(st.floats() | st.integers(-(10**400), 10**400), max_size=30), st.integers(1, 100))
def test_no_duration_is_too_odd(durations: list[float], percent: int) -> None:
    quantiles = Quantiles()
    for duration in durations:
        quantiles.add(duration)
    assert quantiles.count == sum(1 for duration in durations if duration >= 0)
    value = quantiles.at(percent)
    assert value is None if not quantiles.count else value is not None and 0 <= value <= 1e13
    assert all(0 <= value <= 1e13 for value in quantiles.figures().values())


def test_long_names_take_no_more_than_short_ones_and_stay_apart() -> None:
    statistics = Statistics()
    for number in range(1000):
        name = "n" * 3000 + str(number)
        members = {"user": name, "route": name[::-1], "client_ip": name, "outcome": name, "status": name, "time": name}
        statistics.add({"event": "request", "duration_ms": 1.0, **members})
    for frequent in statistics.named.values():
        assert all(len(name) < 250 for name in frequent.counts)
    assert len(statistics.named["user"].counts) == 1000
    assert max(map(len, statistics.by_route)) <= 200
    assert sum(len(outcomes) for _, outcomes in statistics.by_route.values()) == len(statistics.by_route)
    assert len(statistics.first) < 50


@pytest.mark.parametrize("command", ["stats", "show", "tail", "verify"])
def test_a_damaged_rotated_file_is_a_message(log: Path, tmp_path: Path, command: str) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(log.read_bytes())
    whole = gzip.compress(Path(f"{log}.1").read_bytes())
    for damaged in (whole[: len(whole) // 2], whole[:40] + b"\x00" * 40 + whole[80:], b"no gzip"):
        Path(f"{path}.1.gz").write_bytes(damaged)
        result = run(command, path)
        assert result.exit_code
        assert isinstance(result.exception, UserError | SystemExit), result.exception
