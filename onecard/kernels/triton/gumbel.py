"""The noise of `kernels.gumbel`, bit for bit in its integers."""

import triton
import triton.language as tl


@triton.jit
def _splitmix64(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def step_key(seed, step):
    """See `gumbel.step_keys`."""
    seed, number = seed.to(tl.uint64, bitcast=True), step.to(tl.uint64, bitcast=True) + 1
    return _splitmix64(_splitmix64(seed + 0x9E3779B97F4A7C15) + number * 0x9E3779B97F4A7C15)


@triton.jit
def gumbel(key, token):
    """See `gumbel.gumbel`; log1p(-v) is log(1 - v) corrected for what the difference lost (Kahan)."""
    x = token.to(tl.uint32, bitcast=True) * ((key >> 32).to(tl.uint32) | 1) + key.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = (x ^ (x >> 16)) & 0x7FFFFFFF
    v = x.to(tl.float32) * (2.0**-31 * (1.0 - 2.0**-24)) + 2.0**-32
    rest = 1.0 - v
    lost = 1.0 - rest
    arrival = tl.where(lost > 0.0, -tl.log(rest) * (v / tl.where(lost > 0.0, lost, 1.0)), v)
    return -tl.log(arrival)
