"""The status page in headless Chromium: read by people without scripts, and by no page whose name was moved here."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.admin.asking import AdminGateway, admin_gateway
from tests.browser.webdriver import Browser, browser
from tests.live.harness import mint
from tests.live.harness_upstream import RecordingUpstream

STRANGER = "stranger.example"
FLAGS = ("--blink-settings=scriptEnabled=false", f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[AdminGateway]:
    with RecordingUpstream() as upstream, admin_gateway(tmp_path, upstream) as running:
        yield running


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile", FLAGS) as session:
        session.viewport(1280, 800)
        yield session


def test_a_person_sees_how_the_gateway_is(gateway: AdminGateway, page: Browser, tmp_path: Path) -> None:
    assert gateway.get("/api/v1/users/7", token=mint()).status == 200
    page.go(f"http://127.0.0.1:{gateway.admin_port}/status")
    page.find("h1", "mitmgate is ready")
    for caption in ("Gateway", "Circuits", "Key sets", "Audit"):
        page.find("caption", caption)
    page.find("td", gateway.status()["policy"][0])
    page.find("td", "closed")
    wide = page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert wide, "nothing sticks out"
    page.screenshot(tmp_path / "status.png")


def test_a_page_whose_name_was_moved_here_reads_nothing(gateway: AdminGateway, page: Browser) -> None:
    for path in ("metrics", "status", "readyz"):
        page.go(f"http://{STRANGER}:{gateway.admin_port}/{path}")
        page.find("body", "Misdirected Request")
        assert "mitmgate" not in page.run("return document.body.innerText")
