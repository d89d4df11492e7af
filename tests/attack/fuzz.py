"""Generated conversations against a running gateway, with the logs of stock origins as the judge.

A round is a few conversations, one after the other; then the gateway is let come to rest, and all of it is judged. A
round that fails is made smaller while it still fails, and shown. A seed makes the same conversations again, but for the
times in their tokens.
"""

import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.attack.gateways import Attacked, Front, Rig
from tests.attack.generator import Conversation, Expected, Piece, Plan, generate
from tests.attack.judge import Event, violations
from tests.attack.origins import Logged
from tests.attack.wire import Http1, Http2, Partial
from tests.live.harness import Front as Host
from tests.live.harness import mint
from tests.live.harness_upstream import PATIENCE

ROUND = 8
"""Conversations in a round."""
SOON = 0.03
"""Seconds that are waited for an answer to what may get none. Nothing is judged by whether it comes."""
SHRINKING = 90.0
"""Seconds for which smaller rounds are tried."""
TOKEN = re.compile(rb"eyJ[\w.-]{100,}")


class Client:
    """One connection of a conversation while it runs."""

    def __init__(self, attacked: Attacked, plan: Plan) -> None:
        self.plan = plan
        self.connection: Http1 | Http2 = attacked.http2() if plan.http2 else attacked.http1()
        self._pieces = iter(plan.pieces)
        self._written = False

    def write(self) -> None:
        """Write up to the next piece that goes out on its own, and wait for the answers that it waits for."""
        data = b""
        for piece in self._pieces:
            data += piece.data
            if piece.writes:
                self.connection.link.send(data)
                if piece.answers:
                    self._wait(piece.answers)
                return
        self.connection.link.send(data)
        self._written = True

    def _wait(self, count: int) -> list[Partial]:
        """Wait for the answers to the first requests; those that come may be fewer."""
        seconds = PATIENCE if self.plan.valid else SOON
        if isinstance(self.connection, Http1):
            return self.connection.wait(count, [one.method for one in self.plan.expected], seconds)
        streams = range(1, 2 * count, 2)
        if self.plan.valid or self.connection.ping(SOON):
            self.connection.wait(streams, seconds)
        return [self.connection.streams.get(stream, Partial()) for stream in streams]

    def finish(self) -> list[str]:
        """Write what is left, end as planned, and return what is wrong with what came."""
        while not self._written:
            self.write()
        found: list[str] = []
        link, ending = self.connection.link, self.plan.ending
        if ending == "half":
            link.half_close()
            deadline = time.monotonic() + PATIENCE
            while not link.ended and time.monotonic() < deadline:
                link.read(1)
            if not link.ended:
                found.append(f"neither an answer nor an end within {PATIENCE:.0f} s")
        if ending in {"read", "half"}:
            answers = self._wait(len(self.plan.expected))
            found += [flaw for answer in answers for flaw in _foreign(answer, self.plan.user)]
            if self.plan.valid:
                found += _unanswered(self.plan.expected, answers, http2=self.plan.http2)
        link.close(reset=ending == "reset")
        return found


def _foreign(answer: Partial, user: str) -> list[str]:
    """Say what shows that an answer is another request's."""
    saw, request_id, whose = answer.one("x-origin-saw"), answer.one("x-request-id"), answer.one("x-origin-user")
    if saw is not None and saw != request_id:
        return [f"an answer belongs to request {saw}, and was sent for {request_id}"]
    if whose and whose != user:
        return [f"{user} got an answer that was made for {whose}: {answer}"]
    return []


def _unanswered(expected: Sequence[Expected], answers: Sequence[Partial], *, http2: bool) -> list[str]:
    """Say which valid requests were not answered as they must be."""
    for number, one in enumerate(expected):
        answer = answers[number] if number < len(answers) else Partial()
        if one.status and (answer.status, answer.complete) != (one.status, True):
            return [f"valid request {number + 1} ({one.method} {one.target}) was answered by {answer}"]
        if not http2 and (not one.status or (answer.one("connection") or "").lower() == "close"):
            return []  # the connection may have ended with it
    return []


def converse(attacked: Attacked, conversation: Conversation) -> list[str]:
    """Hold a conversation, and return what clients found wrong."""
    clients = [Client(attacked, plan) for plan in conversation.plans]
    for number in conversation.order:
        clients[number].write()
    return [f"{flaw} (conversation {conversation.seed})" for client in clients for flaw in client.finish()]


def play(attacked: Attacked, conversations: Sequence[Conversation], count: Counter[str] | None = None) -> list[str]:
    """Hold a round of conversations, and return everything that is wrong."""
    found = [flaw for one in conversations for flaw in converse(attacked, one)]
    try:
        events, logged = attacked.settle()
    except AssertionError as failure:
        return [*found, str(failure)]
    found += violations(events, logged)
    found += _bodies(conversations, logged)
    log = attacked.log_since()
    if (at := log.find("Traceback")) >= 0:
        found.append(f"the gateway failed: {log[max(0, at - 300) : at + 3000]}")
    if count is not None:
        count.update(_counted(conversations, events, logged))
    return found


def _bodies(conversations: Sequence[Conversation], logged: Sequence[Logged]) -> list[str]:
    """Compare the bodies of valid requests with what the origin read."""
    plans = [plan for conversation in conversations for plan in conversation.plans if plan.valid]
    sent = {one.target: one.sha256 for plan in plans for one in plan.expected if one.status}
    return [
        f"an origin read another body than was sent: {one}"
        for one in logged
        if one.sha256 is not None and one.sha256 != sent.get(one.url, one.sha256)
    ]


