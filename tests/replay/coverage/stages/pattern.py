"""Denies requests with the field X-Odd."""

from mitmgate.stage import Facts, Options, Reason, Stage, Step


class Pattern(Stage[Options]):
    reasons = (Reason("odd", 403, "Odd"), Reason("never-odd", 403, "Never"))

    def decide(self, facts: Facts) -> Step:
        said = facts.headers.get("X-Odd")
        if said == "raise":
            raise ValueError(said)
        return self.skip() if said is None else self.deny("odd", "This is odd.")
