"""The whole benchmark in a reduced form: that it runs and what its results look like; never how fast anything is."""

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench import incidents, leaks
from bench.bodies import carry
from bench.compare import Outputs, Results, measure, write
from bench.load import Sample
from bench.machine import this_machine
from bench.ratios import ratios
from bench.rig import Rig, beside, rig
from bench.settings import SECTIONS, Settings
from bench.sides import DIRECT, compare
from bench.stages import climb, ladder
from bench.subjects import GATEWAY, HOST, serve
from mitmgate.bench_command import SECTIONS as OFFERED
from tests.live.harness import ROOT

SHORT = Settings(seconds=1, rounds=1, reduced=True)


@pytest.fixture(scope="module")
def made() -> Iterator[Rig]:
    with rig() as made:
        yield made


def test_this_process_leaves_the_measured_core(made: Rig) -> None:
    allowed = os.sched_getaffinity(0)
    with beside(made.cores):
        assert os.sched_getaffinity(0) == set(made.cores.load)
        assert not set(made.cores.load) & set(made.cores.subject)
    assert os.sched_getaffinity(0) == allowed


def whole(sample: Sample) -> bool:
    """Say whether a sample has every figure, and none that can't be."""
    figures = (sample.requests_per_second, sample.cpu_us, sample.core, sample.p50_ms, sample.resident_mib)
    return all(figure > 0 for figure in figures) and sample.p99_ms >= sample.p50_ms and 0 < sample.load_core < 2


def test_sections_that_no_time_is_left_for_are_named(made: Rig) -> None:
    """Where the budget is over, nothing more is measured."""
    settings = Settings(reduced=True, budget=-1.0, sections=("stages", "bodies"))
    results = Results(this_machine(made.cores), settings)
    measure(made, settings, results, Console(quiet=True))
    assert results.left_out == ["stages", "bodies"]
    assert (results.stages, results.bodies) == (None, None)


def test_side_by_side_with_all_that_is_written(made: Rig, tmp_path: Path) -> None:
    found = compare(made, SHORT, (HOST, GATEWAY))
    assert found.absent == {}
    assert set(found.saturation["keep-alive"]) == {DIRECT, "host", "gateway"}
    assert set(found.saturation["connection-per-request"]) == {"host", "gateway"}
    assert set(found.half) == {DIRECT, "host", "gateway"}
    assert all(one["passed"] for one in found.conformance["gateway"])
    everything = [*found.saturation.values(), found.half]
    assert all(whole(sample) for series in everything for samples in series.values() for sample in samples)
    assert len({samples[0].rate for samples in found.half.values()}) == 1
    assert found.half["gateway"][0].rate > 0
    assert found.half["gateway"][0].failed == 0

    outputs = Outputs(tmp_path / "out.json", tmp_path / "out.svg", tmp_path / "out.md")
    write(Results(this_machine(made.cores), SHORT, comparison=found), outputs)
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["comparison"]["saturation"]["keep-alive"]["gateway"] == [
        asdict(sample) for sample in found.saturation["keep-alive"]["gateway"]
    ]
    assert {"processor", "cores", "python", "placement"} <= told["machine"].keys()
    ElementTree.parse(tmp_path / "out.svg")
    assert "At half load" in (tmp_path / "out.md").read_text()


def test_what_a_part_costs(made: Rig) -> None:
    host, bare = ladder(None)[:2]
    found = climb(made, SHORT, [host, bare])
    assert [cost.absent for cost in found] == [None, None]
    assert found[0].added is None
    assert found[1].added is not None
    (difference,) = (found[1].samples[0].cpu_us - found[0].samples[0].cpu_us,)
    assert found[1].added.median == difference


def test_bodies_both_ways(made: Rig) -> None:
    found = carry(made, SHORT, {"gateway": serve(made.upstream.port)})
    assert {(one.direction, one.size) for one in found} == {("down", "10 MB"), ("up", "10 MB")}
    assert all(sample.requests >= 1 and sample.failed == 0 for one in found for sample in one.samples)


def test_one_thing_beside_another(made: Rig) -> None:
    """HTTP/2, WebSocket messages and idle connections: a load of each kind that no other section makes."""
    found = ratios(made, SHORT)
    assert found.absent == {}
    assert [bar.what.partition(",")[0] for bar in found.bars] == [
        "HTTP/2 over TLS",
        "WebSocket",
        "memory of an idle connection",
    ]
    assert all(bar.figure.median > 0 for bar in found.bars)


def test_leaks_and_a_reload(made: Rig) -> None:
    memory = leaks.memory(made, requests=300, warm=100)
    assert memory.passed is not None
    assert memory.seen.endswith(" 0 failed")
    descriptors = leaks.descriptors(made, 2 * len(leaks.KINDS))
    assert descriptors.passed, descriptors
    reloaded = incidents.policy_reloaded(made, seconds=3, workers=1)
    assert reloaded.passed, reloaded


def test_the_command_runs_one_section(tmp_path: Path) -> None:
    written = tmp_path / "out.json"
    words = [str(ROOT / "run.sh"), "bench", "--quick", "--only", "workers", "--json", str(written)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(written.read_text())
    assert told["comparison"] is told["stages"] is told["bodies"] is None
    assert {*told["scaling"]["series"], *told["scaling"]["absent"]} == {
        "1 worker",
        "2 workers",
        "1 worker, 32 connections",
    }
    assert "Workers, counters in Redis" in done.stdout


@pytest.mark.parametrize("words", [["--soak", "--rounds", "3"], ["--soak", "--peers"], ["--only", "nothing"]])
def test_a_mistake_is_one_message(words: list[str]) -> None:
    done = subprocess.run(
        [str(ROOT / "run.sh"), "bench", *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_command_offers_the_sections_that_there_are() -> None:
    assert OFFERED == SECTIONS
