"""The bar: a recording replays without a difference against its own policy, and every mutant is found, exactly."""

import pytest

from mitmgate.chain import REQUIRED
from mitmgate.pipeline.exchange import Exchange
from mitmgate.replay.decision import Decision
from mitmgate.replay.differences import Kind, compare
from mitmgate.replay.offline import load_offline
from mitmgate.replay.recording import open_traffic
from mitmgate.replay.run import replay
from mitmgate.replay.traffic import Listed, Recorded
from tests.replay.corpus import Corpus
from tests.replay.mutants import MUTANTS, Mutant

IN_WHAT_IS_FORWARDED = {Kind.HEADERS, Kind.TARGET, Kind.UPSTREAM, Kind.ROUTE, Kind.OBSERVED}


class Collector:
    """Keeps every decision by the number that the corpus gave its request (run.Observer)."""

    def __init__(self) -> None:
        self.before: dict[int, Decision] = {}
        self.after: dict[int, Decision] = {}
        self.order: list[int] = []

    def seen(self, recorded: Recorded, exchange: Exchange, decision: Decision, before: Decision | None) -> None:
        assert before is not None
        number = int(recorded.request.headers.text("x-number") or "")
        self.before[number], self.after[number] = before, decision
        self.order.append(number)


def test_the_corpus_has_every_stage(corpus: Corpus) -> None:
    """A corpus of admissions alone would show nothing."""
    decided = Collector()
    replay(open_traffic([str(corpus.path)]), load_offline(str(corpus.policy), {}), observers=[decided])
    stages = {decision.stage for decision in decided.before.values()}
    assert stages >= {
        *("hygiene", "endpoints", "cors", "network-access", "size-limit", "client-quota", "authentication"),
        *("authorization", "rate-limit", "circuit-breaker", "rewrite", ""),
    }
    assert len({decision.reason for decision in decided.before.values()}) >= 28


def test_no_difference_against_its_own_policy(corpus: Corpus) -> None:
    report = replay(open_traffic([str(corpus.path)]), load_offline(str(corpus.policy), {}))
    assert (report.decided, report.compared, report.skipped.total()) == (len(corpus.cases), len(corpus.cases), 0)
    assert report.tally.total == 0, [(g.kind, g.before, g.after, g.route, g.count) for g in report.tally.groups]
    assert not report.failed("any")


def test_there_are_enough_mutants_over_every_stage() -> None:
    assert len(MUTANTS) >= 25
    assert {mutant.stage for mutant in MUTANTS} - {"report mode"} == set(REQUIRED)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.stage}-{mutant.name}")
def test_a_mutant_is_reported_with_exactly_the_affected_requests(
    corpus: Corpus, beginning: Listed, mutant: Mutant
) -> None:
    path = corpus.mutated(f"{mutant.stage}-{mutant.name}", mutant.change)
    seen = Collector()
    report = replay(beginning, load_offline(str(path), {}), observers=[seen])
    expect = mutant.expect()
    expected, found = {}, {}
    for number in seen.order:
        before, after = seen.before[number], seen.after[number]
        wanted = expect(corpus.cases[number], before.label)
        if wanted is not None and wanted != before.label:
            expected[number] = wanted
        difference = compare(before, after)
        if difference is not None:
            found[number] = difference.kind.value if difference.kind in IN_WHAT_IS_FORWARDED else after.label
    wrong = {
        number: (corpus.cases[number].tag, seen.before[number].label, expected.get(number), found.get(number))
        for number in expected.keys() | found.keys()
        if expected.get(number) != found.get(number)
    }
    assert not wrong, f"{len(wrong)} requests, such as {list(wrong.items())[:5]}"
    assert found, "a mutant that changes nothing shows nothing"
    assert report.tally.total == len(found)
    assert report.failed("any")
