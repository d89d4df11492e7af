"""A route that names an OpenAPI document, in every host: what is no operation of it never reaches the service."""

import gzip
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from mitmgate.cli import main
from tests.live.harness import ROOT, SECRET, Front, Gateway, mint, policy, write_policy
from tests.live.harness_http import raw_request, status_of, wait_for
from tests.live.harness_upstream import RecordingUpstream

JSON = {"Content-Type": "application/json"}
PET = b'{"name": "Tom", "weight": 4.5, "parents": [{"name": "Ma"}]}'
type Asked = tuple[str, str, dict[str, str], bytes | None]

INSIDE: list[Asked] = [
    ("GET", "/shop/pets", {}, None),
    ("HEAD", "/shop/pets", {}, None),
    ("GET", "/shop/pets?limit=1", {}, None),
    ("GET", "/shop/pets?limit=100&&", {}, None),
    ("GET", "/shop/pets?tags=cat&tags=dog&limit=7", {}, None),
    ("GET", "/shop/pets?sort=name,-name", {}, None),
    ("GET", "/shop/pets?born[after]=2024-02-29&born%5Bbefore%5D=2025-01-01", {}, None),
    ("POST", "/shop/pets", JSON, PET),
    ("POST", "/shop/pets", {"Content-Type": 'APPLICATION/json; charset="UTF-8"'}, PET),
    ("GET", "/shop/pets/mine", {"X-Owner": "alice"}, None),
    ("GET", "/shop/pets/7", {}, None),
    ("GET", "/shop/pets/9223372036854775807", {}, None),
    ("PUT", "/shop/pets/7", JSON, b'{"name": "Tom", "id": 7}'),
    ("PUT", "/shop/pets/7", {"Content-Type": "application/merge-patch+json"}, b"{}"),
    ("DELETE", "/shop/pets/7", {}, None),
    ("GET", "/shop/pets/7/photo.png", {}, None),
    ("POST", "/shop/pets/7/photo.jpeg", {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}, b"\x00\xff"),
    ("POST", "/shop/pets/7/photo.png", {}, None),
    ("GET", "/shop/owners/Al%20Ice?details=true", {}, None),
    ("GET", "/shop/owners/%C3%A9?details=false", {}, None),
]

OUTSIDE: list[tuple[str, Asked]] = [
    ("operation-unknown", ("GET", "/shop/pet", {}, None)),
    ("operation-unknown", ("GET", "/shop/PETS", {}, None)),
    ("operation-unknown", ("GET", "/shop/pets/", {}, None)),
    ("operation-unknown", ("GET", "/shop/pets/7/photo", {}, None)),
    ("operation-unknown", ("GET", "/shop/pets/7%2Fphoto.png", {}, None)),
    ("operation-unknown", ("GET", "/shop/owners/a%2Fb?details=true", {}, None)),
    ("operation-not-allowed", ("PATCH", "/shop/pets/7", {}, None)),
    ("operation-not-allowed", ("OPTIONS", "/shop/pets", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets/x", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets/9223372036854775808", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets/007", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=101", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=1&limit=2", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?tags=cow", {}, None)),
    ("parameter-unknown", ("GET", "/shop/pets?LIMIT=5", {}, None)),
    ("parameter-missing", ("GET", "/shop/pets/mine", {}, None)),
    ("parameter-missing", ("GET", "/shop/owners/alice", {}, None)),
    ("content-type-refused", ("POST", "/shop/pets", {"Content-Type": "text/xml"}, PET)),
    ("body-unexpected", ("POST", "/shop/pets", JSON, None)),
    # More than twenty: the attacks.
    ("path-ambiguous", ("GET", "/shop/pets/1%00", {}, None)),
    ("parameter-invalid", ("GET", "/shop/owners/a?details=true%00", {}, None)),
    ("parameter-invalid", ("GET", "/shop/owners/a?details=%zz", {}, None)),
    ("parameter-invalid", ("GET", "/shop/owners/a?details=%ff", {}, None)),
    ("parameter-invalid", ("GET", "/shop/owners/a?details=true;details=false", {}, None)),
    ("parameter-invalid", ("GET", "/shop/owners/a?details=TRUE", {}, None)),
    ("parameter-invalid", ("GET", "/shop/owners/" + 21 * "a" + "?details=true", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=" + 200 * "9", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=1e1", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=%2B5", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?limit=%D9%A3", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?tags=cat&tags=cat&tags=cat&tags=cat", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?sort=name%2Csecret", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?born[after]=yesterday", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets?born[x]=2024-01-01", {}, None)),
    ("parameter-unknown", ("GET", "/shop/pets?limit[]=5", {}, None)),
    ("parameter-unknown", ("GET", "/shop/pets?born=2024-01-01", {}, None)),
    ("parameter-invalid", ("GET", "/shop/pets/mine", {"X-Owner": "Alice"}, None)),
    ("operation-unknown", ("GET", "/shop/pets/mine%3Fx", {"X-Owner": "alice"}, None)),
    ("content-type-refused", ("POST", "/shop/pets", {}, PET)),
    ("content-type-refused", ("POST", "/shop/pets", {"Content-Type": "application/json, text/xml"}, PET)),
    ("content-type-refused", ("POST", "/shop/pets", {"Content-Type": "application/json;charset=utf-16"}, PET)),
    ("content-type-refused", ("POST", "/shop/pets", JSON | {"Content-Encoding": "gzip"}, gzip.compress(PET))),
    ("body-unexpected", ("GET", "/shop/pets", JSON, PET)),
    ("body-invalid", ("POST", "/shop/pets", JSON, gzip.compress(PET))),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom", "admin": true}')),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom", "name": "Tom"}')),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom", "weight": NaN}')),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom", "weight": 1e999}')),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom", "weight": 1%s}' % (b"0" * 5000))),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "\\ud800"}')),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom"} {}')),
    ("body-invalid", ("POST", "/shop/pets", JSON, b"\xef\xbb\xbf" + PET)),
    ("body-invalid", ("POST", "/shop/pets", JSON, PET.decode().encode("utf-16"))),
    ("body-invalid", ("POST", "/shop/pets", JSON, b'{"name": "Tom", "parents": ' + 8000 * b"[" + 8000 * b"]" + b"}")),
    ("body-invalid", ("POST", "/shop/pets", JSON, 70 * b'{"name":"a","parents":[' + 70 * b"]}")),
    ("body-invalid", ("PUT", "/shop/pets/7", {"Content-Type": "application/merge-patch+json"}, b"[]")),
    ("body-too-large", ("POST", "/shop/pets", JSON, b'{"name": "' + 16_384 * b"a" + b'"}')),
]


