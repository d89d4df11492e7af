"""OpenAPI documents as a policy reads them: what is taken, and each mistake with file, line and column."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from mitmgate.core.headers import Headers
from mitmgate.core.openapi import Api
from mitmgate.core.path import CanonicalPath, canonical_path
from mitmgate.policy.compiler import compile_policy
from mitmgate.policy.loader import load
from mitmgate.policy.openapi import METHODS, OpenApis
from mitmgate.policy.problem import PolicyError
from mitmgate.policy.watcher import PolicySource
from mitmgate.review import lint
from mitmgate.stages.openapi import Apis

POLICY = """\
version: 1
upstreams: {service: {endpoints: ["http://127.0.0.1:9"]}}
routes: [{name: all, match: {prefix: /}, upstream: service, auth: none, openapi: {document: api.yaml, body: 1KiB}}]
"""
HEAD = "openapi: 3.1.0\ninfo: {title: t, version: '1'}\n"


def written(directory: Path, text: str, policy: str = POLICY) -> Path:
    (directory / "api.yaml").write_text(text)
    path = directory / "policy.yaml"
    path.write_text(policy)
    return path


def api_of(directory: Path, text: str, policy: str = POLICY) -> Api:
    made = load(written(directory, text, policy), {}).read["openapi"]
    assert isinstance(made, OpenApis)
    return made.apis[0]


def said(api: Api, target: str, method: str = "GET", headers: Any = (), body: int | None = 0) -> str:
    path, _, query = target.partition("?")
    canonical = canonical_path(path)
    assert isinstance(canonical, CanonicalPath)
    refusal = api.judge(method, canonical, query or None, Headers(headers), body).refusal
    return "ok" if refusal is None else refusal.reason.code


def errors(directory: Path, text: str) -> list[str]:
    with pytest.raises(PolicyError) as raised:
        load(written(directory, text), {})
    prefix = str(directory / "api.yaml") + ":"
    return [str(problem).removeprefix(prefix) for problem in raised.value.problems if problem.severity == "error"]


def one(parameter: str, path: str = "/a") -> str:
    return f"{HEAD}paths:\n  {path}:\n    get:\n      parameters:\n        - {parameter}\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "1:1: error: the file is empty"),
        ("a: [", "1:5: error: "),
        ("swagger: '2.0'\n", "1:10: error: swagger: Swagger 2.0 is not read (convert it to OpenAPI 3.1)"),
        ("openapi: 3.1\npaths: {}\n", "1:10: error: openapi: `openapi` has to be the version"),
        ("openapi: 3.2.0\npaths: {}\n", "1:10: error: openapi: `openapi` has to be the version"),
        (HEAD, "1:1: error: paths: `paths` has to be a mapping"),
        (HEAD + "paths: {}\n", "3:1: error: paths: the document has no operation: everything would be denied"),
        (HEAD + "paths: {a: {get: {}}}\n", "3:12: error: paths.a: a path begins with a slash"),
        (HEAD + "paths: {/a: {GET: {}}}\n", "3:14: error: paths./a.GET: methods are written in small letters (get)"),
        (HEAD + "paths: {/a: 1, /a: 2}\n", "3:16: error: paths./a: duplicate key (first at line 3)"),
        (HEAD + "paths: {'/a/../b': {get: {}}}\n", "no request has such a path"),
        (HEAD + "paths: {'/{a}{b}': {get: {}}}\n", "a segment of a path has one parameter at the most"),
        (HEAD + "paths: {'/{a': {get: {}}}\n", "a path with a brace that has no other one"),
        (HEAD + "paths: {'/{a}': {get: {}}}\n", "3:18: error: paths./{a}.get: the path's parameter a is not described"),
        (one("{name: b, in: path, required: true, schema: {}}"), "there is no {b} in the path"),
        (one("{name: b, in: body, schema: {}}"), "7:25: error: paths./a.get.parameters[0].in: no place of a parameter"),
        (one("{name: a, in: path, schema: {}}", "/{a}"), "a path's parameter is always required"),
        (one("{name: b, in: query}"), "the parameter b has no schema"),
        (one("{name: b, in: query, schema: {type: nothing}}"), "this is no valid schema"),
        (one("{name: b, in: query, schema: {minimum: a}}"), "7:50: error: paths./a.get.parameters[0].schema.minimum"),
        (one("{name: b, in: query, schema: {pattern: '(?=a)b'}}"), "7:50: error: paths./a.get.parameters[0].schema"),
        (one("{name: b, in: query, schema: {pattern: '(a)\\1'}}"), "takes a time linear in the text"),
        (one("{name: b, in: query, schema: {pattern: '(a{999}){999}'}}"), "takes a time linear in the text"),
        (one("{name: b, in: query, schema: {type: object}}"), "an object is read in these forms alone"),
        (one("{name: b, in: query, schema: {type: [array, string]}}"), "a parameter is a list, or it is none"),
        (one("{name: b, in: query, style: matrix, schema: {}}"), "this style is not read (found 'matrix'"),
        (one("{name: b_c, in: header, schema: {}}"), "no request keeps a header of this name"),
        (one("{$ref: 'https://x.example/api.yaml'}"), "a reference that leads out of the document"),
        (one("{$ref: 'other.yaml#/a'}"), "7:18: error: paths./a.get.parameters[0].$ref: a reference that leads out"),
        (one("{$ref: '#/paths/~1a/get/parameters/0'}"), "references lead in a circle"),
        (one("{$ref: '#/nowhere'}"), "a reference to what is not there"),
        (one("{name: b, in: query, schema: {$ref: 'http://127.0.0.1:9/x'}}"), "leads out of the document"),
        (one("{name: b, in: query, schema: {allOf: [{$ref: 'file:///etc/passwd'}]}}"), "leads out of the document"),
        (one("{name: b, in: query, schema: {$id: 'http://x/', type: string}}"), "$id is not read"),
        (one("{name: b, in: query, content: {text/plain: {}}}"), "a parameter's content is one media type, and JSON"),
        (HEAD + "paths: {/a: {post: {requestBody: {}}}}\n", "`content` has to be a mapping"),
        (HEAD + "paths: {/a: {post: {requestBody: {content: {json: {}}}}}}\n", "no media type (like application/json)"),
        (
            HEAD + "paths:\n  '/{a}': {get: {parameters: &p [{name: a, in: path, required: true, schema: {}}]}}\n"
            "  '/{b}': {get: {parameters: [{name: b, in: path, required: true, schema: {}}]}}\n",
            "5:3: error: paths./{b}: there is another operation at such a path",
        ),
        (
            HEAD + "servers: [{url: v1}]\npaths: {/a: {get: {}}}\n",
            "3:17: error: servers[0].url: a server's url that is",
        ),
    ],
)
def test_a_mistake_has_its_place(tmp_path: Path, text: str, error: str) -> None:
    found = errors(tmp_path, text)
    assert any(error in line for line in found), found


def test_a_missing_document_is_an_error_of_the_policy(tmp_path: Path) -> None:
    path = written(tmp_path, "")
    (tmp_path / "api.yaml").unlink()
    with pytest.raises(PolicyError, match=r"policy.yaml:3:\d+: error: routes\[0\].openapi.document: the file can't be"):
        load(path, {})


def test_errors_are_bounded_and_so_is_a_document(tmp_path: Path) -> None:
    paths = "".join(f"  /a{number}: {{get: {{parameters: [1]}}}}\n" for number in range(500))
    assert len(errors(tmp_path, HEAD + "paths:\n" + paths)) == 50
    bomb = "".join(f"x-{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "100000 values" in errors(tmp_path, HEAD + "x-0: &x0 [a]\n" + bomb + "paths: {/a: {get: {}}}\n")[0]
    deep = 2000 * "{allOf: [" + "{}" + 2000 * "]}"
    assert "deep" in errors(tmp_path, one(f"{{name: b, in: query, schema: {deep}}}"))[0]


def test_schemas_that_refer_to_themselves(tmp_path: Path) -> None:
    """They end where the value does, and so do references that lead nowhere else."""
    tree = "{type: object, properties: {in: {$ref: '#/components/schemas/Tree'}}, additionalProperties: false}"
    body = "{content: {application/json: {schema: {$ref: '#/components/schemas/Tree'}}}}"
    endless = "{name: b, in: query, schema: {$ref: '#/components/schemas/A'}}"
    schemas = f"{{Tree: {tree}, A: {{$ref: '#/components/schemas/B'}}, B: {{$ref: '#/components/schemas/A'}}}}"
    text = f"{HEAD}paths: {{/a: {{post: {{parameters: [{endless}], requestBody: {body}}}}}}}\n"
    api = api_of(tmp_path, f"{text}components: {{schemas: {schemas}}}\n")
    check = api.judge("POST", CanonicalPath("/a"), "b=1", Headers([(b"Content-Type", b"application/json")]), 9).body
    assert check is not None
    assert check.refusal(b'{"in": {"in": {}}}') is None
    assert check.refusal(b'{"in": {"out": {}}}') is not None


def test_openapi_3_0_says_some_things_in_its_own_way(tmp_path: Path) -> None:
    text = one("{name: b, in: query, schema: {type: integer, minimum: 5, exclusiveMinimum: true, nullable: true}}")
    api = api_of(tmp_path, text.replace("3.1.0", "3.0.3"))
    answers = {number: said(api, f"/a?b={number}") for number in ("5", "6", "", "null")}
    assert answers == {"5": "parameter-invalid", "6": "ok", "": "ok", "null": "parameter-invalid"}


@pytest.mark.parametrize(
    ("servers", "base", "path"),
    [
        ("", "", "/a"),
        ("servers: [{url: /}]", "", "/a"),
        ("servers: [{url: 'https://x.example/v1/'}]", "", "/v1/a"),
        ("servers: [{url: 'https://{host}/{v}', variables: {v: {default: v2}, host: {default: x}}}]", "", "/v2/a"),
        ("servers: [{url: /v1}, {url: /v3}]", "", "/v3/a"),
        ("servers: [{url: /v1}]", ", base: /svc", "/svc/a"),
        ("servers: [{url: v1}]", ", base: /", "/a"),
    ],
)
def test_paths_are_below_the_server_or_the_policys_base(tmp_path: Path, servers: str, base: str, path: str) -> None:
    text = f"{HEAD}{servers}\npaths: {{/a: {{get: {{}}}}}}\n"
    api = api_of(tmp_path, text, POLICY.replace("api.yaml", f"api.yaml{base}"))
    assert said(api, path) == "ok"
    assert said(api, f"/other{path}") == "operation-unknown"


def test_the_document_is_part_of_the_digest_and_is_watched(tmp_path: Path) -> None:
    source = PolicySource(written(tmp_path, HEAD + "paths: {/a: {get: {}}}\n"), {})
    before = source.snapshot.digest
    assert not source.changed()
    (tmp_path / "api.yaml").write_text(HEAD + "paths: {/bb: {get: {}}}\n")
    assert source.changed()
    change = source.activate(source.read())
    assert (change.before, change.decides_otherwise) == (before, True)
    (tmp_path / "api.yaml").write_text("openapi: [")
    with pytest.raises(PolicyError):
        source.read()
    assert source.snapshot.digest == change.after


def test_an_environments_reference_means_nothing_in_a_document(tmp_path: Path) -> None:
    text = HEAD + "paths: {/a: {get: {description: 'costs ${PRICE} and ${', parameters: []}}}\n"
    assert said(api_of(tmp_path, text), "/a") == "ok"


def test_what_the_gateway_writes_itself_is_not_asked_of_clients(tmp_path: Path) -> None:
    """A service's document has the fields that the gateway adds; a client's own are dropped, and do not count."""
    names = ("X-User-ID", "X-Request-ID", "X-Tenant", "Authorization")
    parameters = ", ".join(f"{{name: {name}, in: header, required: true, schema: {{type: integer}}}}" for name in names)
    policy = POLICY.replace("openapi:", "rewrite: {set: {X-Tenant: acme}}, openapi:")
    path = written(tmp_path, f"{HEAD}paths: {{/a: {{get: {{parameters: [{parameters}]}}}}}}\n", policy)
    snapshot = compile_policy(load(path, {}))
    route = snapshot.routes.routes[0]
    described = snapshot.compiled["openapi"]
    assert isinstance(described, Apis)
    written_here = (snapshot.client_fields.identity, route.rewrite.remove)
    assert (
        described.of_routes["all"].judge("GET", CanonicalPath("/a"), None, Headers(()), 0, written_here).refusal is None
    )


def test_a_key_in_the_query_is_known(tmp_path: Path) -> None:
    text = HEAD + "paths: {/a: {get: {}}}\ncomponents: {securitySchemes: {k: {type: apiKey, in: query, name: key}}}\n"
    api = api_of(tmp_path, text)
    assert (said(api, "/a?key=x"), said(api, "/a?other=x")) == ("ok", "parameter-unknown")


def test_every_method_and_a_body_that_streams(tmp_path: Path) -> None:
    api = api_of(tmp_path, HEAD + f"paths: {{/a: {{{', '.join(f'{method}: {{}}' for method in METHODS)}}}}}\n")
    assert {said(api, "/a", method.upper()) for method in METHODS} == {"ok"}
    path = written(tmp_path, HEAD + "paths: {/a: {get: {}}}\n", POLICY.replace("openapi:", "stream: always, openapi:"))
    with pytest.raises(PolicyError, match="a body that is checked is held until it is whole"):
        load(path, {})
    path.write_text(POLICY.replace("1KiB", "2MiB"))
    with pytest.raises(PolicyError, match="is at most 256KiB"):
        load(path, {})


def test_a_denial_of_a_large_body_is_cheap(tmp_path: Path) -> None:
    """The library lists everything that is wrong: 0.8 s for 64 KiB, which whoever may send a body could ask for."""
    items = "{type: array, items: {anyOf: [{type: integer}, {type: object, required: [a]}]}}"
    either = "{anyOf: [{items: {type: string}}, {items: {type: integer}}]}"
    bodies = "".join(
        f"  /{name}: {{post: {{requestBody: {{content: {{application/json: {{schema: {schema}}}}}}}}}}}\n"
        for name, schema in (("items", items), ("either", either))
    )
    api = api_of(tmp_path, f"{HEAD}paths:\n{bodies}", POLICY.replace("1KiB", "64KiB"))
    content = b"[" + b",".join([b'{"b":1}'] * 8000) + b"]"
    for path in ("/items", "/either"):
        kind = Headers([(b"Content-Type", b"application/json")])
        check = api.judge("POST", CanonicalPath(path), None, kind, len(content)).body
        assert check is not None
        assert check.refusal(b'[{"b":1}]') is not None
        began = time.thread_time()
        assert isinstance(json.loads(content, object_pairs_hook=dict, parse_int=int), list)
        parsed = time.thread_time() - began
        began = time.thread_time()
        assert check.refusal(content) is not None
        assert time.thread_time() - began < 10 * parsed + 0.1, "no more than it takes to read it, some times"


FILTERS = """\
components:
  schemas:
    Filter:
      oneOf:
        - {required: [op, args], properties: {op: {const: and}, args: {$ref: '#/components/schemas/Args'}}}
        - {required: [op, args], properties: {op: {const: or}, args: {$ref: '#/components/schemas/Args'}}}
        - {type: object, required: [field], properties: {field: {type: string}}, additionalProperties: false}
    Args: {type: array, items: {$ref: '#/components/schemas/Filter'}}
