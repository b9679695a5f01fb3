"""How many tokens of a step fit the time that an engine is given for it."""

from onecard.engines.runtime.cost_model import CostModel, StepShape


class StepBudget:
    """One an engine, on the device loop's thread: learns from the engine's steps, and sizes the next one."""

    def __init__(self) -> None:
        self.cost = CostModel()

    def observe(self, shape: StepShape, seconds: float) -> None:
        self.cost.observe(shape, seconds)

    def tokens(self, seconds: float | None, beside: StepShape, least: int) -> int | None:
        """Prompt tokens that fit a step of `seconds` beside what runs anyway; never fewer than `least`, so
        that every step gets on. None: no bound, or nothing is known yet."""
        if seconds is None:
            return None
        fitting = self.cost.tokens_within(seconds, beside)
        return None if fitting is None else max(fitting, least)
