"""What an OpenAPI document takes: paths, parameters, media types and JSON, without a gateway around it."""

import json
import time
from collections.abc import Mapping
from functools import cache
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmgate.core.headers import Headers
from mitmgate.core.openapi import (
    DEEPEST,
    MOST_PARAMETERS,
    Api,
    BodyCheck,
    Json,
    NotJson,
    Operation,
    Parameter,
    Schema,
    Segment,
    parse_json,
    read_media_type,
)
from mitmgate.core.path import CanonicalPath, canonical_path
from mitmgate.core.reason import Reason
from mitmgate.policy.openapi import _compiled

ANY = Schema(lambda value: True, lambda value: "")
DOCUMENT = """\
openapi: 3.1.0
paths:
  /q:
    get:
      parameters:
        - {name: int, in: query, schema: {type: integer, minimum: 1, maximum: 9}}
        - {name: number, in: query, schema: {type: number}}
        - {name: bool, in: query, schema: {type: boolean}}
        - {name: text, in: query, schema: {type: string, enum: ["a b", "a+b", ""]}}
        - {name: plus, in: query, schema: {type: string, enum: [a+b]}}
        - {name: either, in: query, schema: {anyOf: [{type: integer, maximum: 3}, {const: all}]}}
        - {name: null, in: query, schema: {type: [integer, "null"]}}
        - {name: free, in: query, allowEmptyValue: true, schema: {type: integer}}
        - {name: list, in: query, schema: {type: array, items: {type: integer}, maxItems: 2, uniqueItems: true}}
        - {name: comma, in: query, explode: false, schema: {type: array, items: {type: string}, maxItems: 2}}
        - {name: pipe, in: query, style: pipeDelimited, explode: false, schema: {type: array, items: {type: integer}}}
        - {name: space, in: query, style: spaceDelimited, explode: false, schema: {type: array, items: {type: integer}}}
        - {name: json, in: query, content: {application/json: {schema: {type: object, required: [a]}}}}
        - {name: slow, in: query, schema: {type: string, pattern: "^(a+)+$"}}
  /h:
    get:
      parameters:
        - {name: X-List, in: header, schema: {type: array, items: {type: integer}, maxItems: 3}}
        - {name: X-One, in: header, schema: {type: integer}}
        - {name: session, in: cookie, required: true, schema: {type: string, minLength: 3}}
  /p/{list}:
    get:
      parameters: [{name: list, in: path, required: true, schema: {type: array, items: {type: integer}}}]
  /p/{list}/v{n}.json:
    get:
      parameters:
        - {name: list, in: path, required: true, schema: {type: string}}
        - {name: n, in: path, required: true, schema: {type: integer}}
  /b:
    post: {requestBody: {content: {text/*: {}, "application/json; v=2": {}, image/png: {}}}}
    put: {requestBody: {content: {"*/*": {}}}}
"""


@cache
def api() -> Api:
    made, problems = _compiled(DOCUMENT.replace("null,", '"null",').encode(), "api.yaml", None, unknown=False, body=100)
    assert made is not None, problems
    return made


def said(target: str, fields: Mapping[str, str] | None = None, method: str = "GET", body: int | None = 0) -> str:
    path, _, query = target.partition("?")
    canonical = canonical_path(path)
    assert isinstance(canonical, CanonicalPath)
    headers = Headers([(name.encode(), value.encode("latin-1")) for name, value in (fields or {}).items()])
    refusal = api().judge(method, canonical, query, headers, body).refusal
    return "ok" if refusal is None else refusal.reason.code


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (
            "int",
            ["1", "9", "%39"],
            ["0", "10", "-0", "1.0", "1e0", "+1", "%2B1", "01", "%201", "0x1", "1_0", "%D9%A1", ""],
        ),
        ("number", ["0", "-1.5", "1e3", "1E-2"], ["NaN", "Infinity", "1e999", ".5", "5.", "1,5", "--1", "9" * 65, ""]),
        ("bool", ["true", "false"], ["1", "True", "yes", "", "true%00"]),
        ("text", ["a%20b", "a+b", "a%2Bb", ""], ["a%2520b", "A%20b", "a%0Ab"]),
        ("plus", ["a%2Bb"], ["a+b", "a%20b"]),
        ("either", ["3", "all"], ["4", "al"]),
        ("null", ["", "5"], ["null", "x"]),
        ("free", ["", "5"], ["x"]),
        ("list", ["1", "1&list=2", "1&&list=2"], ["1,2", "1&list=1", "1&list=2&list=3", "", "1&list="]),
        ("comma", ["a", "a,b", "a%20c,b"], ["a,b,c", "a,b%2Cc", "a%2Cb%2Cc"]),
        ("pipe", ["1|2", "1%7C2"], ["1|x", "1||2"]),
        ("space", ["1%202"], ["1%20x", "1+x"]),
        ("json", ["{%22a%22:1}"], ["{}", "[", "{%22a%22:1,%22a%22:2}", "{%22a%22:1%2B1}"]),
    ],
)
def test_values_of_the_query(name: str, right: list[str], wrong: list[str]) -> None:
    assert {text: said(f"/q?{name}={text}") for text in right} == dict.fromkeys(right, "ok")
    assert {text: said(f"/q?{name}={text}") for text in wrong} == dict.fromkeys(wrong, "parameter-invalid")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "ok"),
        ("&&", "ok"),
        ("i%6Et=5", "ok"),
        ("i%6Et=5&int=5", "parameter-invalid"),
        ("int", "parameter-invalid"),
        ("INT=5", "parameter-unknown"),
        ("int%20=5", "parameter-unknown"),
        ("int%00=5", "parameter-invalid"),
        ("int=%", "parameter-invalid"),
        ("int=%u0035", "parameter-invalid"),
        ("int=5;int=6", "parameter-invalid"),
        ("=5", "parameter-unknown"),
        ("text=%C0%A0", "parameter-invalid"),
        ("%FF=5", "parameter-invalid"),
        ("&" * MOST_PARAMETERS, "parameter-invalid"),
    ],
)
def test_queries(query: str, reason: str) -> None:
    assert said(f"/q?{query}") == reason


