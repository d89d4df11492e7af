"""A real gateway process for live tests, the policy that it runs with, tokens for it, and its audit events."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jwt

from tests.live.event_schema import strange_events
from tests.live.harness_http import Answered, free_port, request, wait_for
from tests.live.harness_upstream import PATIENCE, RecordingUpstream

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-for-tests-that-is-long-enough-for-HS512-and-is-used-nowhere-else"
ISSUER = "https://dev.example"
AUDIENCE = "api://test"
WEB_PASSWORD = "a-password-for-tests"
Host = Literal["serve", "web"]
Front = Literal["serve", "web", "stock"]
"""stock: mitmdump with the gateway's script."""


def mint(
    subject: str = "alice",
    *,
    roles: list[str] | str | None = "user",
    scope: str | None = "users.read orders.read",
    lifetime: float = 3600,
    key: str | bytes = SECRET,
    algorithm: str = "HS256",
    headers: Mapping[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Mint a token for the issuer of `policy`. A claim given as None is left out."""
    now = int(time.time())
    members: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": subject,
        "iat": now,
        "exp": now + lifetime,
        "role": roles,
        "scope": scope,
    } | claims
    members = {name: value for name, value in members.items() if value is not None}
    return jwt.encode(members, key, algorithm, headers=dict(headers) if headers else None)


def policy(directory: Path, upstream: RecordingUpstream | str, **members: Any) -> dict[str, Any]:
    """Make the policy that live tests start from; `members` take the place of top-level ones.

    Routes: `users` (prefix /api/v1/users, the path kept, users.read needed), `orders` (prefix /api/v1/orders, prefix
    stripped), `public` (exact /public, no authentication). Limit: 100 a minute for each principal, on `users` alone.
    Audit: audit.jsonl beside the policy.
    """
    url = upstream if isinstance(upstream, str) else upstream.url
    made: dict[str, Any] = {
        "version": 1,
        "identity": {
            "default": "dev",
            "issuers": {
                "dev": {
                    "issuer": ISSUER,
                    "audience": [AUDIENCE],
                    "algorithms": ["HS256"],
                    "keys": {"secret_env": "MITMGATE_TEST_SECRET"},
                }
            },
        },
        "upstreams": {"users": {"endpoints": [url]}, "orders": {"endpoints": [url]}},
        "rate_limits": {"per-user": {"limit": 100, "window": "60s", "key": "principal"}},
        "cors": {
            "web": {
                "origins": ["https://app.example"],
                "methods": ["GET", "POST"],
                "headers": ["Authorization", "Content-Type"],
                "credentials": True,
                "max_age": "10m",
            }
        },
        "routes": [
            {
                "name": "users",
                "match": {"prefix": "/api/v1/users"},
                "upstream": "users",
                "require": {"scopes_all": ["users.read"]},
                "rate_limits": ["per-user"],
                "cors": "web",
                "max_body": "1KiB",
            },
            {
                "name": "orders",
                "match": {"prefix": "/api/v1/orders", "methods": ["GET", "POST"]},
                "upstream": "orders",
                "rewrite": {"strip_prefix": True},
                "require": {"roles_any": ["user", "admin"]},
            },
            {"name": "public", "match": {"exact": "/public"}, "upstream": "users", "auth": "none"},
        ],
        "audit": {"sinks": [{"file": str(directory / "audit.jsonl"), "fsync": "1s"}]},
    }
    return made | members


def route(made: dict[str, Any], name: str, **members: Any) -> dict[str, Any]:
    """Replace members of one route of a policy, and return the policy."""
    next(route for route in made["routes"] if route["name"] == name).update(members)
    return made


def write_policy(directory: Path, made: Mapping[str, Any], name: str = "policy.yaml") -> Path:
    """Write a policy. JSON is YAML (YAML 1.2, section 1.3), and shows every string quoted."""
    path = directory / name
    path.write_text(json.dumps(made, indent=2))
    return path


def policy_file(directory: Path, upstream: RecordingUpstream | str, **members: Any) -> Path:
    """Write `policy(...)` to policy.yaml in the directory."""
    return write_policy(directory, policy(directory, upstream, **members))


class Gateway:
    """`mitmgate serve`, `mitmgate web` or mitmdump with the script, as a process of its own on a free port.

    Use it as a context manager.

    Entering returns when it accepts requests; leaving ends it by SIGTERM. Its words go to files beside the policy, and
    are shown where it does not start.
    """

    def __init__(
        self,
        policy_path: Path,
        *,
        host: Front = "serve",
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        ulimit: str | None = None,
    ) -> None:
        """ulimit: what the shell command of this name is given for the process, such as `-n 256`."""
        self.ulimit = ulimit
        self.policy_path = policy_path
        self.host = host
        self.port = free_port()
        self.web_port = free_port()
        self.arguments = arguments
        self.environment = {"MITMGATE_TEST_SECRET": SECRET, **(environment or {})}
        self.stdout = policy_path.parent / f"{host}-{self.port}.out"
        self.stderr = policy_path.parent / f"{host}-{self.port}.err"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None, "the gateway is not started"
        return self._process

    @property
    def log(self) -> str:
        """What the process wrote to stderr so far."""
        return self.stderr.read_text(errors="replace")

    @property
    def command(self) -> list[str]:
        """The words that start it."""
        if self.host == "stock":
            words = [str(Path(sys.executable).with_name("mitmdump")), "--mode", "reverse:http://upstream.invalid"]
            words += ["--listen-host", "127.0.0.1", "--listen-port", str(self.port)]
            words += ["--set", f"confdir={self.policy_path.parent}", "-s", str(ROOT / "addons" / "gateway.py")]
            return [*words, "--set", f"mitmgate_policy={self.policy_path}", *self.arguments]
        flags = ["-O"] if self.host == "serve" else []  # as run.sh starts it
        words = [sys.executable, *flags, "-m", "mitmgate", self.host, "--policy", str(self.policy_path)]
        words += ["--listen", f"127.0.0.1:{self.port}", *self.arguments]
        if self.host == "web":
            words += ["--web-port", str(self.web_port), "--web-password", WEB_PASSWORD]
        return words

    def launch(self) -> None:
        """Start the process, and wait for nothing."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "addons"), "PYTHONUNBUFFERED": "1", **self.environment}
        command = self.command
        if self.ulimit is not None:
            command = ["sh", "-c", f'ulimit {self.ulimit} && exec "$@"', "sh", *command]
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self._process = subprocess.Popen(command, stdout=out, stderr=err, env=environment, start_new_session=True)

    def start(self) -> Self:
        """Start the process and return when it accepts requests."""
        self.launch()
        return self.await_start()

    def await_start(self) -> Self:
        """Return when the process accepts requests."""
        try:
            wait_for(self._accepts, f"{self.host} to say that it accepts connections", 3 * PATIENCE)
        except AssertionError as failure:
            words = self.stdout.read_text(errors="replace") + self.log
            self.kill()
            raise AssertionError(f"{failure}\n{words}") from None
        return self

    def _accepts(self) -> bool:
        status = self.process.poll()
        assert status is None, f"{self.host} ended with status {status}"
        said = self.stdout.read_text(errors="replace")
        if self.host == "stock":  # mitmproxy itself listens before it loads a script, and what it accepts is closed
            return "mitmgate is listening on" in said
        return str(self.port) in said or "mitmgate is listening on" in self.log  # where stdout is the audit's

    def stop(self) -> int:
        """End the process by SIGTERM, and return its exit status; what it owed the audit log is then written."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.host} did not end on SIGTERM\n{self.log}") from None

    def kill(self) -> None:
        """End the process, and those that it started, at once."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self._process.wait(PATIENCE)

    def request(self, method: str, target: str, **options: Any) -> Answered:
        """Send a request to the gateway; see `harness_http.request`."""
        return request(self.port, method, target, **options)

    def get(self, target: str, **options: Any) -> Answered:
        """Send a GET."""
        return self.request("GET", target, **options)

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop, and hold its audit events to their schema; a test's own failure is not hidden by that of stopping."""
        if self.process.poll() is None:
            if kind is None:
                self.stop()
            else:
                self.kill()
        self.process.wait(PATIENCE)
        if kind is None:
            assert strange_events(self.policy_path.parent) == []
        else:
            sys.stderr.write(f"--- stderr of {self.host} ---\n{self.log}\n")


def audit_events(path: Path, count: int) -> list[dict[str, Any]]:
    """Wait until the audit file has at least `count` events of requests, and return them; more than that fails."""

    def events() -> list[dict[str, Any]]:
        if not path.exists():
            return []
        lines = path.read_bytes().split(b"\n")[:-1]  # the last piece is empty, or a line still being written
        return [event for line in lines if (event := json.loads(line))["event"] == "request"]

    wait_for(lambda: len(events()) >= count, f"{count} audit events in {path.name}")
    found = events()
    assert len(found) == count, f"{len(found)} events, not {count}"
    return found
