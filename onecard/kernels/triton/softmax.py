"""The step that all attention kernels share: one tile of keys folded into a running softmax."""

import triton
import triton.language as tl


def wide_tile(block_d):
    """Rows and keys of a tile of a 4-byte type, whose products take registers in place of matrix units."""
    return 32 if block_d <= 64 else 16, 32 if block_d <= 128 else 16


@triton.jit
def fold_tile(q, k, v, visible, scale_log2, peak, total, sums):
    """q `[M, D]`, k, v `[N, D]`, visible `[M, N]` or None: all; peak, total `[M]`, sums `[M, D]` float32.

    Milakov 2018. scale_log2 = scale * log2(e) > 0 turns products into units of log2 only where they are
    raised to a power: one fused operation an element. A row that sees nothing keeps peak -inf, total 0.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if visible is not None:
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    base = higher
    if visible is not None:
        base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores * scale_log2 - (base * scale_log2)[:, None])
    shrink = tl.exp2((peak - base) * scale_log2)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return higher, total, sums