def test_a_pattern_that_would_backtrack_is_quick() -> None:
    began = time.thread_time()
    assert said(f"/q?slow={'a' * 30_000}!") == "parameter-invalid"
    assert said(f"/q?slow={'a' * 30_000}") == "ok"
    assert time.thread_time() - began < 5, "2 ** 30,000 steps would not be"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "parameter-missing"),
        ({"Cookie": "session=abc"}, "ok"),
        ({"Cookie": "session=abc; session=def"}, "parameter-invalid"),
        ({"Cookie": "session=ab"}, "parameter-invalid"),
        ({"Cookie": "a=b;session=abc", "X-List": "1, 2,3"}, "ok"),
        ({"Cookie": "session=abc", "X-List": "1, 2", "x-list": "3, 4"}, "parameter-invalid"),
        ({"Cookie": "session=abc", "X-One": "1"}, "ok"),
        ({"Cookie": "session=abc", "X-One": "1, 2"}, "parameter-invalid"),
        ({"Cookie": "session=abc", "X-One": "1", "x-one": "1"}, "parameter-invalid"),
        ({"Cookie": "session =ab"}, "parameter-invalid"),
        ({"Cookie": "session=abc; session =def"}, "parameter-invalid"),
        ({"Cookie": "session=abc; session\xa0=def"}, "parameter-invalid"),
        ({"Cookie": "session=abc", "X_One": "x"}, "parameter-invalid"),
        ({"Cookie": "session=abc", "X-One": "1", "x.one": "x"}, "parameter-invalid"),
        ({"Cookie": "session=abc", "X_List": "1,2,3,4"}, "parameter-invalid"),
    ],
)
def test_fields_and_cookies(fields: dict[str, str], reason: str) -> None:
    assert said("/h", fields) == reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/p/1,2", "ok"),
        ("/p/1", "ok"),
        ("/p/1,", "parameter-invalid"),
        ("/p/%31", "ok"),
        ("/p/", "operation-unknown"),
        ("/p/1/", "operation-unknown"),
        ("/P/1", "operation-unknown"),
        ("/p/1%2F2", "operation-unknown"),
        ("/p/1;x", "parameter-invalid"),
        ("/p//1", "operation-unknown"),
        ("/p/1%3B", "parameter-invalid"),
        ("/p/x/v7.json", "ok"),
        ("/p/x%3Fy/v7.json", "operation-unknown"),
        ("/p/x/v.json", "operation-unknown"),
        ("/p/x/v7.jso", "operation-unknown"),
        ("/p/x/v7x.json", "parameter-invalid"),
    ],
)
def test_paths(path: str, reason: str) -> None:
    assert said(path) == reason


@pytest.mark.parametrize(
    ("content_type", "reason"),
    [
        ("text/plain", "ok"),
        ("TEXT/html; charset=x", "ok"),
        ("image/png", "ok"),
        ("image/*", "content-type-refused"),
        ("text/*", "content-type-refused"),
        ("*/*", "content-type-refused"),
        ("application/json", "content-type-refused"),
        ("application/json;v=2", "ok"),
        ('application/json ; x=y; V="2"', "ok"),
        ("application/json; v=3", "content-type-refused"),
        ("application/json; v=2; v=3", "content-type-refused"),
        ("text/plain, application/xml", "content-type-refused"),
        ("text", "content-type-refused"),
        ("text/plain; charset", "content-type-refused"),
        ("", "content-type-refused"),
    ],
)
def test_media_types(content_type: str, reason: str) -> None:
    assert said("/b", {"Content-Type": content_type}, "POST", 5) == reason
    assert said("/b", {"Content-Type": content_type}, "POST", None) == reason


