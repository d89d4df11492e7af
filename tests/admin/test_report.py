"""Snapshots of workers become one report: totals that never fall, gauges merged as the table says."""

from typing import Any

import pytest

from mitmgate.admin.exposition import open_metrics
from mitmgate.admin.families import FAMILIES, SHORT, merged
from mitmgate.admin.readiness import Missing, merged_readiness
from mitmgate.admin.report import Rejection, Report, decode, merge, retire
from tests.admin.figures import DRAINING, NO_POLICY, exported, value, worker

OK = {"route": "users", "method": "GET", "status": "200", "reason": "ok"}


def test_a_report_survives_its_encoding() -> None:
    told = decode(worker(7, missing=(DRAINING,), rejections=(Rejection(1.5, ("a", "b")),)))
    assert decode(told.encode()) == told
    assert told.series["mitmgate_requests"] == {("users", "GET", "200", "ok"): 7}
    assert told.readiness == (DRAINING,)
    assert told.rejections == (Rejection(1.5, ("a", "b")),)


def test_counters_and_histograms_are_added() -> None:
    found = exported(merge([worker(3), worker(4)]))
    assert value(found, "mitmgate_requests_total", **OK) == 7
    assert value(found, "mitmgate_decision_duration_seconds_count", route="users") == 7
    assert value(found, "mitmgate_decision_duration_seconds_sum", route="users") == pytest.approx(0.00007)
    assert value(found, "mitmgate_decision_duration_seconds_bucket", route="users", le=str(SHORT[0])) == 7


def test_gauges_are_merged_as_fits() -> None:
    down: dict[str, Any] = {"mitmgate_key_set_usable": {("corp",): 0}}
    found = exported(merge([worker(3), worker(4, **down)]))
    assert value(found, "mitmgate_connections") == 6
    assert value(found, "mitmgate_workers") == 2
    assert value(found, "mitmgate_circuit_state", upstream="users", endpoint="http://a:1", state="closed") == 2
    assert value(found, "mitmgate_key_set_age_seconds", issuer="corp") == 4
    assert value(found, "mitmgate_key_set_usable", issuer="corp") == 0


def test_two_policies_show_while_a_reload_goes_round() -> None:
    found = exported(merge([worker(), worker(digest="sha256:two"), worker(digest="sha256:two")]))
    assert value(found, "mitmgate_policy_info", digest="sha256:one") == 1
    assert value(found, "mitmgate_policy_info", digest="sha256:two") == 1


def test_the_totals_of_a_worker_outlive_it_and_its_gauges_do_not() -> None:
    retired = retire(worker(5))
    retired = retire(worker(6), retired)
    found = exported(merge([worker(1)], retired))
    assert value(found, "mitmgate_requests_total", **OK) == 12
    assert value(found, "mitmgate_decision_duration_seconds_count", route="users") == 12
    assert value(found, "mitmgate_connections") == 3
    assert value(found, "mitmgate_workers") == 1


def test_what_ended_does_not_speak_of_readiness() -> None:
    retired = retire(worker(missing=(NO_POLICY,), rejections=(Rejection(1.0, ("old",)),)))
    assert merge([worker()], retired).readiness == ()
    assert merge([worker()], retired).rejections == ()


@pytest.mark.parametrize(
    ("workers", "missing"),
    [
        ([()], ()),
        ([(), (DRAINING,)], ()),
        ([(DRAINING,), (DRAINING,)], (DRAINING,)),
        ([(), (NO_POLICY,)], (NO_POLICY,)),
        ([(DRAINING,), (NO_POLICY, DRAINING)], (NO_POLICY,)),
    ],
)
def test_ready_is_one_worker_that_is_ready_and_none_without_a_policy(
    workers: list[tuple[Missing, ...]], missing: tuple[Missing, ...]
) -> None:
    assert merged_readiness(workers) == missing


def test_without_a_worker_nothing_is_ready() -> None:
    (missing,) = merge([]).readiness
    assert missing.condition == "workers"


def test_rejections_are_told_once_and_the_newest_first() -> None:
    old, new = Rejection(1.0, ("old",)), Rejection(2.0, ("new",))
    assert merge([worker(rejections=(old,)), worker(rejections=(new, old))]).rejections == (new, old)


def test_families_of_another_version_are_left_out() -> None:
    text = worker(3).replace(b'"mitmgate_connections"', b'"mitmgate_from_tomorrow"')
    assert "mitmgate_from_tomorrow" not in decode(text).series


def test_a_histogram_and_a_number_are_not_added() -> None:
    with pytest.raises(ValueError, match="histogram"):
        merged(FAMILIES[0], [{("a",): 1}, {("a",): [1, 2]}])


def test_every_family_is_exported_and_ends_as_openmetrics_wants() -> None:
    text = open_metrics(Report({}).series).decode()
    assert text.endswith("# EOF\n")
    assert [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")] == [f.name for f in FAMILIES]


def test_names_are_of_the_fields_style() -> None:
    for family in FAMILIES:
        assert family.help.endswith("."), family.name
        assert not family.name.endswith(("_total", "_info")), family.name
        assert (family.kind == "histogram") == bool(family.bounds), family.name
        assert family.bounds == tuple(sorted(family.bounds)), family.name