def _counted(
    conversations: Sequence[Conversation], events: Sequence[Event], logged: Sequence[Logged]
) -> dict[str, int]:
    plans = [plan for conversation in conversations for plan in conversation.plans]
    return {
        "conversations": len(conversations),
        "connections": len(plans),
        "connections all valid": sum(plan.valid for plan in plans),
        "audit events": len(events),
        "admitted": sum(event["decision"] == "admit" for event in events),
        "requests logged by origins": len(logged),
        **Counter(event["outcome"] for event in events),
    }


def smaller(conversations: Sequence[Conversation], fails: Callable[[list[Conversation]], bool]) -> list[Conversation]:
    """Leave out pieces that a failure does not need: halves of them all first, single ones last."""
    deadline = time.monotonic() + SHRINKING
    kept = [
        (number, place, piece)
        for number, conversation in enumerate(conversations)
        for place, plan in enumerate(conversation.plans)
        for piece in plan.pieces
    ]
    size = len(kept) // 2
    while size:
        at = 0
        while at < len(kept) and time.monotonic() < deadline:
            rest = kept[:at] + kept[at + size :]
            if rest and fails(_of_pieces(conversations, rest)):
                kept = rest
            else:
                at += size
        size //= 2
    return _of_pieces(conversations, kept)


def _of_pieces(conversations: Sequence[Conversation], kept: Sequence[tuple[int, int, Piece]]) -> list[Conversation]:
    """Make conversations of some of their pieces. A connection that lost one is no longer valid."""
    made = []
    for number, conversation in enumerate(conversations):
        pieces = {
            place: [piece for one, other, piece in kept if (one, other) == (number, place)]
            for place in range(len(conversation.plans))
        }
        places = [place for place, left in pieces.items() if left]
        plans = []
        for place in places:
            plan = conversation.plans[place]
            whole = len(pieces[place]) == len(plan.pieces)
            plans.append(replace(plan, pieces=pieces[place], valid=plan.valid and whole))
        order = [places.index(place) for place in conversation.order if place in places]
        if plans:
            made.append(replace(conversation, plans=plans, order=order))
    return made


def shown(conversations: Sequence[Conversation]) -> str:
    """Write conversations for people: what each connection writes, and in which order."""
    lines = []
    for conversation in conversations:
        lines.append(f"conversation {conversation.seed}; connections write in the order {conversation.order}:")
        for number, plan in enumerate(conversation.plans):
            protocol = "HTTP/2" if plan.http2 else "HTTP/1.1"
            lines.append(f"  connection {number}, {protocol}, {plan.user}:")
            for piece in plan.pieces:
                data = TOKEN.sub(b"(token)", piece.data)
                if data:
                    lines.append(f"    {data[:300]!r}{f' ... of {len(data)} bytes' * (len(data) > 300)}")
                if piece.writes:
                    lines.append(f"    -- written{f', and {piece.answers} answers waited for' * bool(piece.answers)}")
            lines.append(f"    -- ends: {plan.ending}")
    return "\n".join(lines)


class Fuzz:
    """Rounds against one gateway, started anew where it does not come to rest."""

    def __init__(self, rig: Rig, host: Host, front: Front, seed: str) -> None:
        """front: of TLS's, the clients use both."""
        self._rig, self._host, self._front = rig, host, front
        self._seed = seed
        self._tokens = {user: mint(user, lifetime=24 * 3600) for user in ("alice", "bob")}
        self._attacked = rig.gateway(host, front)
        self.count: Counter[str] = Counter()

    def run(self, seconds: float, only: int | None = None) -> str | None:
        """Play rounds for so many seconds, or one. Returns None, or what failed and the smallest round that does."""
        deadline, number = time.monotonic() + seconds, only or 0
        while time.monotonic() < deadline:
            name = f"{self._seed}:{number}"
            tls = self._front != "http1"
            conversations = [generate(f"{name}.{place}", tls, self._tokens) for place in range(ROUND)]
            found = self._play(conversations, self.count)
            if found:
                kept = smaller(conversations, lambda tried: bool(self._play(tried) or self._play(tried)))
                words = [f"round {name} fails:", *found[:10], "", "as small as it got:", shown(kept)]
                return "\n".join([*words, "which finds:", *self._play(kept)[:10]])
            if only is not None:
                return None
            number += 1
        return None

    def _play(self, conversations: Sequence[Conversation], count: Counter[str] | None = None) -> list[str]:
        found = play(self._attacked, conversations, count)
        if found and not self._attacked.rests:
            self._attacked = self._rig.restarted(self._host, self._front)
        return found


def run(hosts: Sequence[Host], seconds: float, seed: str | None, say: Callable[[str], None]) -> bool:
    """Fuzz each host, plain and with TLS, for an equal part of the time. Returns whether nothing failed.

    seed: None for a new one; NUMBER:ROUND plays that round alone.
    """
    name, _, one = (seed or str(random.SystemRandom().randrange(10**9))).partition(":")
    targets: list[tuple[Host, Front]] = [(host, front) for host in hosts for front in ("http1", "http2")]
    passed = True
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory, Rig(Path(directory)) as rig:
        for host, front in targets:
            fuzz = Fuzz(rig, host, front, name)
            failure = fuzz.run(seconds / len(targets), int(one) if one else None)
            counted = ", ".join(f"{number} {what}" for what, number in fuzz.count.items())
            say(f"{host}, {'HTTP/1.1' if front == 'http1' else 'TLS with HTTP/2 and HTTP/1.1'}, seed {name}: {counted}")
            if failure is not None:
                passed = False
                say(f"{failure}\nagain: ./run.sh fuzz --host {host} --seed {failure.split()[1]}")
    return passed
