"""The status page in headless Chromium: an operator sees what happens, what is wrong, and why one was denied."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.admin.asking import AdminGateway
from tests.browser.webdriver import Browser, browser
from tests.live.harness import mint, policy, route
from tests.live.harness_upstream import RecordingUpstream, Reply
from tests.redis_server import RedisServer

SCREENSHOTS = "MITMGATE_SCREENSHOTS"
"""Names the folder that the pictures of docs/ are written to."""
HOSTILE = "<img src=x onerror=document.title='owned'>"
DENIALS = 30
"""Of each of three kinds: more than what is admitted in the ten seconds before."""
SECRETS = ("hunter2", "s3cr3t-cookie", "eyJ")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, upstream: RecordingUpstream, redis: RedisServer
) -> Iterator[AdminGateway]:
    directory = tmp_path_factory.mktemp("gateway")
    made = policy(directory, upstream, store={"url": redis.url, "timeout": "200ms"})
    made["rate_limits"]["per-user"]["limit"] = 12
    made["upstreams"]["users"]["circuit"] = {"failures": 3, "window": "10s", "open_for": "2s", "probes": 1}
    route(made, "orders", require={"when": 'request.headers["x-team"] == "blue" && "admin" in principal.roles'})
    with AdminGateway(directory, made) as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, gateway: AdminGateway) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser") / "profile") as session:
        session.viewport(1280, 900)
        session.go(f"http://127.0.0.1:{gateway.admin_port}/")
        yield session


@pytest.fixture(scope="module")
def picture(page: Browser, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Take a picture of a state: light, dark and as wide as a phone; nothing may stick out of any of them."""
    folder = Path(os.environ.get(SCREENSHOTS) or tmp_path_factory.mktemp("pictures"))

    def take(name: str) -> None:
        for look, width, height in (("light", 1280, 1300), ("dark", 1280, 1300), ("phone", 390, 844)):
            page.viewport(width, height)
            page.scheme("dark" if look == "dark" else "light")
            page.run("scrollTo(0, 0)")
            page.screenshot(folder / f"{name}-{look}.png")
            assert page.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth"), look
        page.viewport(1280, 900)
        page.scheme("light")

    return take


def test_all_is_well(gateway: AdminGateway, page: Browser, picture: Callable[[str], None]) -> None:
    page.find("#state", "Ready")

    def measured() -> bool:
        assert gateway.get("/public").status == 200
        return bool(page.run("return document.getElementById('latency').innerText.includes('µs')"))

    page.until(measured, "latencies")
    page.find("#circuit-rows .ok", "closed")
    page.find("#services .ok", "counts")
    page.find("#policies .ok", "in force")
    page.find("#processes .ok", "accepts")
    page.find("#routes td", "public")
    assert page.run("return document.title").startswith("● Ready")
    assert page.run("return document.querySelectorAll('#concerns li').length") == 0
    picture("normal")


def test_denials_rise(gateway: AdminGateway, page: Browser, picture: Callable[[str], None]) -> None:
    token = mint("mallory", scope="orders.read")
    for number in range(DENIALS):
        assert gateway.get(f"/api/v1/users/{number}?password=hunter2", token=token).status == 403
        assert gateway.get("/api/v1/orders/7", token=mint("bob"), headers={"X-Team": "red"}).status == 403
        assert gateway.get(f"/api/v1/users/{number}", token=mint("carol", lifetime=-300)).status == 401
    cookie = {"Cookie": "session=s3cr3t-cookie", "X-Team": HOSTILE, "User-Agent": HOSTILE}
    assert gateway.get(f"/api/v1/users/{HOSTILE.replace(' ', '')}", headers=cookie).status == 400
    assert gateway.get("/api/v1/orders/7", token=mint(HOSTILE), headers=cookie).status == 403
    assert [gateway.get("/api/v1/users/7", token=mint("dave")).status for _ in range(13)].count(429) == 1
    page.find("#concerns .warn", "of the requests are denied")
    page.find("#state", "Degraded")
    page.find("#legend li", "scope-missing")
    page.find("#limits td", "dave")
    page.find("#denial-rows td", HOSTILE)
    picture("denials")


