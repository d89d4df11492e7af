"""A fresh recording does not differ from itself, and holds nothing of what it hides; what `learn` makes of CORS."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mitmgate.replay.evidence import Evidence, Place, Seen, TokenEvidence
from mitmgate.replay.learn import propose
from mitmgate.replay.privacy import Hidden, Privacy, Veil
from tests.command_line import command
from tests.live.harness import ROOT, SECRET, Gateway, mint, policy, write_policy
from tests.live.harness_upstream import RecordingUpstream

ADDRESS = "alice.example@corp.example"
SERVICE_KEY = "svc-K7wq2-from-the-environment"
PERSONS: list[dict[str, Any]] = [
    # The name is a part of the address, and one claim says what another, that is not listed, says as well.
    {"sub": ADDRESS, "preferred_username": "alice.example", "email": ADDRESS, "name": "Alice Example"},
    {"sub": "u-2", "preferred_username": "al", "email": "al@corp.example", "name": "Al"},
    {"sub": "u-3", "preferred_username": "bob", "email": "bob@corp.example", "phone_number": 4912345678},
    {"sub": "u-4", "preferred_username": "user", "email": "user@corp.example", "name": "user"},
    {"sub": "u-5", "preferred_username": "ünal", "email": "unal@corp.example", "name": "Ünal Öz"},
    {"sub": "u-6", "preferred_username": "carol", "email": "", "name": "  "},
    {"sub": "u-7", "preferred_username": "dave@corp.example", "email": "dave@corp.example", "address": {"l": "Way 77"}},
]
GONE = (
    "corp.example",
    "Alice Example",
    "alice.example",
    "4912345678",
    "nal Öz",
    "Way 77",
    "tenant-s3cret",
    SERVICE_KEY,
)
PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record persons' requests: claims in forwarded fields, in the path, in the client's own fields."""
    directory = tmp_path_factory.mktemp("fresh")
    with RecordingUpstream() as upstream:
        document = policy(directory, upstream)
        document["identity"]["issuers"]["dev"]["claims"] = {"subject": ["preferred_username"]}
        document["rate_limits"]["per-user"]["limit"] = 100_000
        users = next(route for route in document["routes"] if route["name"] == "users")
        users["rewrite"] = {
            "set": {
                "X-Mail": "{claim:email}",
                "X-Who": "{claim:name} <{claim:email}>",
                "X-Phone": "{claim:phone_number}",
                "X-Tenant": "tenant {header:x-tenant-key}",
                "X-Service": "${MITMGATE_TEST_KEY}",
                "X-Service-Key": "literal-of-the-policy",
                "X-About": "users of {issuer}",
            }
        }
        path = write_policy(directory, document)
        arguments = ("--record", str(directory / "traffic.mitm"))
        with Gateway(path, arguments=arguments, environment={"MITMGATE_TEST_KEY": SERVICE_KEY}) as gateway:
            for person in PERSONS:
                token = mint(**({"subject": person["sub"]} | {name: person[name] for name in person if name != "sub"}))
                own = {"X-Tenant-Key": "tenant-s3cret", "X-Own": f"I am {person['name']}" if "name" in person else "I"}
                own = {name: value.encode("utf-8").decode("latin-1") for name, value in own.items()}
                for target in ("7", str(person["email"]).replace("@", "%40") or "x", f"7?mail={person['email']}"):
                    gateway.get(f"/api/v1/users/{target}", token=token, headers=own)
                gateway.get("/api/v1/orders/1", token=token, headers={"User-Agent": "Annotator/1 (user; bob)"})
                gateway.get("/api/v1/users/7", token=f"{token}x")
            # A preflight for what then came to nothing, and a page of another origin that sends no cookie.
            gateway.request("OPTIONS", "/api/v1/nowhere", headers=PREFLIGHT)
            gateway.get("/api/v1/users/7", token=mint(), headers={"Origin": "https://app.example"})
        assert len(upstream.requests) > 20
    return directory


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MITMGATE_TEST_SECRET", SECRET)
    monkeypatch.setenv("MITMGATE_DEV_EXAMPLE_SECRET", SECRET)
    monkeypatch.setenv("MITMGATE_TEST_KEY", SERVICE_KEY)
    monkeypatch.setattr("gc.freeze", lambda: None)  # it would keep this process's garbage