"""
TWICE = """\
components:
  schemas:
    Filter:
      properties: {args: {items: {allOf: [{$ref: '#/components/schemas/Filter'}, {$ref: '#/components/schemas/One'}]}}}
      patternProperties: {x: {type: string}}
    One: {$ref: '#/components/schemas/Filter'}
"""


@pytest.mark.parametrize("schemas", [FILTERS, TWICE], ids=["oneOf", "allOf"])
def test_a_denial_of_a_deep_body_is_cheap(tmp_path: Path, schemas: str) -> None:
    """Words for a schema that leads to itself twice take twice as long a level: 1 s for 308 bytes, an hour for 508."""
    content = "{content: {application/json: {schema: {$ref: '#/components/schemas/Filter'}}}}"
    api = api_of(tmp_path, f"{HEAD}paths: {{/a: {{post: {{requestBody: {content}}}}}}}\n{schemas}")
    kind = Headers([(b"Content-Type", b"application/json")])
    for levels in (10, 30):
        body: object = {"x": 1}
        for _ in range(levels):
            body = {"op": "and", "args": [body]}
        text = json.dumps(body).encode()
        check = api.judge("POST", CanonicalPath("/a"), None, kind, len(text)).body
        assert check is not None
        refusal = check.refusal(text)
        assert refusal is not None
        assert refusal.detail == "The body is not valid."


@pytest.mark.parametrize(
    ("match", "more", "warned"),
    [
        ("prefix: /", "", False),
        ("prefix: /v1", "", False),
        ("prefix: /v1/a/7", "", False),
        ("exact: /v1/a/7/b", "", False),
        ("exact: /v1/a/7", "", True),
        ("prefix: /api", "", True),
        ("prefix: /api", "rewrite: {strip_prefix: true}, ", False),
        ("prefix: /api", "rewrite: {replace_prefix: /v1}, ", False),
        ("prefix: /api", "rewrite: {replace_prefix: /v2}, ", True),
    ],
)
def test_a_document_of_other_paths_is_warned_of(tmp_path: Path, match: str, more: str, warned: bool) -> None:
    parameter = "[{name: x, in: path, required: true, schema: {}}]"
    text = f"{HEAD}servers: [{{url: /v1}}]\npaths: {{'/a/{{x}}/b': {{get: {{parameters: {parameter}}}}}}}\n"
    policy = POLICY.replace("prefix: /", match).replace("openapi:", f"{more}openapi:")
    found = [problem.message for problem in lint(load(written(tmp_path, text, policy), {}))]
    assert any("the document has no operation at" in message for message in found) is warned


def test_json_is_checked_where_every_type_is_taken(tmp_path: Path) -> None:
    content = "{content: {'*/*': {schema: {type: object}}}}"
    api = api_of(tmp_path, f"{HEAD}paths: {{/a: {{post: {{requestBody: {content}}}}}}}\n")
    for kind, checked in ((b"application/json", True), (b"a/b+json", True), (b"text/plain", False)):
        check = api.judge("POST", CanonicalPath("/a"), None, Headers([(b"Content-Type", kind)]), 2).body
        assert (check is not None) is checked
        assert check is None or check.refusal(b"[]") is not None
