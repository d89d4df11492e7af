"""mitmweb's HTTP API, as a browser with a session uses it."""

import http.client
import json
from typing import Any

from tests.live.harness import WEB_PASSWORD
from tests.live.harness_upstream import PATIENCE

XSRF = "0123456789abcdef0123456789abcdef"  # tornado compares the cookie with the header; any value does


class WebApi:
    """The API on a port, with a password."""

    def __init__(self, port: int, password: str = WEB_PASSWORD) -> None:
        self.port = port
        self.headers = {
            "Authorization": f"Bearer {password}",
            "Cookie": f"_mitmproxy_xsrf={XSRF}",
            "X-XSRFToken": XSRF,
            "Content-Type": "application/json",
        }

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Return status and text."""
        data = body if isinstance(body, bytes | None) else json.dumps(body)
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            link.request(method, path, data, self.headers)
            response = link.getresponse()
            if session := response.getheader("Set-Cookie"):  # from now on no password needs to be hashed
                self.headers["Cookie"] = f"_mitmproxy_xsrf={XSRF}; {session.partition(';')[0]}"
                del self.headers["Authorization"]
            return response.status, response.read().decode()
        finally:
            link.close()

    def get(self, path: str) -> Any:
        """Return the JSON of a resource."""
        status, text = self.call("GET", path)
        assert status == 200, f"{path}: {status} {text[:500]}"
        return json.loads(text)

    @property
    def flows(self) -> list[dict[str, Any]]:
        """The flow list, oldest first."""
        flows: list[dict[str, Any]] = self.get("/flows")
        return flows

    @property
    def comments(self) -> list[str]:
        return [flow["comment"] for flow in self.flows]

    def content(self, flow: dict[str, Any], message: str, view: str = "auto") -> dict[str, Any]:
        """Render a message with a content view."""
        shown: dict[str, Any] = self.get(f"/flows/{flow['id']}/{message}/content/{view}.json")
        return shown

    def command(self, name: str, *arguments: str) -> dict[str, Any]:
        """Run a command; {"value": …} or {"error": …}."""
        status, text = self.call("POST", f"/commands/{name}", {"arguments": list(arguments)})
        assert status == 200, text
        result: dict[str, Any] = json.loads(text)
        return result