def test_bodies_of_an_operation_without_one() -> None:
    assert said("/q", {"Content-Type": "text/plain"}, body=5) == "body-unexpected"
    assert said("/b", {}, "PUT", 5) == "ok", "no Content-Type is application/octet-stream"
    assert said("/b", {"Content-Type": "a/b", "content-type": "a/c"}, "PUT", 5) == "content-type-refused"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        "[NaN]",
        "[-Infinity]",
        "1e999",
        "9" * 65,
        "'a'",
        "[1,]",
        "",
        "{} {}",
        '"\\udc00"',
        "\ufeff[]",
    ],
)
def test_json_that_parsers_differ_in(text: str) -> None:
    assert isinstance(parse_json(text), NotJson)
    assert isinstance(parse_json(text.encode("utf-8")), NotJson)


def test_json_is_bounded_in_depth_and_encoding() -> None:
    assert isinstance(parse_json("[" * DEEPEST + "]" * DEEPEST), Json)
    for depth in (DEEPEST + 1, 5_000, 500_000):
        assert isinstance(parse_json("[" * depth + "]" * depth), NotJson)
        assert isinstance(parse_json('{"a":' * depth + "1" + "}" * depth), NotJson)
    assert isinstance(parse_json(b'"\xff"'), NotJson)
    assert isinstance(parse_json('"a"'.encode("utf-16")), NotJson)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
def test_json_that_is_sound_is_what_it_says(value: object) -> None:
    assert parse_json(json.dumps(value)) == Json(value)


def test_a_schema_that_fails_denies() -> None:
    def fails(value: object) -> bool:
        raise RuntimeError

    refusal = BodyCheck(Schema(fails, lambda value: ""), 10).refusal(b"{}")
    assert refusal is not None
    assert refusal.reason is Reason.BODY_INVALID


SEGMENT = st.sampled_from(["a", "b", "{x}", "a{x}", "{x}b"])


TEXT = st.sampled_from(["a", "b", "c", "ab", "aab"])


@given(
    st.lists(st.lists(SEGMENT, min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(TEXT, min_size=1, max_size=4),
)
def test_a_path_is_found_where_a_template_takes_it(templates: list[list[str]], segments: list[str]) -> None:
    """Against the plain reading: a template takes a path where each of its segments takes one; literals come first."""

    def parts(segment: str) -> Segment:
        before, brace, rest = segment.partition("{")
        return Segment(before, "x", rest.partition("}")[2]) if brace else Segment(segment)

    def takes(template: list[str]) -> bool:
        return len(template) == len(segments) and all(
            text == written.prefix
            if written.name is None
            else text.startswith(written.prefix)
            and text.endswith(written.suffix)
            and len(text) > len(written.prefix + written.suffix)
            for written, text in zip(map(parts, template), segments, strict=True)
        )

    made = Api()
    parameter = Parameter("x", "path", ANY)
    for template in templates:
        path = tuple(None if "{" not in segment else parameter for segment in template)
        made.add(map(parts, template), Operation("GET", "/" + "/".join(template), path=path))
    found = made.find("/" + "/".join(segments))
    assert (found is not None) == any(map(takes, templates))
    if found is not None:
        template = found[0]["GET"].template[1:].split("/")
        assert takes(template)
        assert segments not in templates or template == segments


def test_a_list_has_a_bound() -> None:
    assert said("/q?comma=" + "," * 30_000) == "parameter-invalid"
    assert said("/p/" + ",".join(["1"] * 1001)) == "ok"
    assert said("/p/" + ",".join(["1"] * 1002)) == "parameter-invalid"
    assert said("/h", {"Cookie": "session=abc", "X-List": "1," * 8000}) == "parameter-invalid"


def test_reading_a_media_type_takes_its_length() -> None:
    began = time.thread_time()
    for text in (
        "a/b" + ";  " * 10_000 + "=",
        "a/b" + ';a="' * 10_001,
        "a/b" + ";" * 30_000 + "=",
        "a/b" + ' ;a="\\' * 5_000,
        "a" * 30_000,
        "a/b;" + " " * 30_000 + "=",
    ):
        assert read_media_type(text) is None
    assert time.thread_time() - began < 5


def test_the_order_of_paths_in_a_document_does_not_count() -> None:
    templates = (["a", "{x}"], ["{x}", "a"], ["a", "a"])
    for order in permutations(templates):
        made = Api()
        for template in order:
            segments = [Segment("", "x") if part == "{x}" else Segment(part) for part in template]
            made.add(segments, Operation("GET", "/".join(template)))
        found = made.find("/a/a")
        assert found is not None
        assert found[0]["GET"].template == "a/a"
