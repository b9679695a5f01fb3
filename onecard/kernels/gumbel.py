"""Noise that belongs to (seed, step, token): the same integers on every device, in every batch.

A step's 64-bit key is splitmix64 (Steele et al. 2014) of its seed and number; a token's 32 bits are the key's
halves as an affine map of the token, then `lowbias32` (Wellons 2018), a mixer of two xorshift-multiply
rounds. All of it is integer arithmetic that wraps; only the two logarithms at the end round.
"""

import torch

GOLDEN = -0x61C8864680B583EB
"""2^64 / golden ratio as a signed 64-bit integer: splitmix64's stride."""
MIX_1 = -0x40A7B892E31B1A47
MIX_2 = -0x6B2FB644ECCEEE15
LOW_1 = 0x7FEB352D
LOW_2 = -0x7B935975

SPACING = 2.0**-31
NEAR_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1: keeps the uniform number below 1, where the noise would be infinite."""


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64, which torch shifts arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def step_keys(seeds: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """64 bits for step `steps[i]` of the stream `seeds[i]`: seeds, steps `[B]` int64 -> `[B]` int64."""
    return _splitmix64(_splitmix64(seeds + GOLDEN) + (steps + 1) * GOLDEN)


def token_bits(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """31 random bits a token: keys `[N]` int64, tokens `[N, V]` or `[1, V]` -> `[N, V]` int32, none negative.

    Within a step different tokens differ in their 32 bits, of which the highest is dropped.
    """
    # one pass a line, in place: half a megabyte that stays in a processor's cache
    x = tokens.int() * (keys >> 32).int().bitwise_or_(1).unsqueeze(1)
    x.add_(keys.int().unsqueeze(1))
    shifted = torch.empty_like(x)

    def fold(bits: int) -> None:
        torch.bitwise_right_shift(x, bits, out=shifted)
        x.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))

    fold(16)
    x.mul_(LOW_1)
    fold(15)
    x.mul_(LOW_2)
    fold(16)
    return x.bitwise_and_(0x7FFFFFFF)


def gumbel(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise `-log(-log(1 - v))`, v uniform in (0, 1): `[N, V]` float32, always finite.

    Likely winners have a small v, and v has a float's full precision there (2^-32 and up): tokens of
    probability 1e-8 still come up as often as they should.
    """
    uniform = token_bits(keys, tokens).float()
    uniform = torch.add(uniform.new_full((), SPACING / 2), uniform, alpha=SPACING * NEAR_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()
