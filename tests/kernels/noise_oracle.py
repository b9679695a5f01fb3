"""The sampler's random bits in Python's own integers."""

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
