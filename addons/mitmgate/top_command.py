"""`mitmgate top`: the status page at a terminal, for one admin listener or several together.

Theory of operation. A thread reads each listener's stream of events (`/status/stream`, docs/console.md), and keeps what
the last one said and the last denials. The main thread draws a frame from what is kept, four times a second, and reads
keys. Nothing that a listener says is trusted with the terminal: every text is made printable and cut to its line.
"""

import contextlib
import http.client
import json
import os
import select
import shutil
import ssl
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from mitmgate.audit.reading import printable
from mitmgate.usage import UserError

DEFAULT: Final = "http://127.0.0.1:8090"
EVERY: Final = 0.25
"""Seconds between two frames."""
SILENCE: Final = 10.0
"""Seconds without a word from a listener, which says something each second: then it is away."""
AGAIN: Final = 1.0
"""Seconds until a listener that is away is asked again."""
KEPT: Final = 200
"""Denials that are kept of each listener."""
MOST: Final = 32
"""Listeners that can be looked at at once."""
LONGEST: Final = 16 << 20
"""Octets of an event; a longer one is no listener's."""

Row = Mapping[str, Any]

_SIGNS: Final = {"ok": ("●", "green"), "warn": ("▲", "yellow"), "bad": ("✕", "bold red")}
_STATES: Final = {"ready": "ok", "degraded": "warn", "not ready": "bad"}
_CIRCUITS: Final = {"closed": "ok", "half-open": "warn", "open": "bad"}
_KINDS: Final = ("denied", "failed")


@dataclass(slots=True)
class Seen:
    """What is known of one listener. problem: why nothing is; a sentence. events: how many it has told of."""

    address: str
    problem: str = ""
    event: Row | None = None
    point: Row | None = None
    events: int = 0
    denials: tuple[Row, ...] = ()

    def take(self, event: Row) -> None:
        """Take an event: the first of a connection holds all that is kept there.

        Raises what drawing it raises: then it is no event of a listener that this version knows.
        """
        first, points = not event.get("since"), _rows(event, "points")
        denials = (*(() if first else self.denials), *_rows(event, "denials"))[-KEPT:]
        point = points[-1] if points else self.point
        drawn = Seen(self.address, "", event, point, 1, denials)
        for all_seen in ([drawn], [drawn, drawn]):  # all of it, as the highest terminal would
            frame(all_seen, 80, 1000, time.time())
        self.denials, self.point, self.event, self.problem = denials, point, event, ""
        self.events = max(1, len(points)) + (0 if first else self.events)

    @property
    def rates(self) -> dict[str, tuple[str, float]]:
        """Requests a second over the last second, by reason, with what the reason means."""
        rates = {} if self.point is None else self.point.get("rates")
        told = rates.items() if isinstance(rates, dict) else ()
        return {reason: (str(kind), float(value)) for reason, (kind, value) in told}

    def rate(self, *kinds: str) -> float:
        """Requests a second of these kinds; of all, where none is named."""
        return sum(value for kind, value in self.rates.values() if not kinds or kind in kinds)


class Reader(threading.Thread):
    """Reads one listener's events, and asks again when it is away."""

    def __init__(
        self, seen: Seen, token: str | None = None, token_env: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """token: the secret of `admin.token_env`. token_env: the name of the variable that holds it. tls: for https."""
        super().__init__(name=f"top {seen.address}", daemon=True)
        self._tls = tls
        self._seen, self._token, self._token_env = seen, token, token_env
        self._ended = threading.Event()

    def run(self) -> None:
        """Read, until `end`."""
        while not self._ended.is_set():
            try:
                self._read()
                self._seen.problem = "away: it has closed the connection"
            except ssl.SSLError as error:
                self._seen.problem = f"no TLS with it: {(error.reason or str(error)).lower().replace('_', ' ')}"
            except TimeoutError:
                self._seen.problem = f"away: no word for {SILENCE:.0f} s"
            except OSError as error:
                self._seen.problem = f"away: {(error.strerror or str(error)).lower()}"
            except (
                Exception
            ):  # whatever it says, RecursionError included: a frame of before must not stay as if it held
                self._seen.problem = "what answers there is no admin listener of mitmgate"
            self._ended.wait(AGAIN)

    def end(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _read(self) -> None:
        parts = urlsplit(self._seen.address)
        if parts.scheme == "https":
            link: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=SILENCE, context=self._tls
            )
        else:
            link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SILENCE)
        try:
            headers = {"Accept": "text/event-stream"}
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token}"
            link.request("GET", "/status/stream", headers=headers)
            response = link.getresponse()
            if response.status != 200:
                self._refused(response)
                self._ended.wait(4 * AGAIN)
                return
            if not (response.getheader("Content-Type") or "").startswith("text/event-stream"):
                raise ValueError("no stream")
            while not self._ended.is_set():
                line = response.readline(LONGEST)
                if not line:
                    return
                if line.startswith(b"data: "):
                    self._seen.take(json.loads(line[6:]))
        finally:
            link.close()

    def _refused(self, response: http.client.HTTPResponse) -> None:
        told = ""
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            told = str(json.loads(response.read(64 << 10)).get("detail") or "")
        if response.status == 401 and self._token is None:
            self._seen.problem = "wants a token: --token-env NAME"
        elif response.status == 401:
            self._seen.problem = f"does not take the token in {self._token_env}"
        elif response.status in {403, 421, 503}:
            self._seen.problem = f"refuses: {told or response.reason}"
        else:
            self._seen.problem = f"what answers there is no admin listener of mitmgate ({response.status})"


