"""How long a step takes: from a card's data sheet, or from coefficients measured on a machine."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepWork:
    """What a step computes: `tokens` of `sequences`; its attention reads the K/V of `context` tokens and
    scores `pairs` of a query and a key."""

    tokens: int
    sequences: int
    context: int
    pairs: float


StepSeconds = Callable[[StepWork], float]


@dataclass(frozen=True)
class ModelShape:
    """`matrix_parameters` are those that every token is multiplied with; dtype 16 bits throughout."""

    matrix_parameters: float
    total_parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def weight_bytes(self) -> float:
        return 2 * self.total_parameters

    @property
    def kv_bytes(self) -> int:
        """K and V of a token."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


LLAMA_8B = ModelShape(7.5e9, 8.03e9, 32, 32, 8, 128)
BGE_M3 = ModelShape(302e6, 568e6, 24, 16, 16, 64)


@dataclass(frozen=True)
class Card:
    """A data sheet and what of it is reached.

    A step takes the longer of moving its bytes and of its arithmetic, and `overhead` seconds of launches and
    host work besides. `bandwidth` bytes/s, `rate` dense bfloat16 operations/s, `memory` bytes.
    """

    memory: float
    bandwidth: float
    rate: float
    overhead: float = 1e-3
    bandwidth_share: float = 0.8
    rate_share: float = 0.55

    def step_seconds(self, shape: ModelShape) -> StepSeconds:
        def seconds(work: StepWork) -> float:
            nbytes = 2 * shape.matrix_parameters + shape.kv_bytes * (work.context + work.tokens)
            attention = 4 * shape.layers * shape.heads * shape.head_dim * work.pairs
            operations = 2 * shape.matrix_parameters * work.tokens + attention
            moving = nbytes / (self.bandwidth * self.bandwidth_share)
            return max(moving, operations / (self.rate * self.rate_share)) + self.overhead

        return seconds


CARDS = {
    "A100-80GB": Card(memory=85.0e9, bandwidth=2.04e12, rate=312e12),
    "H200": Card(memory=150.8e9, bandwidth=4.8e12, rate=989e12),
}
"""NVIDIA's data sheets (SXM); memory as CUDA reports it."""


def linear(a: float, b: float, c: float, d: float) -> StepSeconds:
    """Seconds a step, token, sequence and context token, as `runtime.cost_model` learns them."""
    return lambda work: a + b * work.tokens + c * work.sequences + d * work.context


def encoding(a: float, b: float, c: float, d: float) -> StepSeconds:
    """The same of an encoder: the context that it learns by is the pairs of a text's tokens."""
    return lambda work: a + b * work.tokens + c * work.sequences + d * work.pairs
