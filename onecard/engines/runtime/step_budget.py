"""What a step of an engine will take, learnt from the steps that it ran; and how large one may be: what fits
the time that the engine is given for it, and the memory that is left after larger ones have found none.

    seconds = a + b * tokens + c * sequences + d * context          a, b, c, d >= 0

is fitted online by least squares of the relative error with exponential forgetting (recursive least squares
in its information form: decayed normal equations, solved anew for each step; four unknowns cost
microseconds). Three things make it fit for a serving engine:

* What recent steps say nothing about stays as it was: each fit is tied weakly to the one before (a proximal
  term), so an hour of decodes doesn't wash out what a prompt token costs.
* A step more than `OUTLIER` times off its prediction counts as `CLIPPED` times off, unless nothing like it
  was seen before; so one hiccup of the machine moves little. `CHANGE` of them in a row are no hiccup: then
  the machine is taken to be that much slower or faster, and most of the past is forgotten.
* Coefficients that come out negative are fixed at zero, so that more work never seems to take less time.

No clocks and no threads: all of it belongs to the device loop's.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onecard.registry.units import counted

HORIZON = 200
"""Steps after which an observation has 1/e of its weight."""

OUTLIER = 2.0
CLIPPED = 1.25
CHANGE = 5
_FIRST_FIT = 3
_TRUSTED = 8
"""Observations before outliers are looked for."""
_NOVEL = 0.3
"""Leverage above which a step is unlike those seen before."""
_REMEMBERED = 0.02
_TIE = 1e-3


@dataclass(frozen=True)
class StepShape:
    """What a step computes: `tokens` of `sequences`, whose attention reads K/V of `context` tokens in all.

    A language model reads a sequence's K/V once a step. An encoder's texts are read once for each of their
    tokens: their context is their lengths squared.
    """

    tokens: int
    sequences: int
    context: int = 0

    @classmethod
    def of_texts(cls, lengths: Collection[int]) -> "StepShape":
        """A step of an encoder, over texts of so many tokens."""
        return cls(sum(lengths), len(lengths), sum(length**2 for length in lengths))

    def features(self) -> np.ndarray:
        return np.array([1.0, self.tokens, self.sequences, self.context])


class CostModel:
    """One an engine; `observe` every step, then ask."""

    def __init__(self, horizon: int = HORIZON) -> None:
        self._decay = float(np.exp(-1 / horizon))
        self._information = np.zeros((4, 4))
        self._moments = np.zeros(4)
        self._scale = np.zeros(4)
        """The most that was ever known of each coefficient: the unit that it is tied in."""
        self._coefficients = np.zeros(4)
        self._observed = 0
        self._surprises = 0
        """Steps in a row that took too long (positive) or too short (negative) to be believed."""

    @property
    def coefficients(self) -> tuple[float, float, float, float] | None:
        """Seconds a step, token, sequence and context token; None before there is a fit."""
        a, b, c, d = map(float, self._coefficients)
        return (a, b, c, d) if self._observed >= _FIRST_FIT else None

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step of `shape` took `seconds`. Times that aren't positive are ignored."""
        if seconds <= 0:
            return
        features = shape.features()
        if self._observed == 0:
            self._coefficients[:2] = seconds / 2, seconds / 2 / max(shape.tokens, 1)
        believed, scale = self._believe(features, seconds)
        row = features / scale
        self._information = self._decay * self._information + np.outer(row, row)
        self._moments = self._decay * self._moments + row * (believed / scale)
        self._scale = np.maximum(self._scale, self._information.diagonal())
        self._observed += 1
        self._fit()

    def seconds(self, shape: StepShape) -> float | None:
        """What a step of `shape` should take; None while too little is known."""
        if self._observed < _FIRST_FIT:
            return None
        return float(self._coefficients @ shape.features())

    def tokens_within(self, seconds: float, shape: StepShape) -> int | None:
        """How many prompt tokens, of one more sequence, fit a step of `seconds` beside `shape`; at least 0.

        None while that isn't known: also where no prompt was ever seen to cost anything.
        """
        alone = self.seconds(shape)
        _, per_token, per_sequence, per_context = map(float, self._coefficients)
        if alone is None or per_token + per_context <= 0:
            return None
        return max(0, int((seconds - alone - per_sequence) / (per_token + per_context)))

    def _believe(self, features: np.ndarray, seconds: float) -> tuple[float, float]:
        """The seconds to learn from, and those that their error is relative to."""
        predicted = float(self._coefficients @ features)
        if self._observed < _TRUSTED or self._leverage(features / seconds) > _NOVEL:
            return seconds, seconds
        ratio = seconds / predicted if predicted > 0 else np.inf
        if 1 / OUTLIER <= ratio <= OUTLIER:
            self._surprises = 0
            return seconds, predicted
        sign = 1 if ratio > 1 else -1
        self._surprises = self._surprises + sign if self._surprises * sign >= 0 else sign
        if abs(self._surprises) >= CHANGE:
            self._start_over(ratio if predicted > 0 else 1.0)
            return seconds, seconds
        return predicted * (CLIPPED if sign > 0 else 1 / CLIPPED), predicted

    def _start_over(self, ratio: float) -> None:
        """The engine has become `ratio` times slower; what is known becomes a guess of that size."""
        self._surprises = 0
        self._observed = _FIRST_FIT
        self._coefficients *= ratio
        self._information *= _REMEMBERED / ratio**2
        self._scale *= _REMEMBERED / ratio**2
        self._moments = self._information @ self._coefficients

    def _leverage(self, row: np.ndarray) -> float:
        """How much of a fit at this point would rest on this observation alone: 1 for one of its own kind."""
        spread = float(row @ np.linalg.solve(self._tied(), row))
        return spread / (1 + spread)

    def _tied(self) -> np.ndarray:
        return self._information + np.diag(_TIE * self._scale + 1e-30)

    def _fit(self) -> None:
        unit = 1 / np.sqrt(self._scale + 1e-30)
        matrix = self._tied() * np.outer(unit, unit)
        target = (self._moments + _TIE * self._scale * self._coefficients) * unit
        self._coefficients = _non_negative(matrix, target) * unit


def _non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Solves `matrix x = target`, dropping unknowns that come out negative until none does."""
    free = np.arange(len(target))
    solution = np.zeros(len(target))
    while free.size:
        part = np.linalg.solve(matrix[np.ix_(free, free)], target[free])
        if (part >= 0).all():
            solution[free] = part
            break
        free = free[part > 0]
    return solution


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
                "%s is out of memory in a step of %s: its steps have at most %d until there is more",
                self._name,
                counted(num_tokens, "token"),
                self.tokens,
            )

    def grow(self, num_tokens: int, most: int) -> None:
        """A step of so many tokens has succeeded; the engine's own bound is `most`."""
        if self.tokens is None or 2 * num_tokens < min(self.tokens, most):
            return
        self.tokens += max(1, self.tokens // 8)
        if self.tokens >= most:
            self.tokens = self._lowest_told = None
            logger.info("%s has memory for steps of %s again", self._name, counted(most, "token"))
