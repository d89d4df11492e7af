"""Why a request was denied: the policy's lines that decided, what was missing or false, what would have to change."""

import logging
import textwrap
from pathlib import PurePath
from typing import Final

from mitmgate.chain import Gateway
from mitmgate.core.verdict import Step
from mitmgate.pipeline.exchange import Exchange

logger = logging.getLogger(__name__)

METADATA_WHY: Final = "mitmgate-why"
"""The member of a flow's metadata that holds the text. It is saved with the flow, beside the verdict."""


class Why:
    """Explains the stage that has denied, or would have."""

    def __init__(self, gateway: Gateway | None = None) -> None:
        """gateway: whose policy and stages decide. None: nothing is explained."""
        self.gateway = gateway

    def __call__(self, exchange: Exchange) -> str:
        """Return lines for people, without a credential; "" where there is nothing to say. Never raises."""
        final = exchange.verdict.final
        steps = [final] if final is not None else [*exchange.verdict.observed]
        try:
            return "\n".join(line for step in steps for line in self._step(exchange, step))
        except Exception:
            logger.exception("a decision can't be explained")
            return ""

    def _step(self, exchange: Exchange, step: Step) -> list[str]:
        from mitmgate.replay.explain import explain_step  # noqa: PLC0415 - no other host needs replay
        from mitmgate.replay.explain_text import stage_lines  # noqa: PLC0415
        from mitmgate.replay.offline import OfflinePolicy  # noqa: PLC0415
        from mitmgate.replay.traffic import Recorded  # noqa: PLC0415

        gateway = self.gateway
        source = None if gateway is None else gateway.policy.source
        if gateway is None or source is None or source.snapshot is not exchange.snapshot:
            return []
        policy = OfflinePolicy(source.loaded, exchange.snapshot, frozenset(), ())
        recorded = Recorded("kept", exchange.now, exchange.request)
        report = explain_step(policy, recorded, exchange, step, gateway.stages)
        text = textwrap.dedent("\n".join(stage_lines(report)[1:]))
        return _by_weight(text.replace(policy.path, PurePath(policy.path).name).splitlines())


def _by_weight(lines: list[str]) -> list[str]:
    """Put first what was false or would have to change, then the policy's lines, last what was read."""
    groups: list[list[str]] = []
    for line in lines:
        if groups and line.startswith(" "):
            groups[-1].append(line)  # goes on
        else:
            groups.append([line])
    order = ("false", "change", "rule", "read")
    groups.sort(key=lambda group: order.index(group[0].split()[0]))
    return [line for group in groups for line in group]
