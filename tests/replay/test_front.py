"""The front of a recorded flow says what its members say: read either way, a recording is the same."""

from dataclasses import fields

import pytest

from mitmgate.replay import flow_state, tnetstring
from mitmgate.replay.flow_file import FlowFormat
from mitmgate.replay.front import FRONT, read_front
from mitmgate.replay.presented import PresentedTokens
from mitmgate.replay.tnetstring import DamagedError
from mitmgate.replay.traffic import Entry, Recorded
from tests.replay.corpus import Corpus


def plain(entry: Entry) -> object:
    """Make a value that compares: header fields as they stand."""
    if not isinstance(entry, Recorded):
        return entry
    request = {field.name: getattr(entry.request, field.name) for field in fields(entry.request)}
    return entry._replace(request=request | {"headers": entry.request.headers.fields})  # type: ignore[arg-type]  # to compare


def flows(corpus: Corpus) -> list[bytes]:
    with corpus.path.open("rb") as file:
        return [raw for _, raw in FlowFormat().records(file)]


def test_both_ways_of_reading_say_the_same(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    raws = flows(corpus)
    with_front = [flow_state.read_flow(raw, PresentedTokens()) for raw in raws]
    assert all(read_front(raw, PresentedTokens()) is not None for raw in raws)
    monkeypatch.setattr(flow_state, "read_front", lambda raw, tokens: None)
    for raw, entry in zip(raws, with_front, strict=True):
        assert plain(entry) == plain(flow_state.read_flow(raw, PresentedTokens()))


def test_a_front_that_is_damaged_is_counted_as_damage(small: Corpus) -> None:
    raw = flows(small)[0]
    span: tnetstring.Span | None = tnetstring.span_of(raw)
    for key in (b"metadata", b"mitmgate", FRONT.encode()):
        span = None if span is None else tnetstring.find(raw, span, key)
    assert span is not None
    for broken in (b"{" * (span[1] - span[0]), b"[]".ljust(span[1] - span[0])):
        with pytest.raises(DamagedError):
            flow_state.read_flow(raw[: span[0]] + broken + raw[span[1] :], PresentedTokens())
