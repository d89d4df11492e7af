"""mitmproxy commands about decisions: explain one, count them, show only the denied ones, show the policy."""

# mitmproxy's options, addon manager and view are untyped.
# mypy: allow-untyped-calls

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar, cast

from mitmproxy import command, ctx, exceptions, flow
from mitmproxy.addons.view import View

from mitmgate.core.rules import Route
from mitmgate.inspect.annotate import METADATA
from mitmgate.inspect.report import report
from mitmgate.policy.snapshot import Snapshot


def _command[F: Callable[..., object]](name: str) -> Callable[[F], F]:
    """Type the decorator of mitmproxy."""
    return cast(Callable[[F], F], command.command(name))


class GatewayCommands:
    """Commands for mitmweb's command bar and `POST /commands/…`.

    mitmweb's browser has a focus of its own, which mitmproxy does not know: there, name a flow by its id as
    `@<id>`, or by a filter, such as `mitmgate.explain "~comment token-expired"`.
    """

    name: ClassVar[str] = "mitmgate-commands"

    def __init__(self, view: View, policy: Callable[[], Snapshot]) -> None:
        """policy: returns the policy in force, or raises LookupError."""
        self._view = view
        self._policy = policy

    @_command("mitmgate.explain")
    def explain(self, flows: Sequence[flow.Flow]) -> str:
        """Explain the decision on flows: each stage, what it said and why."""
        if not flows:
            raise exceptions.CommandError("no such flow")
        return "\n---\n".join(report(each) for each in flows)

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