def test_a_denial_is_found_and_read(page: Browser, picture: Callable[[str], None]) -> None:
    page.type("#filter", "mallory scope")
    shown = "return [...document.querySelectorAll('#denial-rows tr')].filter(row => !row.hidden).length"
    assert page.run(shown) == DENIALS
    page.click("#denial-rows tr:not([hidden]) button")
    page.find("#detail-title", "403 scope-missing")
    page.find("#detail li.decided.deny", "What would have to change")
    page.find("#detail li.decided.deny", "routes[0].require")
    page.find("#detail li.decided.deny", "policy.yaml:")
    page.find("#detail li.decided.deny li div", '["users.read"]')
    picture("detail")
    fields = "return document.querySelector('#detail textarea[name=fields]').value"
    assert "Bearer [redacted]" in page.run(fields)
    # The same token, another route: its principal is what was found out then.
    page.run("document.querySelector('#detail input[name=target]').value = '/public'")
    page.click("#detail form button")
    page.find("#detail-body h3", "would be admitted")
    page.run("document.querySelector('#detail input[name=target]').value = '/api/v1/users/9'")
    page.click("#detail form button")
    page.find("#detail-body h3", "403 deny scope-missing")
    page.find("#detail-body .note", "counts for what was found out")
    claims = '{"sub": "mallory", "scope": "users.read"}'
    page.run("document.querySelector('#detail textarea[name=claims]').value = arguments[0]", claims)
    page.click("#detail form button")
    page.find("#detail-body h3", "would be admitted")
    picture("explain")
    page.click("#close")
    focused = "return document.activeElement.closest('#denial-rows') !== null"
    assert page.run(focused), "the keyboard goes on where it was"
    page.run("const e = document.getElementById('filter'); e.value = ''; e.dispatchEvent(new Event('input'))")


def test_nothing_of_a_client_is_markup_and_no_credential_is_shown(page: Browser, gateway: AdminGateway) -> None:
    assert page.run("return document.querySelectorAll('#console img').length") == 0
    assert "owned" not in page.run("return document.title")
    text = page.run("return document.documentElement.outerHTML")
    for secret in SECRETS:
        assert secret not in text
    for number in range(1, 40):
        answer = gateway.ask(f"/status/denials/{gateway.process.pid}-{number}")
        for secret in SECRETS:
            assert secret not in answer.body.decode(), answer.body


def test_a_circuit_opens_and_closes(
    gateway: AdminGateway, page: Browser, upstream: RecordingUpstream, picture: Callable[[str], None]
) -> None:
    upstream.reply = Reply(500)
    for _ in range(8):
        gateway.get("/public")
    page.find("#concerns .bad", "Circuit open: users")
    page.find("#state .bad", "Degraded")
    page.find("#circuits.bad td", "opened")
    page.find("#circuits.bad td", "status 500")
    picture("circuit-open")
    upstream.reply = Reply()

    def closed() -> bool:
        gateway.get("/public")
        return bool(page.run("return document.getElementById('circuit-rows').innerText.includes('closed again')"))

    page.until(closed, "the circuit to close")


def test_redis_goes(gateway: AdminGateway, page: Browser, redis: RedisServer, picture: Callable[[str], None]) -> None:
    redis.stop()
    gateway.get("/api/v1/users/1", token=mint("erin"))
    page.find("#services .bad", "away")
    page.find("#concerns .bad", "Counter store away")
    picture("redis-away")
    redis.start()

    def counts() -> bool:
        gateway.get("/api/v1/users/1", token=mint("frank"))
        return bool(page.run("return document.querySelector('#services .ok')?.innerText.includes('counts')"))

    page.until(counts, "the store to count again")


def test_a_policy_is_refused(gateway: AdminGateway, page: Browser, picture: Callable[[str], None]) -> None:
    text = gateway.policy_path.read_text()
    gateway.policy_path.write_text(
        text.replace('"prefix": "/api/v1/users"', f'"prefixx": "{HOSTILE.replace(chr(34), "")}"')
    )
    page.find("#concerns .bad", "The last policy was refused")
    page.find("#policies .bad", "refused")
    page.find("#policies pre", "prefixx")
    picture("policy-refused")
    gateway.policy_path.write_text(text)
    assert page.run("return document.querySelectorAll('#console img').length") == 0


def test_the_keyboard_and_a_screen_reader_have_what_they_need(page: Browser) -> None:
    unnamed = """
        const named = e => (e.textContent || '').trim() || e.getAttribute('aria-label')
            || e.getAttribute('aria-labelledby') || e.closest('label');
        return [...document.querySelectorAll('button, input, select, textarea, a, dialog, section, svg[role=img]')]
            .filter(e => !named(e)).map(e => e.outerHTML.slice(0, 200));"""
    assert page.run(unnamed) == []
    assert page.run("return [...document.querySelectorAll('th')].filter(e => !e.scope || !e.textContent).length") == 0
    names = page.run("""return [...document.querySelectorAll('section, [role=region]')].map(e =>
        e.getAttribute('aria-label') || document.getElementById(e.getAttribute('aria-labelledby')).textContent)""")
    assert len({*names}) == len(names), names
    assert page.run("return document.getElementById('denial-rows').getAttribute('aria-live')") == "off"
    assert page.run("return document.documentElement.lang") == "en"
    page.run("document.getElementById('pause').click()")
    page.find("#pause", "Go on")
    page.run("document.getElementById('pause').click()")


def test_the_page_says_so_when_nobody_tells_it_anything(gateway: AdminGateway, page: Browser) -> None:
    gateway.process.terminate()
    page.find("#state .bad", "No word from the gateway")
