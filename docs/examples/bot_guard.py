"""BotGuard: refuse clients by their User-Agent."""

from fnmatch import fnmatchcase

from mitmgate.stage import Facts, Options, Reason, Stage, Step


class BotGuardOptions(Options):
    """What an entry of the policy says."""

    deny: tuple[str, ...] = ()
    """Patterns of User-Agents that are refused, such as "curl/*"; capitals make no difference."""
    anonymous: bool = False
    """Whether a request without User-Agent may pass."""


class BotGuard(Stage[BotGuardOptions]):
    """Refuse what calls itself a bot; tell the service, and limits, what the others call themselves.

    Reads: User-Agent. Denies: 403 bot-refused, 403 agent-missing.
    """

    reasons = (
        Reason("bot-refused", 403, "Automated client refused", "a User-Agent that no pattern of deny matches"),
        Reason("agent-missing", 403, "User-Agent required", "a User-Agent, or anonymous: true"),
    )
    sets = ("X-Agent-Family",)
    keys = ("family",)

    def decide(self, facts: Facts) -> Step:
        """Look at the User-Agent."""
        agent = facts.headers.get("user-agent")
        if agent is None:
            if self.options.anonymous:
                return self.skip()
            return self.deny("agent-missing", "This service wants to know its clients.")
        if any(fnmatchcase(agent.lower(), pattern.lower()) for pattern in self.options.deny):
            return self.deny("bot-refused", "This service is for people.")
        family = "".join(
            character for character in agent.partition("/")[0] if character.isascii() and character.isalnum()
        )
        return self.admit(fields={"X-Agent-Family": family}, keys={"family": family})
