"""Values and places of a parsed file."""

from collections.abc import Mapping

import pytest

from mitmgate.policy.document import Document
from mitmgate.policy.interpolation import FromEnvironment, UnresolvedError, interpolate
from mitmgate.policy.parsing import parse


def read(text: str, environ: Mapping[str, str] | None = None) -> Document:
    return parse(text, "p.yaml", environ or {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-7", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("yes", "yes"),
        ("on", "on"),
        ("null", None),
        ("~", None),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ('"1"', "1"),
        ("!!str 1", "1"),
        ("9" * 40, "9" * 40),
        (r'"\ud83d\ude00"', "\U0001f600"),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: object) -> None:
    found = read(text)
    assert found.problems == []
    assert (type(found.value), found.value) == (type(value), value)


def test_an_unpaired_surrogate_is_refused() -> None:
    assert "surrogate" in read(r'a: "\ud83d"').problems[0].message
    assert "surrogate" in read(r'"\ud83d": a').problems[0].message


def test_places() -> None:
    document = read("a:\n  - x: 1\n    y: [2,  3]\n")
    assert document.value == {"a": [{"x": 1, "y": [2, 3]}]}
    assert document.place(("a",)) == (2, 3)
    assert document.place(("a",), key=True) == (1, 1)
    assert document.place(("a", 0, "y", 1)) == (3, 13)
    assert document.place(("a", 0, "none")) == (2, 5)  # the nearest that there is


def test_merges_and_anchors() -> None:
    document = read("a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 0}\nd: *a\n")
    assert document.value == {
        "a": {"x": 1, "y": 2},
        "b": {"y": 3, "z": 4},
        "c": {"x": 0, "y": 2, "z": 4},
        "d": {"x": 1, "y": 2},
    }
    assert document.place(("c", "z")) == (2, 17)  # where it is written


@pytest.mark.parametrize("text", ["a: {<<: 1}", "a: {<<: [1]}", "a: &a {}\nb: {<<: *a, <<: *a}", "? [a]\n: b", "{}: 1"])
def test_what_is_no_merge_and_no_key(text: str) -> None:
    assert len(read(text).problems) == 1


def test_every_duplicate_is_named() -> None:
    found = read("a: 1\na: 2\nb: {c: 1, c: 2}\na: 3\n").problems
    assert [(problem.line, problem.column, problem.path) for problem in found] == [
        (2, 1, "a"),
        (4, 1, "a"),
        (3, 11, "b.c"),
    ]


def test_json_is_read_also_where_it_is_indented_by_tabs() -> None:
    document = read('{\n\t"a": [\n\t\t1,\n\t\t"x\\ty"\n\t]\n}\n')
    assert document.value == {"a": [1, "x\ty"]}
    assert document.place(("a", 1)) == (4, 3)


def test_the_environment_gives_text_and_never_structure() -> None:
    document = read("a: '${A}'\nb: ${A}\n", {"A": "[1, 2]: {x"})
    assert document.value == {"a": "[1, 2]: {x", "b": "[1, 2]: {x"}
    assert isinstance(document.at(("b",)), FromEnvironment)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain $NAME {NAME}", "plain $NAME {NAME}"),
        ("${A}", "1"),
        ("x${A}y${B:-2}z", "x1y2z"),
        ("${EMPTY}", ""),
        ("${EMPTY:-d}", "d"),
        ("${B:-}", ""),
        ("${B:-a:-b}", "a:-b"),
        ("$${A}", "${A}"),
        ("$${A} ${A}", "${A} 1"),
        ("${NESTED}", "${A}"),  # what comes out is not read again
    ],
)
def test_interpolation(text: str, value: str) -> None:
    assert interpolate(text, {"A": "1", "EMPTY": "", "NESTED": "${A}"}) == value


@pytest.mark.parametrize("text", ["${B}", "${}", "${A", "${1}", "${a-b}", "${ A }", "${A:+x}", "${BAD}"])
def test_what_has_no_value(text: str) -> None:
    with pytest.raises(UnresolvedError):
        interpolate(text, {"A": "1", "BAD": "\udcff"})
