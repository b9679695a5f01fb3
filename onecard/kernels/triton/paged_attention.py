"""Paged attention: prompts by tiles of queries, decodes by splits of the keys; both read blocks where they
lie."""

import math

import torch

from onecard.kernels.triton.paged_decode import launch_decode
from onecard.kernels.triton.paged_prefill import launch_prefill


def launch(q, k_cache, v_cache, paged, scale, sliding_window=0, causal=True):
    """Two launches for a mixed batch. Grids depend on shapes only: a captured graph holds for any lengths.

    A decode's one query is its sequence's last token: causal or not, it sees all keys.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    scale_log2 = scale * math.log2(math.e)
    if paged.num_decodes:
        launch_decode(q, k_cache, v_cache, paged, scale_log2, sliding_window, out)
    if paged.num_decodes < paged.seq_lens.numel():
        launch_prefill(q, k_cache, v_cache, paged, scale_log2, sliding_window, causal, out)
    return out
