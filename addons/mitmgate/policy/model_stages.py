"""The `stages` of a policy: the operator's own ones, by name. What each takes beside these members, it declares."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict

from mitmgate.policy.model_shared import Mode
from mitmgate.policy.scalars import Duration, Name, Text, duration, wrong
from mitmgate.policy.section import Section


def _use(text: str) -> str:
    file, colon, name = text.rpartition(":")
    if colon and not (file.endswith(".py") and name.isidentifier()):
        raise wrong("must name a class in a file", "write stages/bot_guard.py:BotGuard")
    if not colon and (text.endswith(".py") or "/" in text):
        raise wrong("must name a class in the file", f"write {text}:CLASS", unquoted="must name a class in the file")
    return str(text)


class OwnStage(Section):
    """A stage of the operator's own, loaded once at start; its other members are those that its class declares."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="allow", frozen=True)

    use: Annotated[Text, AfterValidator(_use)]
    """FILE.py:CLASS, relative to the policy, or the name of an entry point `mitmgate.stages` that is installed."""
    after: Name
    """The stage that it comes after: one of the gateway's, from hygiene to rate-limit, or another of these."""
    mode: Mode = "enforce"
    """report: record what it would have denied."""
    timeout: Duration = duration("1s", "How long it may take for a request (seconds), which is denied beyond that.")
    slow: Duration = duration("10ms", "How long it may take for a request (seconds) without a warning in the log.")

    @property
    def given(self) -> dict[str, Any]:
        """What the policy says beside the members of every entry."""
        return dict(self.model_extra or {})
