"""A headless Chromium over the W3C WebDriver protocol: what one test needs, and no more."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver, section 11
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--window-size=1280,800",
)


class Browser:
    """One WebDriver session."""

    def __init__(self, session: str) -> None:
        """session: the session's URL at chromedriver."""
        self._session = session

    def send(self, command: str, body: dict[str, object] | None = None) -> Any:
        """Send a command of the session, such as "window/new"; without a body it is a GET."""
        return request(f"{self._session}/{command}", body)

    def go(self, url: str) -> None:
        request(f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        return request(f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector: str, text: str = "") -> str:
        """Wait for the first element of a CSS selector that shows the text; returns its id."""

        def look() -> Any:
            return self.run(
                "return [...document.querySelectorAll(arguments[0])].find(e => e.innerText.includes(arguments[1]))",
                selector,
                text,
            )

        found: dict[str, str] = wait(look, f"{selector} with {text!r}", self.page)
        return found[ELEMENT]

    def click(self, selector: str, text: str = "") -> None:
        request(f"{self._session}/element/{self.find(selector, text)}/click", {})

    def type(self, selector: str, keys: str) -> None:
        request(f"{self._session}/element/{self.find(selector)}/value", {"text": keys})

    def drag(self, selector: str, right: int) -> None:
        """Drag an element to the right, in CSS pixels."""
        moves: list[dict[str, object]] = [
            {"type": "pointerMove", "origin": {ELEMENT: self.find(selector)}, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "origin": "pointer", "x": right, "y": 0, "duration": 100},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "actions": moves}
        request(f"{self._session}/actions", {"actions": [mouse]})

    def page(self) -> str:
        return str(self.run("return document.body.innerText"))

    def viewport(self, width: int, height: int) -> None:
        """Give the page itself this size in CSS pixels: a window has its frame, also when it is headless."""
        command = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        body: dict[str, object] = {"cmd": "Emulation.setDeviceMetricsOverride", "params": command}
        request(f"{self._session}/goog/cdp/execute", body)

    def scheme(self, name: str) -> None:
        """Prefer a colour scheme: "light" or "dark"."""
        features: list[dict[str, str]] = [{"name": "prefers-color-scheme", "value": name}]
        body: dict[str, object] = {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
        request(f"{self._session}/goog/cdp/execute", body)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until the condition holds; what the page shows is said where it does not come to."""
        wait(condition, what, self.page)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(request(f"{self._session}/screenshot")))


@contextmanager
def browser(profile: Path, flags: Sequence[str] = ()) -> Iterator[Browser]:
    """Start chromedriver and a fresh Chromium; end both. flags: of Chromium, beside FLAGS."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        raise RuntimeError("tests/browser needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    port = free_port()
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        root = f"http://127.0.0.1:{port}"
        wait(lambda: request(f"{root}/status")["ready"], "chromedriver")
        options = {"binary": chromium, "args": [*FLAGS, *flags, f"--user-data-dir={profile}"]}
        capabilities: dict[str, object] = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        identifier = request(f"{root}/session", {"capabilities": capabilities})["sessionId"]
        session = f"{root}/session/{identifier}"
        try:
            yield Browser(session)
        finally:
            with suppress(OSError):
                request(session, method="DELETE")
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def request(url: str, body: dict[str, object] | None = None, method: str | None = None) -> Any:
    """Send one WebDriver command and return its value; raises RuntimeError with the driver's own words."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(call, timeout=60) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(f"{url}: {error.read().decode()[:500]}") from None


def wait(condition: Callable[[], Any], what: str, describe: Callable[[], str] = str, seconds: float = 20) -> Any:
    """Poll until the condition holds; raises TimeoutError that says what was there instead."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(urllib.error.URLError, ConnectionError):
            if value := condition():
                return value
        time.sleep(0.05)
    raise TimeoutError(f"no {what} within {seconds} s\n{describe()}")
