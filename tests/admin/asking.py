"""Ask the admin listener of a real gateway, and read what it says as its users do."""

from pathlib import Path
from typing import Any

from tests.admin.figures import Labels, samples
from tests.live.harness import Gateway, Host, policy, write_policy
from tests.live.harness_http import Answered, free_port, request
from tests.live.harness_upstream import RecordingUpstream

Samples = dict[tuple[str, Labels], float]


class AdminGateway(Gateway):
    """A gateway whose policy has an admin listener on a free port of 127.0.0.1."""

    def __init__(self, directory: Path, made: dict[str, Any], host: Host = "serve", **options: Any) -> None:
        self.admin_port = free_port()
        super().__init__(write_policy(directory, self.with_admin(made)), host=host, **options)

    def with_admin(self, made: dict[str, Any]) -> dict[str, Any]:
        """Return a policy with this gateway's admin listener."""
        return {**made, "admin": {"port": self.admin_port}}

    def ask(self, path: str, method: str = "GET", host: str = "localhost", **headers: str) -> Answered:
        """Send a request to the admin listener."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(self.admin_port, method, path, host=host, headers=named)

    def status(self) -> dict[str, Any]:
        """Return the status page's JSON."""
        answer = self.ask("/status", Accept="application/json")
        assert answer.one("content-type") == "application/json"
        members: dict[str, Any] = answer.json
        return members

    def samples(self) -> Samples:
        """Scrape, strictly."""
        answer = self.ask("/metrics")
        assert answer.status == 200
        assert answer.one("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        return samples(answer.body.decode())

    def value(self, name: str, **labels: str) -> float:
        """Scrape one sample; 0 where there is none."""
        return self.samples().get((name, frozenset(labels.items())), 0.0)

    def missing(self) -> list[str]:
        """Return the conditions that /readyz names, [] where it says ready."""
        answer = self.ask("/readyz")
        if answer.status == 200:
            return []
        assert answer.status == 503
        assert answer.one("content-type") == "application/problem+json"
        assert answer.json["status"] == 503
        assert answer.json["detail"]
        return [one["condition"] for one in answer.json["missing"]]


def admin_gateway(
    directory: Path, upstream: RecordingUpstream | str, host: Host = "serve", **members: Any
) -> AdminGateway:
    """Make a gateway with the live tests' policy."""
    return AdminGateway(directory, policy(directory, upstream, **members), host)
