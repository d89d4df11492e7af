"""What would have to change for a denied request to be admitted: in the request, or in the policy."""

from mitmgate.core.token import UnverifiedToken, read_token
from mitmgate.core.verdict import Step
from mitmgate.pipeline.exchange import Exchange
from mitmgate.pipeline.stage import Stage
from mitmgate.replay.offline import OfflinePolicy
from mitmgate.replay.traffic import Recorded


class _Case:
    """One denial, and what is known around it."""

    def __init__(self, policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, step: Step) -> None:
        self.policy = policy
        self.exchange = exchange
        self.step = step
        self.token = _token(recorded)

    def place(self, *location: str | int) -> str:
        """Name a member of the policy, with its file and line; "" where the file does not have it."""
        document = self.policy.loaded.document
        if document.at(location) is None:
            return ""
        return f"{self.policy.path}:{document.place(location, key=True)[0]}"

    def member(self, *names: str | int) -> str:
        """Name the place of a member of the route."""
        route = self.exchange.route
        if route is None:
            return ""
        known = [model.name for model in self.policy.loaded.policy.routes]
        return self.place("routes", known.index(route.name), *names)


def _token(recorded: Recorded) -> UnverifiedToken | None:
    """Read what the request's token says, believed or not."""
    if recorded.presented is not None:
        return recorded.presented.token
    scheme, _, token = (recorded.request.headers.one(b"authorization") or b"").partition(b" ")
    read = read_token(token.strip(b" ")) if scheme.lower() in {b"bearer", b"dpop"} else None
    return read if isinstance(read, UnverifiedToken) else None


def advice(policy: OfflinePolicy, recorded: Recorded, exchange: Exchange, step: Step, stage: Stage | None) -> list[str]:
    """Say what would have to be otherwise, one sentence for each way. stage: that has made the step."""
    case = _Case(policy, recorded, exchange, step)
    own = policy.snapshot.own.get(step.stage)
    if own is not None and step.reason.code in own.reasons:
        change = own.change(step.reason) or f"{own.code.use} decides otherwise, or with other options"
        return [f"{change}: {case.place('stages', own.name)}"]
    return [] if stage is None else [line for line in stage.change(case) if line]
