"""The step that all attention kernels share: one tile of keys folded into a running softmax."""

import triton
import triton.language as tl


@triton.jit
def fold_tile(q, k, v, visible, scale_log2, peak, total, sums):
    """q `[M, D]`, k, v `[N, D]`, visible `[M, N]`; peak, total `[M]`, sums `[M, D]` float32 (Milakov 2018).

    Scores are in units of log2 (scale_log2 = scale * log2(e)). A row that sees nothing keeps peak -inf, total
    0.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
    return higher, total, sums