def frame(all_seen: Sequence[Seen], width: int, height: int, now: float, *, paused: bool = False) -> list[Text]:
    """Draw what is known: at most `height` lines of at most `width` columns. now: Unix seconds."""
    several = len(all_seen) > 1
    lines = [_headline(seen, several) for seen in all_seen[: max(1, height - 3)]]
    told = [seen for seen in all_seen if seen.event is not None and not seen.problem]
    most = 3 if height < 40 else 8
    for seen in told:
        found = _rows(seen.event, "concerns")
        where = _where(seen, several)
        lines += [
            _line(
                ("  ", ""),
                _sign(str(one["severity"])),
                (f" {where}".rstrip(), "dim"),
                (f" {one['what']}", "bold"),
                (f"  {one['detail']}", ""),
            )
            for one in found[:most]
        ]
        if len(found) > most:
            lines.append(_line((f"  and {len(found) - most} more", "dim")))
    if told:
        lines += [*_traffic(told), *_latencies(told, several), *_circuits(told, several, most, now)]
        lines += [*_limits(told, several, most, now), *_services(told, several)]
        lines += _denials(told, several, height - 1 - len(lines))
    foot = "paused; p goes on, q quits" if paused else "p pauses, q quits"
    lines = lines[: height - 1]
    lines.append(_line((f"{time.strftime('%H:%M:%S', time.localtime(now))}  {foot}", "dim")))
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _headline(seen: Seen, several: bool) -> Text:
    address = seen.address.removeprefix("http://")
    event = seen.event
    if seen.problem or event is None:
        said = seen.problem or "asked, no word yet"
        return _line(_sign("bad" if seen.problem else "warn"), (f" {address}", "bold"), (f"  {said}", ""))
    status, state = event["status"], str(event["state"])
    bad = any(one["severity"] == "bad" for one in _rows(event, "concerns"))
    sign = "bad" if bad else _STATES.get(state, "warn")
    parts = [_sign(sign), (f" {state.capitalize()}", _SIGNS[sign][1]), (f"  {address}", "bold")]
    if several:
        parts.append((f"  {_number(seen.rate())} requests/s, {_number(seen.rate(*_KINDS))} denied or failed", ""))
        return _line(*parts)
    count = int(status.get("workers") or 1)
    facts = f"up {_span(status['uptime_seconds'])}, {count} process{'es' * (count > 1)}"
    clients = f"{status['connections']} client{'s' * (status['connections'] != 1)}"
    return _line(*parts, (f"  mitmgate {status['version']}, {facts}, {clients}", "dim"))


def _traffic(told: Sequence[Seen]) -> list[Text]:
    reasons: dict[str, tuple[str, float]] = {}
    for seen in told:
        for reason, (kind, value) in seen.rates.items():
            reasons[reason] = kind, reasons.get(reason, (kind, 0.0))[1] + value
    counts = {
        kind: sum(value for one, value in reasons.values() if one == kind) for kind in (*_KINDS, "admitted", "left")
    }
    first = _line(
        ("Requests  ", "bold"),
        (f"{_number(sum(counts.values()))}/s", ""),
        (f"   denied {_number(counts['denied'])}/s", "yellow" if counts["denied"] else ""),
        (f"   failed {_number(counts['failed'])}/s", "bold red" if counts["failed"] else ""),
    )
    wrong = sorted(((value, reason) for reason, (kind, value) in reasons.items() if kind in _KINDS), reverse=True)
    if not wrong:
        return [first]
    return [first, _line((" " * 10 + "  ".join(f"{reason} {_number(value)}" for value, reason in wrong[:6]), ""))]


