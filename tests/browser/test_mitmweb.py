"""mitmweb in headless Chromium: a person sees the decisions as they are made, and why."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.webdriver import Browser, browser
from tests.live.harness import WEB_PASSWORD, Gateway, mint, policy_file
from tests.live.harness_upstream import RecordingUpstream, Reply

SCREENSHOT = "MITMGATE_SCREENSHOT"  # names the file that the README's picture is written to


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Mitmweb with the gateway, before a service that says what it got."""
    with (
        RecordingUpstream(Reply(echo=True)) as upstream,
        Gateway(policy_file(tmp_path, upstream), host="web") as running,
    ):
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as session:
        session.viewport(1280, 800)
        yield session


def test_a_person_sees_why_a_request_was_denied(gateway: Gateway, page: Browser, tmp_path: Path) -> None:
    page.go(f"http://127.0.0.1:{gateway.web_port}/")
    page.type("input[name=token]", WEB_PASSWORD)
    page.click("input[type=submit]")
    page.find("#mitmproxy")

    # The page is open now: it is told of what comes.
    assert gateway.get("/api/v1/users/7", token=mint()).status == 200
    page.find("tr .col-comment", "ADMIT users → users 200 in ")
    page.find("tr .marker", "🟢")
    assert gateway.get("/api/v1/users/7", token=mint("bob", lifetime=-300)).status == 401
    page.find("tr .col-comment", "DENY 401 token-expired at authentication (route users)")
    page.find("tr .marker", "🔴")

    page.click("tr .col-comment", "DENY 401")
    page.click(".nav-tabs a", "Response")
    page.click(".contentview .btn", "View")
    page.click(".dropdown-menu a", "gateway")
    page.find(".contentview h5", "Gateway")
    shown = page.run("return document.querySelector('.contentview').innerText")
    assert "authentication" in shown
    assert "token-expired" in shown
    page.screenshot(Path(os.environ.get(SCREENSHOT, tmp_path / "mitmweb.png")))
