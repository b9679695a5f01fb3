"""The sampler in Python's own integers and floats, one token after another."""

import math

import torch

MASK_64 = (1 << 64) - 1
MASK_32 = (1 << 32) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
    return x ^ (x >> 31)


def step_key(seed: int, step: int) -> int:
    stream = splitmix64((seed + GOLDEN) & MASK_64)
    return splitmix64((stream + (step + 1) * GOLDEN) & MASK_64)


def lowbias32(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK_32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK_32
    return x ^ (x >> 16)


def noise_bits(seed: int, step: int, token: int) -> int:
    """31 bits."""
    key = step_key(seed, step)
    return lowbias32((token * (key >> 32 | 1) + key) & MASK_32) & 0x7FFFFFFF


def sample_oracle(logits: torch.Tensor, *knobs: torch.Tensor) -> torch.Tensor:
    rows = zip(*(x.tolist() for x in (logits, *knobs)), strict=True)
    return torch.tensor([sample_row(*row) for row in rows], device=logits.device)


def sample_row(
    logits: list[float], temperature: float, k: int, p: float, min_p: float, seed: int, step: int
) -> int:
    if temperature == 0:
        return logits.index(max(logits))
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    if k:
        kth = sorted(weights, reverse=True)[min(k, len(weights)) - 1]
        weights = [w if w >= kth else 0.0 for w in weights]
    if p < 1:
        total, running = sum(weights), 0.0
        for last in sorted(weights, reverse=True):
            running += last
            if running >= p * total:
                break
        weights = [w if w >= last else 0.0 for w in weights]
    # exponential clocks: the token that rings first, each as often as its weight says
    rings = {t: exponential(seed, step, t) / w for t, w in enumerate(weights) if w > 0 and w >= min_p}
    return min(rings, key=lambda token: rings[token])


def exponential(seed: int, step: int, token: int) -> float:
    return -math.log1p(-(noise_bits(seed, step, token) + 0.5) / 2**31)