def _latencies(told: Sequence[Seen], several: bool) -> list[Text]:
    lines = []
    for seen in told if not several else told[:4]:
        latency = {} if seen.point is None else seen.point.get("latency")
        if not isinstance(latency, dict):
            continue
        texts = []
        for key, name in _LATENCIES:
            half, _, most = latency[key]
            texts.append(f"{name} {_seconds(half)}, {_seconds(most)}")
        lines.append(_line(("Latency   ", "bold"), (_where(seen, several), "dim"), ("   ".join(texts), "")))
    return lines


_LATENCIES: Final = (("gateway", "p50, p99: gateway"), ("upstream", "service"), ("whole", "all"))


def _circuits(told: Sequence[Seen], several: bool, most: int, now: float) -> list[Text]:
    rows = []
    for seen in told:
        turned = seen.event.get("turned") if seen.event is not None else None
        for row in seen.event["status"]["circuits"] if seen.event is not None else ():
            turn = turned.get(f"{row['upstream']} {row['endpoint']}") if isinstance(turned, dict) else None
            rows.append((_worst(str(row["state"])), row, turn, _where(seen, several)))
    rows.sort(key=lambda one: one[0])
    lines = []
    for at, (_, row, turn, where) in enumerate(rows[:most]):
        why = ""
        if turn is not None:
            verb = "closed again" if turn["state"] == "closed" else "opened"
            reason = ", ".join(str(one) for one in (turn["why"], turn["cause"]) if one)
            why = f"  {verb} {_ago(turn['time'], now)} ago" + (f": {reason}" if reason and verb == "opened" else "")
        state = str(row["state"] or "not known")
        sign = _CIRCUITS.get(state, "warn")
        lines.append(
            _line(
                ("Circuits  " if not at else "          ", "bold"),
                _sign(sign),
                (f" {state}", _SIGNS[sign][1]),
                (f"  {where}", "dim"),
                (f"{row['upstream']} {row['endpoint']}{why}", ""),
            )
        )
    if len(rows) > most:
        lines.append(_line((f"          and {len(rows) - most} more, none of them worse", "dim")))
    return lines


def _worst(state: str) -> int:
    return ("open", "half-open", "closed").index(state) if state in _CIRCUITS else 1


def _limits(told: Sequence[Seen], several: bool, most: int, now: float) -> list[Text]:
    rows = [(row, _where(seen, several)) for seen in told for row in _rows(seen.event, "limits")]
    rows.sort(key=lambda one: str(one[0]["time"]), reverse=True)
    lines = []
    for at, (row, where) in enumerate(rows[:most]):
        facts = f"{row['limit']} ({row['of']} in {_span(row['window_seconds'])})  {row['who']}"
        lines.append(
            _line(
                ("Limits    " if not at else "          ", "bold"),
                (where, "dim"),
                (f"{facts}  {row['denied']} denied, {_ago(row['time'], now)} ago", ""),
            )
        )
    if len(rows) > most:
        lines.append(_line((f"          and {len(rows) - most} more", "dim")))
    return lines


def _services(told: Sequence[Seen], several: bool) -> list[Text]:
    lines = []
    for seen in told:
        status = {} if seen.event is None else seen.event["status"]
        store = status["store_available"]
        parts = [
            ("Store     ", "bold"),
            (_where(seen, several), "dim"),
            _sign("ok" if store else "bad"),
            (" counts" if store else " away", ""),
        ]
        parts.append(("   Keys ", "bold"))
        for row in status["key_sets"]:
            parts += [_sign("ok" if row["usable"] else "bad"), (f" {row['issuer']}  ", "")]
        parts.append((" Audit ", "bold"))
        for row in status["audit"]:
            failing = row["failing"] or row["dropped"]
            parts += [_sign("bad" if failing else "ok"), (f" {row['sink']}  ", "")]
        parts.append((f" {' '.join(str(one)[:15] for one in status['policy'])}", "dim"))
        lines.append(_line(*parts))
    return lines


def _denials(told: Sequence[Seen], several: bool, room: int) -> list[Text]:
    rows = [(row, _where(seen, several)) for seen in told for row in seen.denials[-max(1, room) :]]
    rows.sort(key=lambda one: str(one[0]["time"]), reverse=True)
    lines = []
    for at, (row, where) in enumerate(rows[: max(0, room)]):
        who = row["user"] or row["client"] or ""
        asked = f"{row['method'] or ''} {row['path'] or ''}".strip()
        lines.append(
            _line(
                ("Denied    " if not at else "          ", "bold"),
                (f"{str(row['time'])[11:19]} ", "dim"),
                (f"{row['status']} {row['reason']}", "bold red" if row["outcome"] == "failed" else "yellow"),
                (f"  {where}", "dim"),
                (f"{asked}  {who}", ""),
            )
        )
    return lines


