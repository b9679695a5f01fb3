"""How large a step may be: what fits the time that an engine is given for it, and the memory that is left
after larger ones have found none."""

import logging
from dataclasses import dataclass

from onecard.engines.runtime.cost_model import CostModel, StepShape

BRIEF_STEP_SECONDS = 0.1
"""About what a step of a warm-up may take where others are to get on meanwhile."""


@dataclass(frozen=True)
class TextTime:
    """What of a step's time is left for texts, and what they take of it; all in seconds. `per_pair`: for each
    pair of a text's tokens, since attention reads every token for every other."""

    seconds: float
    per_text: float
    per_token: float
    per_pair: float

    def of(self, length: int) -> float:
        """A text of `length` tokens."""
        return self.per_text + length * (self.per_token + length * self.per_pair)


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

    def texts(self, seconds: float | None) -> TextTime | None:
        """What texts may take of a step of `seconds`. None: no bound, or nothing is known yet."""
        if seconds is None or self.cost.coefficients is None:
            return None
        per_step, per_token, per_text, per_pair = self.cost.coefficients
        known = per_token + per_pair > 0
        return TextTime(seconds - per_step, per_text, per_token, per_pair) if known else None


logger = logging.getLogger(__name__)


class StepLimit:
    """One an engine. Halves when a step runs out of memory; grows by an eighth with every step that uses at
    least half of it and succeeds, until it bounds nothing any more."""

    def __init__(self, name: str):
        self.tokens: int | None = None
        """Of the next step at most; None: no bound beside the engine's own."""
        self._name = name
        self._lowest_told: int | None = None

    def shrink(self, num_tokens: int) -> None:
        """A step of so many tokens found no memory."""
        self.tokens = max(1, min(num_tokens, self.tokens or num_tokens) // 2)
        if self._lowest_told is None or self.tokens < self._lowest_told:
            self._lowest_told = self.tokens
            logger.warning(
                "%s is out of memory in a step of %d tokens: its steps have at most %d until there is more",
                self._name,
                num_tokens,
                self.tokens,
            )

    def grow(self, num_tokens: int, most: int) -> None:
        """A step of so many tokens has succeeded; the engine's own bound is `most`."""
        if self.tokens is None or 2 * num_tokens < min(self.tokens, most):
            return
        self.tokens += max(1, self.tokens // 8)
        if self.tokens >= most:
            self.tokens = self._lowest_told = None
            logger.info("%s has memory for steps of %d tokens again", self._name, most)
