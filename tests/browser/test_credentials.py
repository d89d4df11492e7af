"""Headless Chromium opens what a script can set no header for; another page with the same cookie does not."""

import json
from pathlib import Path
from typing import Any

from tests.browser.webdriver import browser
from tests.live.harness import Gateway, mint, policy, route, write_policy
from tests.live.harness_upstream import Raw, Recorded, RecordingUpstream, Reply
from tests.live.test_browsers import service

OPEN = """
const [url, protocols] = arguments;
return new Promise(tell => {
  const socket = new WebSocket(url, protocols);
  socket.onopen = () => tell(`open ${socket.protocol}`);
  socket.onerror = () => tell('refused');
});"""
LISTEN = """
const [url] = arguments;
return new Promise(tell => {
  const source = new EventSource(url, {withCredentials: true});
  source.onmessage = event => { source.close(); tell(event.data); };
  source.onerror = () => { source.close(); tell('refused'); };
});"""
FETCH = """
const [url, mode] = arguments;
const asked = fetch(url, {method: 'POST', mode, credentials: 'include'});
return asked.then(got => `${got.type} ${got.status}`, () => 'refused');"""
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: hello\n\n"


def answer(asked: Recorded) -> Reply | Raw:
    if asked.target == "/events":
        return Raw(EVENTS)
    if asked.target == "/public":
        return Reply(headers=[("Content-Type", "text/html")], body=b"<title>page</title><p>a page")
    return service(asked)


def policy_with(directory: Path, upstream: RecordingUpstream) -> dict[str, Any]:
    made = policy(directory, upstream)
    made["identity"]["browsers"] = {"cookie": "token"}
    route(made, "users", credentials=["header", "cookie"])
    places = {"upstream": "users", "credentials": ["cookie", "subprotocol"], "websocket": True}
    made["routes"] += [{"name": name, "match": {"exact": f"/{name}"}, **places} for name in ("ws", "events")]
    return made


def test_a_page_of_ones_own_and_pages_of_others(tmp_path: Path) -> None:
    token, other = mint("alice"), mint("bob")
    with (
        RecordingUpstream(answer) as upstream,
        Gateway(write_policy(tmp_path, policy_with(tmp_path, upstream))) as gateway,
        browser(tmp_path / "profile") as page,
    ):
        host, audit = f"localhost:{gateway.port}", tmp_path / "audit.jsonl"
        page.go(f"http://{host}/public")
        assert page.run(OPEN, f"ws://{host}/ws", [f"bearer.{other}", "chat"]) == "open chat"
        assert upstream.last().one("x-user-id") == "bob"
        assert page.run(LISTEN, f"http://{host}/events") == "refused", "there is no cookie yet"
        page.run("document.cookie = arguments[0]", f"token={token}; Secure; SameSite=None")
        assert page.run(LISTEN, f"http://{host}/events") == "hello"
        assert upstream.last().one("cookie") is None
        assert page.run(OPEN, f"ws://{host}/ws", ["chat"]) == "open chat"
        assert upstream.last().one("x-user-id") == "alice"
        assert page.run(FETCH, f"http://{host}/api/v1/users", "cors") == "basic 200"
        before = len(upstream.requests)
        # Another port is another origin and the same site: the browser sends the cookie along with all that it asks.
        for origin in (f"http://localhost:{upstream.port}", f"http://127.0.0.1:{gateway.port}"):
            page.go(f"{origin}/public")
            assert page.run(OPEN, f"ws://{host}/ws", ["chat"]) == "refused"
            assert page.run(LISTEN, f"http://{host}/events") == "refused"
            assert page.run(FETCH, f"http://{host}/api/v1/users", "no-cors") == "opaque 0"
        assert {asked.target for asked in upstream.requests[before:]} <= {"/public", "/favicon.ico"}
        seen = b"".join(asked.raw for asked in upstream.requests[:before])
    told = [json.loads(line) for line in audit.read_text().splitlines()]
    foreign = [event for event in told if event.get("reason") == "origin-not-allowed"]
    assert {event["path"] for event in foreign} == {"/ws", "/events", "/api/v1/users"}
    for text in (token, other):
        assert text.encode() not in seen + audit.read_bytes()