def _line(*parts: tuple[str, str]) -> Text:
    made = Text(no_wrap=True, end="")
    for text, style in parts:
        made.append(printable(text), style)
    return made


def _sign(kind: str) -> tuple[str, str]:
    return _SIGNS.get(kind, _SIGNS["warn"])


def _where(seen: Seen, several: bool) -> str:
    return f"{urlsplit(seen.address).netloc}  " if several else ""


def _rows(event: Row | None, name: str) -> list[Row]:
    rows = None if event is None else event.get(name)
    return rows if isinstance(rows, list) else []


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def _span(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s"


def _ago(moment: str, now: float) -> str:
    return _span(max(0.0, now - datetime.fromisoformat(moment).timestamp()))


@click.command("top")
@click.argument("addresses", nargs=-1, metavar="[URL]...")
@click.option("--token-env", metavar="NAME", help="The variable that holds the secret of admin.token_env.")
@click.option("--ca", metavar="FILE", help="The authorities of an https:// listener; default: the system's.")
@click.option("--certificate", metavar="FILE", help="The client certificate to show (admin.tls.client_ca).")
@click.option("--key", metavar="FILE", help="Its private key, where the certificate's file does not hold it.")
@click.option("--once", is_flag=True, help="Print one frame and end, as where the output is no terminal.")
def command(
    addresses: Sequence[str],
    token_env: str | None,
    ca: str | None,
    certificate: str | None,
    key: str | None,
    once: bool,
) -> int:
    """Watch gateways: what is wrong, requests and denials, circuits, limits, keys, latencies, the last denials.

    URL: of an admin listener, http://127.0.0.1:8090 by default; several are shown together. Keys: p pauses, q quits.
    With --once the exit status is 1 where a listener did not answer.
    """
    all_seen = [Seen(_address(address)) for address in dict.fromkeys(addresses or [DEFAULT])]
    if len(all_seen) > MOST:
        raise UserError(f"{len(all_seen)} listeners are too many for one terminal: {MOST} at most")
    token = None if token_env is None else os.environ.get(token_env, "").strip()
    if token is not None and not (token and token.isascii() and token.isprintable()):
        raise UserError(f"--token-env {token_env}: the variable {token_env} has no secret in it")
    tls = _tls(ca, certificate, key)
    readers = [Reader(seen, token, token_env, tls) for seen in all_seen]
    for reader in readers:
        reader.start()
    try:
        if once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return _once(all_seen)
        _watch(all_seen)
    finally:
        for reader in readers:
            reader.end()
    return 0


def _tls(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """Make what https:// listeners are spoken to with. Raises UserError for files that are none of that kind."""
    name = ca
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            name = certificate
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: can't be used: {error}") from error
    return context


def _address(text: str) -> str:
    address = (text if "://" in text else f"http://{text}").rstrip("/")
    try:
        parts = urlsplit(address)
        good = parts.scheme in {"http", "https"} and parts.hostname and not parts.path and not parts.query
        good = good and parts.username is None and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        raise UserError(f"{text}: is no address of an admin listener, such as {DEFAULT}")
    return address


def _once(all_seen: Sequence[Seen]) -> int:
    """Print a frame when each listener has told of two seconds, from which there are rates, or can't be asked."""
    end = time.monotonic() + SILENCE
    while time.monotonic() < end and not all(seen.events > 1 or seen.problem for seen in all_seen):
        time.sleep(0.05)
    size = shutil.get_terminal_size((80, 24))
    console = Console(width=size.columns, highlight=False)
    for line in frame(all_seen, size.columns, size.lines, time.time())[:-1]:
        console.print(line, end="\n")
    return 0 if all(seen.event is not None and not seen.problem for seen in all_seen) else 1


def _watch(all_seen: Sequence[Seen]) -> None:
    console, paused, drawn = Console(highlight=False), False, list[Text]()
    with _keys(), Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            if not paused or not drawn:
                drawn = frame(all_seen, console.width, console.height, time.time())
            else:
                drawn[-1] = frame([], console.width, console.height, time.time(), paused=True)[-1]
            live.update(Group(*_separate(drawn)), refresh=True)
            if select.select([sys.stdin], [], [], EVERY)[0]:
                match os.read(sys.stdin.fileno(), 1).lower():
                    case b"q" | b"\x03" | b"":
                        return
                    case b"p":
                        paused = not paused


def _separate(lines: Sequence[Text]) -> list[Text]:
    """Give each line but the last its end: a whole screen must not scroll."""
    made = [line.copy() for line in lines]
    for line in made[:-1]:
        line.end = "\n"
    return made


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Read keys one by one, without showing them."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
