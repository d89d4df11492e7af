"""mitmweb in headless Chromium: a person sees the decisions as they are made, and why."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.webdriver import Browser, browser
from tests.live.harness import WEB_PASSWORD, Gateway, mint, policy, route, write_policy
from tests.live.harness_upstream import RecordingUpstream, Reply

SCREENSHOT = "MITMGATE_SCREENSHOT"  # names the file that the README's picture is written to


CUT_OFF = """return [...document.querySelectorAll('td.col-comment')]
    .filter(cell => cell.scrollWidth > cell.clientWidth).map(cell => cell.innerText)"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Mitmweb with the gateway, before a service that says what it got."""
    with (
        RecordingUpstream(Reply(echo=True)) as upstream,
        Gateway(short_paths(tmp_path, upstream), host="web") as running,
    ):
        yield running


def short_paths(directory: Path, upstream: RecordingUpstream) -> Path:
    """Write the policy of the live tests with paths that a picture has room for, and a limit that is soon spent."""
    made = policy(directory, upstream)
    made["rate_limits"]["per-user"]["limit"] = 3
    for name in ("users", "orders"):
        route(made, name, match={"prefix": f"/{name}"})
    route(made, "orders", require={"when": 'request.headers["x-team"] == "blue" && "user" in principal.roles'})
    return write_policy(directory, made)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as session:
        session.viewport(1400, 800)
        yield session


def test_a_person_sees_why_a_request_was_denied(gateway: Gateway, page: Browser, tmp_path: Path) -> None:
    page.go(f"http://127.0.0.1:{gateway.web_port}/")
    page.type("input[name=token]", WEB_PASSWORD)
    page.click("input[type=submit]")
    page.find("#mitmproxy")

    # The page is open now: it is told of what comes.
    def ask(target: str, token: str | None = None, method: str = "GET", team: str = "blue") -> int:
        return gateway.request(method, target, token=token, host="api.test", headers={"X-Team": team}).status

    assert ask("/users/7", mint()) == 200
    page.find("tr .col-comment", "ADMIT users → users 200 in ")
    page.find("tr .marker", "🟢")
    assert ask("/users/7", mint("bob", lifetime=-300)) == 401
    page.find("tr .col-comment", "DENY 401 token-expired at authentication (route users)")
    page.find("tr .marker", "🔴")
    assert ask("/orders/12", mint("bob"), "POST") == 200
    assert ask("/users/7") == 401
    assert ask("/users/7", mint("carol", scope="orders.read")) == 403
    assert ask("/orders/12", mint("bob"), "POST", team="red") == 403
    assert ask("/health") == 200
    assert [ask(f"/users/{number}", mint()) for number in (8, 9, 10)] == [200, 200, 429]
    page.find("tr .col-comment", "DENY 429 quota-exceeded at rate-limit (alice, route users)")
    assert page.run(CUT_OFF) == []

    # The decision stands on the pane that is shown first, and beside it every reason can still be read.
    page.click("tr .col-comment", "DENY 403 condition-false")
    page.find(".contentview h5", "Gateway")
    page.find(".contentview", 'false    request.headers["x-team"] == "blue"')
    shown = page.run("return document.querySelector('.contentview').innerText")
    assert "DENY 403 condition-false at authorization (bob, route orders)" in shown
    assert re.search(r"rule +routes\[1\]\.require\.when +policy\.yaml:\d+:\d+", shown)
    assert re.search(r"authorization +deny +condition-false", shown)
    assert page.run(CUT_OFF) == []
    assert f"http://api.test:{gateway.port}/" not in page.page(), "the URL that was asked for"
    page.screenshot(Path(os.environ.get(SCREENSHOT, tmp_path / "mitmweb.png")))

    page.click("tr .col-comment", "DENY 403 scope-missing")
    page.find(".contentview", "the token needs the scope users.read")
    page.click(".nav-tabs a", "Response")
    page.find(".first-line", "403")
    page.find(".contentview h5", "Gateway")
    page.find(".contentview", "the token needs the scope users.read")
