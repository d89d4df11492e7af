"""mitmproxy commands about decisions: explain one, decide it again, count them, show them, reload, reset."""

# mitmproxy's options, addon manager and view are untyped.
# mypy: allow-untyped-calls

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

from mitmproxy import command, ctx, exceptions, flow
from mitmproxy.addons.view import View
from mitmproxy.http import HTTPFlow

from mitmgate.audit.event import operator_acted
from mitmgate.chain import Gateway
from mitmgate.core.rules import Route
from mitmgate.inspect.annotate import METADATA
from mitmgate.inspect.report import report
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.snapshot import Snapshot
from mitmgate.stores.memory import MemoryStore
from mitmgate.usage import UserError

logger = logging.getLogger(__name__)

CHOSEN: Sequence[flow.Flow] = ()
"""Stands for no argument: the flow that a person has chosen. A filter that finds nothing is an empty list."""


def _command[F: Callable[..., object]](name: str) -> Callable[[F], F]:
    """Type the decorator of mitmproxy."""
    return cast(Callable[[F], F], command.command(name))


class GatewayCommands:
    """Commands for mitmweb's command bar and `POST /commands/…`.

    A flow is named as `@focus`, which in mitmweb is the one that was shown last, as `@<id>`, or by a filter, such as
    `mitmgate.explain "~comment token-expired"`. Without a name it is `@focus`.
    """

    name: ClassVar[str] = "mitmgate-commands"

    def __init__(self, view: View, policy: Callable[[], Snapshot], gateway: Gateway | None = None) -> None:
        """policy: returns the policy in force, or raises LookupError. gateway: what decides here."""
        self._view = view
        self._policy = policy
        self._gateway = gateway
        self._reloads: set[asyncio.Task[bool]] = set()

    @_command("mitmgate.explain")
    def explain(self, flows: Sequence[flow.Flow] = CHOSEN) -> str:
        """Explain the decision on flows: each stage, what it said and why."""
        return "\n---\n".join(report(each) for each in self._named(flows))

    @_command("mitmgate.decide")
    def decide(self, flows: Sequence[flow.Flow] = CHOSEN) -> str:
        """Decide again on flows, as they are after an edit, by the policy in force. Nothing is sent, nothing spent."""
        from mitmgate.inspect.again import decide_again  # noqa: PLC0415 - what nobody asks for is not loaded

        loaded, snapshot = self._decides_by()
        try:
            return "\n---\n".join(decide_again(each, loaded, snapshot).text for each in self._requests(flows))
        except UserError as error:
            raise exceptions.CommandError(str(error)) from error

    @_command("mitmgate.case")
    def case(self, flows: Sequence[flow.Flow] = CHOSEN) -> str:
        """Write flows as cases for pytest, with what is decided on them now."""
        from mitmgate.inspect.again import as_test_case  # noqa: PLC0415 - as above

        loaded, snapshot = self._decides_by()
        try:
            return "\n\n\n".join(as_test_case(each, loaded, snapshot) for each in self._requests(flows))
        except UserError as error:
            raise exceptions.CommandError(str(error)) from error

    @_command("mitmgate.reload")
    def reload(self) -> str:
        """Read the policy file again."""
        task = asyncio.get_running_loop().create_task(self._running().reload("mitmweb"), name="reload")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return "the policy file is read again; mitmgate.policy shows what is in force, and the log why one is refused"

    @_command("mitmgate.reset.circuits")
    def reset_circuits(self) -> str:
        """Close every circuit."""
        breaker = self._running().breaker
        closed = [] if breaker is None else breaker.reset()
        logger.warning("circuits were reset in mitmweb: %s", ", ".join(closed) or "none was open")
        self._record("circuits-reset", ", ".join(closed))
        return f"closed: {', '.join(closed)}" if closed else "no circuit was open"

    @_command("mitmgate.reset.limits")
    def reset_limits(self) -> str:
        """Forget what limits have counted in this process's memory."""
        services = self._running().services
        if services is None or not isinstance(services.store, MemoryStore):
            raise exceptions.CommandError("the limits are counted in Redis, for other gateways too: reset them there")
        count = services.store.clear()
        logger.warning("limits were reset in mitmweb: %d keys", count)
        self._record("limits-reset", f"{count} keys")
        return f"forgotten: what {count} keys had spent"

    def _record(self, act: str, what: str) -> None:
        services = self._running().services
        if services is not None:
            services.trail.emit(operator_acted(time.time(), act, "mitmweb", what))

    def _named(self, flows: Sequence[flow.Flow]) -> Sequence[flow.Flow]:
        chosen = self._view.focus.flow
        named = flows if flows is not CHOSEN else [] if chosen is None else [chosen]
        if not named:
            raise exceptions.CommandError("no such flow")
        return named

    def _requests(self, flows: Sequence[flow.Flow]) -> list[HTTPFlow]:
        named = [each for each in self._named(flows) if isinstance(each, HTTPFlow)]
        if not named:
            raise exceptions.CommandError("no HTTP request: the gateway decides on nothing else")
        return named

    def _running(self) -> Gateway:
        if self._gateway is None or self._gateway.policy.source is None:
            raise exceptions.CommandError("no policy is in force")
        return self._gateway

    def _decides_by(self) -> tuple[Loaded, Snapshot]:
        source = self._running().policy.source
        if source is None:
            raise exceptions.CommandError("no policy is in force")
        return source.loaded, source.snapshot

    @_command("mitmgate.denied")
    def denied(self, reason: str = "") -> str:
        """Show only denied requests, of one reason if it is given. `mitmgate.all` shows all again."""
        if reason and not re.fullmatch(r"[a-z-]+", reason):
            raise exceptions.CommandError(f"{reason!r} is no reason code; they look like token-expired")
        expression = f'~comment "^DENY [0-9]+ {reason} "' if reason else '~comment "^DENY "'
        ctx.options.view_filter = expression
        return f"{len(self._view)} of {self._view.store_count()} flows: {expression}"

    @_command("mitmgate.all")
    def all(self) -> str:
        """Show every flow again."""
        ctx.options.view_filter = None
        return f"{len(self._view)} flows"

    @_command("mitmgate.stats")
    def stats(self) -> str:
        """Count the decisions on the flows that are kept, by what was decided and why."""
        counts: Counter[tuple[str, str]] = Counter()
        for each in self._view.resolve("@all"):
            verdict = each.metadata.get(METADATA)
            if isinstance(verdict, dict):
                failure = verdict.get("failure")
                counts["fail" if failure else str(verdict.get("decision")), str(failure or verdict.get("reason"))] += 1
        rows = [f"{count:>7}  {decision:<6}  {reason}" for (decision, reason), count in counts.most_common()]
        return "\n".join([f"{counts.total():>7}  decisions on {self._view.store_count()} flows kept", *rows])

    @_command("mitmgate.policy")
    def policy(self) -> str:
        """Show the policy in force: its file, its digest, its mode and its routes."""
        try:
            snapshot = self._policy()
        except LookupError as error:
            raise exceptions.CommandError(str(error)) from error
        lines = [f"{snapshot.path}  {snapshot.digest}  mode {snapshot.mode}"]
        for route in snapshot.routes.routes:
            methods = ",".join(sorted(route.methods)) or "any method"
            hosts = ",".join(route.hosts) or "any host"
            path = route.path if route.exact else f"{route.path.rstrip('/')}/…"
            who = "public" if route.issuers is None else _accepted(route)
            lines.append(f"{route.name}: {methods} {hosts} {path} → {route.upstream.name} ({who}, {route.mode})")
        return "\n".join(lines)


def _accepted(route: Route) -> str:
    """Say what a route takes that is not public."""
    kinds = [f"issuers {','.join(route.issuers or ())}" if kind == "jwt" else kind for kind in route.credentials]
    return (" and " if route.every else " or ").join(kinds)
