"""The command `check`: errors and warnings of policy files, with their places."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import click

from mitmgate.core.limit import octets
from mitmgate.policy.compiler import digest
from mitmgate.policy.loaded import Loaded
from mitmgate.policy.loader import load
from mitmgate.policy.problem import PolicyError, Problem
from mitmgate.review import Acknowledged, review


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to say of one file. loaded: None where it has errors. acknowledged: warnings that are meant."""

    file: str
    problems: tuple[Problem, ...]
    loaded: Loaded | None
    acknowledged: tuple[Acknowledged, ...] = ()

    def summary(self) -> dict[str, str | int]:
        """Return what a valid policy holds; empty for one with errors."""
        if self.loaded is None:
            return {}
        policy = self.loaded.policy
        return {"routes": len(policy.routes), "upstreams": len(policy.upstreams), "digest": digest(self.loaded)}


def examine(path: str, environ: Mapping[str, str]) -> Report:
    """Load and lint one file."""
    try:
        loaded = load(path, environ)
    except PolicyError as error:
        return Report(path, error.problems, None)
    found = review(loaded)
    return Report(path, found.warnings, loaded, found.acknowledged)


def _as_text(report: Report) -> str:
    lines = [str(problem) for problem in report.problems]
    if report.loaded is not None:
        routes, upstreams, sha = report.summary().values()
        meant = f", {_plural(len(report.acknowledged), 'acknowledged warning')}" if report.acknowledged else ""
        for limit, tiers in _costs(report.loaded).items():
            each = ", ".join(f"{tier} {cost / 1000:,.1f} KB" for tier, cost in tiers.items())
            lines.append(f"{report.file}: rate_limits.{limit}: the most that a key takes in memory: {each}")
        lines.append(f"{report.file}: ok, {_plural(routes, 'route')}, {_plural(upstreams, 'upstream')}, {sha}{meant}")
    return "\n".join(lines)


def _costs(loaded: Loaded) -> dict[str, dict[str, int]]:
    """Return the octets that a key takes in memory at the most, for each limit with tiers, by tier."""
    return {
        name: {str(tier): octets(number, max(limit.numbers.values())) for tier, number in limit.numbers.items()}
        for name, limit in loaded.policy.rate_limits.items()
        if limit.tiers is not None
    }


def _plural(count: object, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _as_json(reports: list[Report]) -> str:
    files = [
        {
            "file": report.file,
            "valid": report.loaded is not None,
            **report.summary(),
            **({} if report.loaded is None else {"octets_of_tiers": _costs(report.loaded)}),
            "problems": [problem.as_dict() for problem in report.problems],
            "acknowledged": [{**problem.as_dict(), "reason": reason} for problem, reason in report.acknowledged],
        }
        for report in reports
    ]
    return json.dumps({"files": files}, indent=2)


@click.command("check")
@click.argument("paths", metavar="POLICY...", nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Exit with 1 where there is any warning.")
@click.option("--format", "style", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def check(context: click.Context, paths: tuple[str, ...], strict: bool, style: str) -> None:
    """Check policy files: errors and warnings with their places.

    Exits with 0; 1 for warnings with --strict; 2 for errors. The environment is read as `serve` would: variables that
    a policy names must be set. A warning that is meant can be acknowledged in the policy, beside the rule, by the code
    that stands behind it in brackets: `acknowledge: {CODE: REASON}`.
    """
    reports = [examine(path, os.environ) for path in paths]
    if style == "json":
        click.echo(_as_json(reports))
    else:
        for report in reports:
            click.echo(_as_text(report))
    if any(report.loaded is None for report in reports):
        context.exit(2)
    context.exit(1 if strict and any(report.problems for report in reports) else 0)
