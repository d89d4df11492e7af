"""A stage that warns, and one that can't."""

from mitmgate.stage import Facts, Options, Reason, Stage, Step


class Warns(Stage[Options]):
    reasons = (Reason("odd", 403, "Odd"),)

    def decide(self, facts: Facts) -> Step:
        return self.skip()

    def warnings(self) -> tuple[str, ...]:
        return ("nobody is denied", "and this is said, too")


class Fails(Warns):
    def warnings(self) -> tuple[str, ...]:
        raise RuntimeError("a secret")