class Running:
    """A gateway with the pet shop's document, and the service behind it."""

    def __init__(self, gateway: Gateway, upstream: RecordingUpstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.token = mint()

    def ask(self, asked: Asked, **options: Any) -> tuple[int, str | None]:
        method, target, headers, body = asked
        answered = self.gateway.request(method, target, token=self.token, headers=headers, body=body, **options)
        return answered.status, None if method == "HEAD" else answered.reason


@pytest.fixture(scope="module", params=["serve", "web"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    front: Front = request.param
    directory = tmp_path_factory.mktemp(front)
    shutil.copy(ROOT / "docs/examples/petstore.yaml", directory)
    with RecordingUpstream() as upstream:
        made = policy(directory, upstream)
        shop = {
            "name": "shop",
            "match": {"prefix": "/shop"},
            "upstream": "users",
            "rewrite": {"replace_prefix": "/v1"},
            "openapi": {"document": "petstore.yaml", "body": "16KiB"},
            "allow_encoded_slash": True,
            "rate_limits": ["per-user"],
            "cors": "web",
        }
        made["rate_limits"]["per-user"]["limit"] = 1000
        trial = shop | {"name": "trial", "match": {"prefix": "/trial"}, "mode": "report"}
        made["routes"] += [shop, trial]
        arguments = ("--record", str(directory / "traffic.mitm")) if front == "serve" else ()
        with Gateway(write_policy(directory, made), host=front, arguments=arguments) as gateway:
            yield Running(gateway, upstream)


def test_what_is_in_the_document_passes(running: Running) -> None:
    assert len(INSIDE) == 20
    running.upstream.forget()
    for asked in INSIDE:
        assert running.ask(asked)[0] == 200, asked
        seen = running.upstream.last()
        assert (seen.method, seen.target, seen.body) == (asked[0], asked[1].replace("/shop", "/v1"), asked[3] or b"")
    running.upstream.assert_saw_only(20)


def test_what_is_not_never_reaches_the_service(running: Running) -> None:
    running.upstream.forget()
    for reason, asked in OUTSIDE:
        status, said = running.ask(asked)
        assert (400 <= status < 500, said) == (True, reason), asked
    running.upstream.assert_saw_nothing()


def test_the_denial_says_what_was_wrong(running: Running) -> None:
    for asked, told in (
        ("/shop/pets?limit=101", "The query's parameter limit does not meet `maximum: 100`."),
        ("/shop/pets?x=1", "This operation has no query parameter x."),
        (f"/shop/pets?{mint()}=1", "This operation has no query parameter of this name."),
        ("/shop/pets?password=hunter2", "This operation has no query parameter of this name."),
        ("/shop/pets/x", "The path's parameter id has to be an integer."),
    ):
        answered = running.gateway.get(asked, token=running.token)
        assert answered.json["detail"] == told
    answered = running.gateway.request("PATCH", "/shop/pets/7", token=running.token)
    assert (answered.status, answered.one("allow")) == (405, "DELETE, GET, HEAD, PUT")
    body = b'{"name": "Tom", "weight": 5000, "secret": "hunter2"}'
    answered = running.gateway.request("POST", "/shop/pets", token=running.token, headers=JSON, body=body)
    assert answered.json["detail"].startswith("The body does not meet `")
    assert b"hunter2" not in answered.body


def test_nobody_explores_the_document_without_a_token(running: Running) -> None:
    running.upstream.forget()
    for target in ("/shop/pets", "/shop/nothing", "/shop/pets?x=1"):
        assert running.gateway.get(target).reason == "credential-missing"
    running.upstream.assert_saw_nothing()


def test_a_preflight_is_answered_by_the_gateway(running: Running) -> None:
    running.upstream.forget()
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    assert running.gateway.request("OPTIONS", "/shop/pets", headers=asked).status == 204
    running.upstream.assert_saw_nothing()


def test_a_body_that_comes_in_parts_is_held_until_it_is_whole(running: Running) -> None:
    running.upstream.forget()
    method, target, headers = "POST", "/shop/pets", JSON | {"Authorization": f"Bearer {running.token}"}
    for body, expected in (
        ([PET[:10], PET[10:]], (200, None)),
        ([PET[:10], b"}", PET[10:]], (400, "body-invalid")),
        ([b" "], (400, "body-invalid")),
        ([b'{"name": "', *([b"a" * 1024] * 20), b'"}'], (413, "body-too-large")),
    ):
        answered = running.gateway.request(method, target, headers=headers, body=iter(body))
        assert (answered.status, answered.reason) == expected
    running.upstream.assert_saw_only(1)
    assert running.upstream.last().body == PET


def test_a_second_request_behind_a_refused_body_is_its_own(running: Running) -> None:
    """Pipelined: what is left of a refused body is never taken for a request."""
    running.upstream.forget()
    inner = b"GET /v1/admin HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /shop/pets HTTP/1.1\r\nHost: gateway.test\r\nAuthorization: Bearer {running.token}\r\n"
    sent = head.encode() + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(inner), inner)
    assert status_of(raw_request(running.gateway.port, sent)) == 400
    running.upstream.assert_saw_nothing()


def test_report_mode_observes(running: Running) -> None:
    running.upstream.forget()
    asked: list[tuple[Asked, str]] = [
        (("GET", "/trial/nothing", {}, None), "operation-unknown"),
        (("PATCH", "/trial/pets", {}, None), "operation-not-allowed"),
        (("POST", "/trial/pets", JSON, b"[]"), "body-invalid"),
        (("POST", "/trial/pets", JSON, 20_000 * b" "), "body-too-large"),
    ]
    for request, _ in asked:
        assert running.ask(request) == (200, None)
    running.upstream.assert_saw_only(4)
    path = running.gateway.policy_path.parent / "audit.jsonl"

    def observed() -> list[str]:
        events = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
        return [word for event in events if event.get("route") == "trial" for word in event.get("observed", [])]

    wait_for(lambda: len(observed()) >= 4, "four events")
    assert observed()[-4:] == [f"openapi/{reason}" for _, reason in asked]


def test_replay_explain_and_coverage_know_it(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = running.gateway
    if gateway.host != "serve":
        return
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)
    gateway.stop()
    words = ("--policy", str(gateway.policy_path), "--format", "json")
    status = main(("replay", str(gateway.policy_path.parent / "traffic.mitm"), *words, "--coverage"))
    report = json.loads(capsys.readouterr().out)
    assert (status, report["decided"] > 70) == (0, True)
    never = {each["rule"] for each in report["coverage"]["never"]}
    assert "operation PUT /pets/{id} of shop" not in never
    assert "operation PUT /pets/{id} of trial" in never
    outside = {(each["route"], each["reason"], each["operation"]) for each in report["coverage"]["outside"]}
    assert ("shop", "parameter-unknown", "GET /pets") in outside
    assert ("trial", "operation-unknown", "GET /v1/nothing") in outside
    main(("explain", *words, "--claims", '{"sub": "alice"}', "GET", "http://gateway.test/shop/pets?limit=0"))
    told = json.loads(capsys.readouterr().out)
    assert told["decision"] == "deny parameter-invalid"
    step = next(step for step in told["stages"] if step["stage"] == "openapi")
    assert (step["read"]["operation"], step["read"]["path"]) == ("GET /pets", "/v1/pets")


def test_a_document_is_learnt_that_takes_what_was_seen(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What succeeded is inside of the document that it teaches, and what was never seen is not."""
    gateway = running.gateway
    if gateway.host != "serve":
        return
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setattr("gc.freeze", lambda: None)
    directory = gateway.policy_path.parent
    traffic, learnt = str(directory / "traffic.mitm"), directory / "learnt.yaml"
    assert main(("learn", traffic, "--out", str(directory / "learnt-policy.yaml"), "--openapi", str(learnt))) == 0
    text = learnt.read_text()
    assert '"/v1/pets/{petsId}":' in text
    assert "schema: {type: integer, minimum: 0}" in text
    assert running.token not in text
    made = json.loads(gateway.policy_path.read_text())
    for route in made["routes"]:
        if "openapi" in route:
            route["openapi"] = {"document": "learnt.yaml"}
    words = ("--policy", str(write_policy(directory, made, "with-learnt.yaml")), "--format", "json")
    main(("replay", traffic, *words))
    report = json.loads(capsys.readouterr().out)
    assert (report["decided"] > 70, report["differences"]["kinds"]["tightened"]) == (True, 0)
    main(("explain", *words, "--claims", '{"sub": "alice"}', "GET", "http://gateway.test/shop/owners/x/y"))
    assert json.loads(capsys.readouterr().out)["decision"] == "deny operation-unknown"
