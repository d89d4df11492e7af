"""How browser.har and browser-sensitive.har were made: `python -m tests.recordings.export_har`.

Chromium loads a page through a gateway (browser.yaml), the page sends requests of every kind, and the two files are
what the button "Export HAR" of the network panel in Chromium's own DevTools saved: once sanitized, which is what it
does by itself (no Cookie, no Authorization), once with sensitive data. Nothing in them was edited.
"""

import json
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.browser import webdriver
from tests.live.harness import Gateway, mint
from tests.live.harness_upstream import Recorded, RecordingUpstream, Reply

HERE = Path(__file__).parent
PAGE = "http://localhost:8080/shop"
OTHER = "http://127.0.0.1:8080"  # another origin than the page's, so that the browser asks with a preflight first

SEND = """
const [other, alice, bob, done] = [...arguments];
const bearer = token => ({headers: {Authorization: `Bearer ${token}`}});
const json = {"Content-Type": "application/json"};
const ask = async (url, options) => {
  try { await (await fetch(url, options)).text(); } catch (e) { /* CORS says no */ }
};
(async () => {
  document.cookie = "session=not-a-secret";
  await ask("/api/v1/users/7?page=1");
  await ask("/api/v1/users/7?page=1", bearer(alice));
  await ask("/api/v1/users/7", bearer(bob));
  await ask("/api/v1/users/7", bearer("not.a.token"));
  await ask("/api/v1/orders", {method: "POST", body: '{"item": 1}', headers: {...json, ...bearer(alice).headers}});
  await ask("/api/v1/orders", {method: "POST", body: "x".repeat(2000), headers: bearer(alice).headers});
  await ask("/api/v1/orders/1", {method: "DELETE", ...bearer(alice)});
  for (let number = 0; number < 6; number++) await ask(`/api/v1/orders/${number}`, bearer(alice));
  await ask("/nothing", bearer(alice));
  await ask(`${other}/api/v1/users/8`, bearer(alice));
  await ask(`${other}/api/v1/users/8`, {method: "DELETE", ...bearer(alice)});
  done(true);
})();
"""

FIND = """
const found = [];
const walk = node => {
  if (node.matches("button,[role=menuitem],[role=menuitemcheckbox]") && node.offsetParent) found.push(node);
  for (const child of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children]) walk(child);
};
walk(document.body);
const words = n => `${n.getAttribute("aria-label") || ""} ${n.getAttribute("title") || ""} ${n.innerText || ""}`;
const it = found.find(node => words(node).includes(arguments[0]));
return it && [it.getBoundingClientRect().x + 8, it.getBoundingClientRect().y + 8];
"""


def answer(request: Recorded) -> Reply:
    """Be the shop: a page, and JSON for everything else."""
    if request.target == "/shop":
        return Reply(headers=[("Content-Type", "text/html")], body=b"<!doctype html><title>Shop</title><p>A shop.")
    return Reply(headers=[("Content-Type", "application/json")], body=b'{"answer": 42}')


def main() -> None:
    for name, item in (("browser.har", "(sanitized)"), ("browser-sensitive.har", "(with sensitive")):
        with TemporaryDirectory() as place, RecordingUpstream(answer, port=9002):
            (Path(place) / "browser.yaml").write_text((HERE / "browser.yaml").read_text())
            gateway = Gateway(Path(place) / "browser.yaml")
            gateway.port = 8080
            with gateway:
                export(Path(place) / "profile", ["Export HAR (either", item], HERE / name)


def export(profile: Path, clicks: list[str], target: Path) -> None:
    """Load the page with DevTools beside it, have it send, and save the network log by DevTools' own button."""
    port = webdriver.free_port()
    flags = (f"--remote-debugging-port={port}", "--remote-allow-origins=*")
    with webdriver.browser(profile, flags) as browser:
        page = browser.send("window")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as listed:
            (found,) = [one["id"] for one in json.load(listed) if one["type"] == "page"]
        address = f"127.0.0.1:{port}/devtools"
        devtools = browser.send("window/new", {"type": "tab"})["handle"]
        browser.send("window", {"handle": devtools})
        browser.go(f"http://{address}/devtools_app.html")
        browser.run("localStorage.setItem('network.show-options-to-generate-har-with-sensitive-data', 'true')")
        browser.go(f"http://{address}/devtools_app.html?panel=network&ws={address}/page/{found}")
        webdriver.wait(lambda: browser.run(FIND, clicks[0]), "the network panel of DevTools")
        browser.send("window", {"handle": page})
        browser.go(PAGE)
        tokens = [mint("alice", roles="user", lifetime=300), mint("bob", scope="orders.read", lifetime=300)]
        browser.send("execute/async", {"script": SEND, "args": [OTHER, *tokens]})
        browser.send("window", {"handle": devtools})
        downloads: dict[str, object] = {"behavior": "allow", "downloadPath": str(profile)}
        browser.send("goog/cdp/execute", {"cmd": "Browser.setDownloadBehavior", "params": downloads})
        for words in clicks:
            x, y = webdriver.wait(lambda words=words: browser.run(FIND, words), words, browser.page)  # type: ignore[misc]  # bound here
            press(browser, x, y)
        saved: Path = webdriver.wait(lambda: next(profile.glob("*.har"), None), "the exported file", browser.page)
        target.write_bytes(saved.read_bytes())


def press(browser: webdriver.Browser, x: float, y: float) -> None:
    """Click at a place of the page: what is in a shadow tree no selector finds."""
    moves: list[dict[str, object]] = [
        {"type": "pointerMove", "origin": "viewport", "x": int(x), "y": int(y)},
        {"type": "pointerDown", "button": 0},
        {"type": "pointerUp", "button": 0},
    ]
    browser.send("actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})


if __name__ == "__main__":
    main()
