"""What a subject must do before it is measured: the same few decisions for all, so that the comparison is honest."""

import http.client
import json
from dataclasses import dataclass

from bench import policy
from bench.processes import Process, StartError
from bench.rig import Rig
from bench.subjects import Subject

LIMIT = 5
ECHO = f"{policy.PREFIX}/echo"


@dataclass(frozen=True, slots=True)
class Check:
    """One decision that was asked for, what should have come, and what came."""

    what: str
    wanted: str
    seen: str

    @property
    def passed(self) -> bool:
        """Say whether it came as it should."""
        return self.wanted == self.seen


def ask(port: int, path: str, bearer: str | None, **headers: str) -> tuple[int, bytes]:
    """Make a request; return status and body."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        link.request("GET", path, headers=fields | ({"Authorization": bearer} if bearer else {}))
        response = link.getresponse()
        return response.status, response.read()
    finally:
        link.close()


def check(rig: Rig, subject: Subject) -> list[Check]:
    """Start a subject with a limit of five before a service that tells what it saw, and ask it everything.

    Each request has a principal of its own, so that no other one is limited by it.
    """
    try:
        with rig.running(subject.command(rig.upstream.port, LIMIT)) as process:
            return [*_decisions(process), *_forwarded(process), *_limit(process)]
    except StartError as error:
        return [Check("it starts", "yes", str(error))]


def passes(process: Process) -> list[Check]:
    """Ask one that decides nothing for what it does: let a request through."""
    return [_status(process, "a request passes", 200, policy.PATH, None)]


def _status(process: Process, what: str, wanted: int, path: str, bearer: str | None) -> Check:
    return Check(what, str(wanted), str(ask(process.port, path, bearer)[0]))


def _decisions(process: Process) -> list[Check]:
    foreign = policy.bearer("eve")
    foreign = foreign[:-8] + ("A" * 8 if not foreign.endswith("A" * 8) else "B" * 8)
    return [
        _status(process, "with a token", 200, policy.PATH, policy.bearer("bob")),
        _status(process, "without a token", 401, policy.PATH, None),
        _status(process, "with a wrong signature", 401, policy.PATH, foreign),
        _status(process, "with an expired token", 401, policy.PATH, policy.bearer("carol", lifetime=-3600)),
        _status(process, "without the scope", 403, policy.PATH, policy.bearer("dave", scope="users.write")),
        _status(process, "a path that no route has", 404, "/elsewhere", policy.bearer("erin")),
        _status(process, "a path that only begins like a route", 404, f"{policy.PREFIX}X", policy.bearer("fred")),
    ]


def _forwarded(process: Process) -> list[Check]:
    status, body = ask(process.port, ECHO, policy.bearer("grace"), X_User_ID="admin", X_Debug="1")
    if status != 200:
        return [Check("what the service sees", "200", str(status))]
    seen = json.loads(body)
    fields: dict[str, list[str]] = {}
    for name, value in seen["headers"]:
        fields.setdefault(name.lower(), []).append(value)
    return [
        Check("the service sees the path without its prefix", "GET /echo HTTP/1.1", seen["request"]),
        Check("the service sees X-User-ID, the principal's alone", "['grace']", str(fields.get("x-user-id"))),
        Check("the service sees no Authorization", "None", str(fields.get("authorization"))),
        Check("the service sees no removed header", "None", str(fields.get("x-debug"))),
    ]


def _limit(process: Process) -> list[Check]:
    bearer = policy.bearer("heidi")
    seen = [ask(process.port, policy.PATH, bearer)[0] for _ in range(LIMIT + 1)]
    return [Check(f"the limit of {LIMIT}, then one more", str([200] * LIMIT + [429]), str(seen))]
