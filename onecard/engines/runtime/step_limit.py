"""How large a step may be after larger ones have found no memory."""

import logging

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