def test_a_fresh_recording_does_not_differ_from_itself(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", str(made / "policy.yaml"), "--format", "json")
    status, said = command(capsys, "replay", str(made / "traffic.mitm"), *words)
    report = json.loads(said)
    assert report["compared"] >= 36
    assert status == 0, said[:3000]


def test_nothing_that_is_hidden_is_left(made: Path) -> None:
    recorded = (made / "traffic.mitm").read_bytes().decode("utf-8", "replace")
    assert [word for word in GONE if word in recorded] == []
    assert "users of dev" in recorded and "Annotator/1 (user; bob)" in recorded, "and the rest is left as it is"


def test_what_is_redacted_again_is_as_redacted(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = made / "again.mitm"
    assert command(capsys, "redact", str(made / "traffic.mitm"), str(again))[0] == 0
    status, said = command(capsys, "replay", str(again), "--policy", str(made / "policy.yaml"))
    assert status == 0, said
    assert [word for word in GONE if word in again.read_bytes().decode("utf-8", "replace")] == []


def test_learn_answers_the_preflights_that_were_answered_and_asks_for_no_cookies(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = made / "learnt.yaml"
    assert command(capsys, "learn", str(made / "traffic.mitm"), "--out", str(learnt))[0] == 0
    text = learnt.read_text()
    assert "cors: web" in text and "https://app.example" in text
    assert "credentials" not in text
    status, said = command(
        capsys, "replay", str(made / "traffic.mitm"), "--policy", str(learnt), "--fail-on", "none", "--format", "json"
    )
    assert status == 0
    assert '"answer preflight": 1' in said, said[:2000]


def har(*requests: tuple[str, str, dict[str, str]]) -> str:
    entries = [
        {
            "startedDateTime": f"2026-11-30T00:00:{number:02}Z",
            "time": 1,
            "request": {
                "method": method,
                "url": url,
                "httpVersion": "HTTP/1.1",
                "headers": [{"name": name, "value": value} for name, value in fields.items()],
                "bodySize": 0,
            },
            "response": {"status": 204 if method == "OPTIONS" else 200, "headers": []},
        }
        for number, (method, url, fields) in enumerate(requests)
    ]
    return json.dumps({"log": {"entries": entries}})


@pytest.mark.parametrize("cookies", [False, True], ids=["without cookies", "with cookies"])
def test_learn_proposes_credentials_where_a_browser_has_sent_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cookies: bool
) -> None:
    own = {"Origin": "https://app.example"} | ({"Cookie": "a=b"} if cookies else {})
    odd = {**PREFLIGHT, "Access-Control-Request-Headers": "authorization, x_odd"}
    source = tmp_path / "browser.har"
    source.write_text(
        har(
            ("OPTIONS", "https://api.example/items", PREFLIGHT),
            ("OPTIONS", "https://api.example/items", odd),
            ("POST", "https://api.example/items", own),
            ("GET", "https://api.example/page", {"Cookie": "a=b"}),
            ("GET", "https://api.example/page", {"Cookie": "a=b", "Origin": "https://api.example"}),
        )
    )
    status, text = command(capsys, "learn", str(source))
    assert status == 0
    assert ("credentials: true" in text) == cookies
    if cookies:
        assert "credentials: true            # 1 requests of other origins had cookies" in text
    learnt = tmp_path / "learnt.yaml"
    learnt.write_text(text)
    assert command(capsys, "check", str(learnt))[0] == 0
    status, said = command(
        capsys, "replay", str(source), "--policy", str(learnt), "--fail-on", "none", "--format", "json"
    )
    assert f'"answer preflight": {1 if cookies else 2}' in said, "a star of headers can't go with credentials"


def test_the_longest_is_replaced_first() -> None:
    hidden = Hidden({"alice": "A" * 32, "alice@corp.example": "B" * 32, "alice@corp": "C" * 32})
    assert hidden.whole("<alice@corp.example> alice@corp alice") == f"<{'B' * 32}> {'C' * 32} {'A' * 32}"
    assert hidden.everywhere({"path": "/x/alice%40corp.example", "word": "alicex"}) == {
        "path": f"/x/{'B' * 32}",
        "word": "alicex",
    }
    assert hidden.left_in(b"... alice@corp.example ...") and not hidden.left_in(b"alice")


def test_what_no_field_takes_stays_what_no_field_takes() -> None:
    veil = Veil(Privacy())
    assert veil.name("") == ""
    assert all(veil.name(text).isascii() for text in ("al", "a b", "x" * 100))
    assert not any(veil.name(text).isascii() for text in ("ü", " a", "a ", "a\n", "\x7f"))


def test_learn_names_things_as_a_person_would(capsys: pytest.CaptureFixture[str]) -> None:
    """A service at an address is named by its route, a route without `/api/v1`, an issuer without its last label."""
    status, text = command(capsys, "learn", str(ROOT / "addons" / "mitmgate" / "demo" / "orders.mitm"))
    assert status == 0
    assert '  orders: {endpoints: ["http://127.0.0.1:9000"]}\n' in text
    assert '  - name: orders\n    match: {prefix: "/api/v1/orders",' in text
    assert "  default: dev\n  issuers:\n    dev: " in text and "{secret_env: MITMGATE_DEV_SECRET}" in text
    assert "# 2 principals: in any minute" in text and "# 1 request to http://127.0.0.1:9000 1\n" in text


@pytest.mark.parametrize(
    ("path", "endpoint", "route", "upstream"),
    [
        ("/api/v2/users", "http://accounts.internal:8080", "users", "accounts"),
        ("/api/v1", "http://10.0.0.7", "api-v1", "api-v1"),
        ("/true", "http://[::1]:90", '"true"', '"true"'),
        ("/people", "http://7.example", "people", '"7"'),
        ("/", "http://localhost", "root", "root"),
    ],
)
def test_names_of_routes_and_upstreams(path: str, endpoint: str, route: str, upstream: str) -> None:
    place = Place("api.example", tuple(filter(None, path.split("/"))), "GET")
    text = propose(Evidence(places={place: Seen(1, Counter([endpoint]), anonymous=1)}), "a recording")
    assert f"  - name: {route}\n" in text
    assert f"    upstream: {upstream}\n" in text and f"  {upstream}: {{endpoints" in text


@pytest.mark.parametrize(
    ("issuer", "name"),
    [
        ("https://accounts.google.com", "google"),
        ("https://login.corp.example/realms/a", "corp"),
        ("http://127.0.0.1:8080", "issuer"),
        ("joe", "joe"),
    ],
)
def test_names_of_issuers(issuer: str, name: str) -> None:
    assert f"  default: {name}\n" in propose(Evidence(tokens={issuer: TokenEvidence(1)}), "a recording")
