"""Rotary position embedding: the cosines and sines that a model's scaling variant asks for.

Which frequencies heads turn by is decided once, when a model is built (`cos_sin_table`); each token's row is
gathered once a step (`rotary_rows`); the rotation itself is `kernels.rotary`, in every layer.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

RopeType = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]
ROPE_TYPES: tuple[RopeType, ...] = get_args(RopeType)


@dataclass(frozen=True)
class RopeParameters:
    """A model's rotary settings under transformers' names (`rope_parameters` of its config).

    `rotary_dim` is the part of a head that turns (even). `freq_factors` (`rotary_dim / 2` numbers, or none)
    divide the frequencies on top of the variant: llama.cpp's files carry Llama 3's scaling that way.
    `original_max_position_embeddings` is the length of pretraining, which dynamic, yarn, longrope and llama3
    scale from. `sections` (`mrope_section`; they add up to `rotary_dim / 2`): how many of the frequencies, in
    order, are turned by each row of positions.
    """

    rotary_dim: int
    rope_theta: float = 10000.0
    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    freq_factors: tuple[float, ...] = ()
    sections: tuple[int, ...] = ()


def inverse_frequencies(rope: RopeParameters, length: int) -> tuple[torch.Tensor, float]:
    """Frequencies `[rotary_dim / 2]` float32 (radians a position) and the factor on cosines and sines.

    `length` is the longest sequence that will be served. The dynamic and longrope variants change their
    frequencies with the length of the sequence; keys that lie in a cache can't follow, so the frequencies are
    those for `length` and hold for every sequence, as in vLLM. Sequences no longer than the pretraining
    length then differ from transformers only if `length` is beyond it.
    """
    frequencies = _base_frequencies(rope.rotary_dim, rope.rope_theta)
    attention_factor = 1.0
    match rope.rope_type:
        case "linear":
            frequencies = frequencies / rope.factor
        case "dynamic":
            frequencies = _dynamic_ntk(rope, length)
        case "yarn":
            frequencies, attention_factor = _yarn(rope, frequencies), _yarn_attention_factor(rope)
        case "longrope":
            factors = (
                rope.long_factor if length > rope.original_max_position_embeddings else rope.short_factor
            )
            frequencies = frequencies / torch.tensor(factors)
            attention_factor = _longrope_attention_factor(rope)
        case "llama3":
            frequencies = _llama3(rope, frequencies)
    if rope.freq_factors:
        frequencies = frequencies / torch.tensor(rope.freq_factors)
    return frequencies, attention_factor


def cos_sin_table(rope: RopeParameters, length: int) -> torch.Tensor:
    """`[length, rotary_dim]` float32 on the CPU; row p is the cosines, then the sines, of position p."""
    frequencies, attention_factor = inverse_frequencies(rope, length)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1).mul_(attention_factor)


def rotary_rows(table: torch.Tensor, positions: torch.Tensor, sections: tuple[int, ...] = ()) -> torch.Tensor:
    """Each token's cosines and sines `[T, rotary_dim]`: positions `[R, T]` int64 into the table's rows.

    With R > 1 each of the R `sections` of the frequencies takes its angles from its own row of positions
    (M-RoPE, Wang et al. 2024, as in Qwen2-VL). Text has the same place in all rows: one row will do for it.
    """
    count, tokens = positions.shape
    if count == 1:
        return table.index_select(0, positions[0])
    halves = table.index_select(0, positions.flatten()).view(count, tokens, 2, -1)
    parts = halves.split(sections, dim=-1)
    return torch.cat([part[row] for row, part in enumerate(parts)], dim=-1).flatten(1)


def _base_frequencies(rotary_dim: int, theta: float) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)


def _dynamic_ntk(rope: RopeParameters, length: int) -> torch.Tensor:
    """NTK-aware scaling: a larger base for a longer sequence; unchanged up to the pretraining length."""
    dim, pretrained = rope.rotary_dim, rope.original_max_position_embeddings
    stretch = rope.factor * max(length, pretrained) / pretrained - (rope.factor - 1.0)
    return _base_frequencies(dim, rope.rope_theta * stretch ** (dim / (dim - 2)))


def _yarn(rope: RopeParameters, frequencies: torch.Tensor) -> torch.Tensor:
    """YaRN (arXiv 2309.00071): fast dimensions keep their frequency, slow ones are interpolated, a ramp
    between.
    """
    dim = rope.rotary_dim

    def dimension_of(rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.rope_theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = (high - low) or 0.001
    interpolated = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / rope.factor * interpolated + frequencies * (1 - interpolated)


def _yarn_attention_factor(rope: RopeParameters) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def _longrope_attention_factor(rope: RopeParameters) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position_embeddings))


def _llama3(rope: RopeParameters, frequencies: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: waves longer than the pretraining length are slowed by `factor`, short ones kept, a ramp
    between.
    """
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope.factor)
