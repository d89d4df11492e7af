"""What is made of samples: ratios round by round, bars, tables, Markdown and the plot."""

from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench import sheets
from bench.bars import added_to_direct, bars
from bench.load import Sample
from bench.plot import as_svg
from bench.stages import Cost, ladder
from bench.turns import Comparison, Spread, paired, take_turns
from bench.workers import Scaling

PLAIN = Sample(
    requests_per_second=1000.0,
    cpu_us=500.0,
    core=1.0,
    p50_ms=10.0,
    p99_ms=20.0,
    resident_mib=80.0,
    failed=0,
    load_core=0.1,
    requests=5000,
)


def comparison() -> Comparison:
    """Three rounds in which the machine becomes slower; ratios stay."""
    made = Comparison(subjects={"stock": "s", "host": "h", "gateway": "g"})
    slow = (1.0, 2.0, 4.0)
    for kind in ("keep-alive", "connection-per-request"):
        made.saturation[kind] = {
            "stock": [replace(PLAIN, requests_per_second=700 / by, cpu_us=1400 * by) for by in slow],
            "host": [replace(PLAIN, requests_per_second=4000 / by, cpu_us=200 * by) for by in slow],
            "gateway": [replace(PLAIN, requests_per_second=2800 / by, cpu_us=280 * by) for by in slow],
        }
    made.half = {
        "upstream alone": [replace(PLAIN, p50_ms=0.1, rate=1400)],
        "host": [replace(PLAIN, p50_ms=0.4, rate=1400)],
        "gateway": [replace(PLAIN, p50_ms=0.6, rate=1400)],
    }
    return made


def test_ratios_are_of_neighbours() -> None:
    series = comparison().saturation["keep-alive"]
    ratio = paired(series["gateway"], series["stock"], lambda a, b: a.requests_per_second / b.requests_per_second)
    assert ratio == Spread(4.0, 4.0, 4.0)


def test_turns_are_interleaved() -> None:
    order: list[str] = []

    def turn(name: str) -> Callable[[], Sample]:
        def take() -> Sample:
            order.append(name)
            return PLAIN

        return take

    found = take_turns(3, {"a": turn("a"), "b": turn("b")})
    assert order == ["a", "b"] * 3
    assert {name: len(samples) for name, samples in found.items()} == {"a": 3, "b": 3}


def test_bars() -> None:
    found = {bar.what: bar for bar in bars(comparison(), None)}
    assert {what: (round(bar.figure.median, 3), bar.met) for what, bar in found.items()} == {
        "requests/s, of stock's": (4.0, True),
        "CPU a request, of stock's": (0.2, True),
        "CPU of the chain a request": (160.0, False),  # the median of 80, 160, 320
        "p50 that the chain adds at half load": (0.2, True),
        "connection-per-request, of stock's": (4.0, True),
    }
    added = added_to_direct(comparison().half)
    assert added is not None
    assert added.median == pytest.approx(0.5)


def test_a_bar_without_its_subjects_is_left_out() -> None:
    made = comparison()
    del made.saturation["keep-alive"]["stock"]
    assert next(bar.what for bar in bars(made, None)) == "CPU of the chain a request"


def test_two_workers_by_requests_where_cores_suffice_and_by_cpu_where_not() -> None:
    series = {
        "1 worker": [PLAIN],
        "1 worker, 32 connections": [replace(PLAIN, requests_per_second=800, cpu_us=520)],
        "2 workers": [replace(PLAIN, requests_per_second=1500, cpu_us=520)],
    }
    apart_each, apart = bars(None, Scaling(shared=False, series=series))
    shared_each, shared = bars(None, Scaling(shared=True, series=series))
    assert (apart_each.figure.median, shared_each.figure.median) == (1.875, 2)
    assert (apart.figure.median, apart.met) == (1.5, False)
    assert (round(shared.figure.median, 2), shared.met) == (1.92, True)
    assert "CPU" in shared.note


def test_tables_and_markdown_show_every_subject_and_every_absence() -> None:
    made = comparison()
    made.absent["haproxy"] = "haproxy is missing"
    costs = [
        Cost("host, no chain", None, [PLAIN], None),
        Cost("+ token", "host, no chain", [PLAIN], Spread(40.0, 30.0, 50.0)),
        Cost("/metrics", "+ token", [], None, absent="not | supported"),
    ]
    tables = [sheets.judged(bars(made, None)), *sheets.compared(made), sheets.costs(costs)]
    text = sheets.markdown(tables, "a machine")
    assert text.startswith("Measured on a machine.\n")
    assert "| haproxy | - | not measured: haproxy is missing |" in text
    assert "+40 (+30 to +50)" in text
    assert "* /metrics: not measured: not | supported" in text
    for sheet in tables:
        assert all(len(row) == len(sheet.headings) for row in sheet.rows)
        assert f"**{sheet.title}**" in text


def test_a_load_that_is_the_bottleneck_is_told() -> None:
    made = Comparison(saturation={"keep-alive": {"haproxy": [replace(PLAIN, load_core=0.97)]}})
    (sheet, _) = sheets.compared(made)
    assert any(note.startswith("haproxy: the load itself filled its core") for note in sheet.notes)


def test_the_plot_is_svg_with_a_bar_for_each_subject_and_figure() -> None:
    series = comparison().saturation["keep-alive"] | {"<odd> & name": [PLAIN]}
    drawn = as_svg(series, "title", "machine")
    root = ElementTree.fromstring(drawn)
    bars_drawn = root.findall("{http://www.w3.org/2000/svg}rect[@x]")
    assert len(bars_drawn) == 2 * len(series)
    assert drawn == as_svg(series, "title", "machine")


@pytest.mark.parametrize("redis_url", [None, "redis://127.0.0.1:6379/0"])
def test_every_rung_of_the_ladder_stands_on_one_before_it(redis_url: str | None) -> None:
    seen: set[str] = set()
    for rung in ladder(redis_url):
        assert rung.base is None or rung.base in seen
        seen.add(rung.name)
    assert ("full, limit in Redis" in seen) is (redis_url is not None)
