"""Prefill on a CPU: torch's flash kernel, K and V shared by the query heads of a group through stride 0.

A chunk that is not a prompt's first sees two things: all earlier keys, and its own causally. Each is a call
without a mask, and the two are merged by their log-sum-exp (as in split-KV decoding, Dao et al. 2023): no
`[T, T]` mask exists.
"""

import torch

from onecard.kernels.paged_attention.api import visible

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
WINDOW_TILE = 256
"""Query rows that share one mask under a sliding window."""


def attend_chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    window: int,
    causal: bool,
    out: torch.Tensor,
) -> None:
    """q `[Tq, Hq, D]`, if causal the last Tq of k, v `[S, Hk, D]`'s tokens -> out `[Tq, Hq, D]`."""
    queries, length, kv_heads = q.shape[0], k.shape[0], k.shape[1]
    if queries == 0 or length == 0:
        out.zero_()
        return
    group = q.shape[1] // kv_heads
    heads = q.unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
    k, v = (x.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for x in (k, v))
    target = out.unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3)
    if not causal:
        target.copy_(_flash(heads, k, v, scale=scale)[0])
    elif 0 < window < length:
        _windowed(heads, k, v, scale, window, target)
    elif queries == length:
        target.copy_(_flash(heads, k, v, is_causal=True, scale=scale)[0])
    else:
        target.copy_(_later_chunk(heads, k, v, scale))


def _later_chunk(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    queries, earlier = q.shape[2], k.shape[2] - q.shape[2]
    if queries == 1:
        return _flash(q, k, v, scale=scale)[0]
    past, past_lse = _flash(q, k[:, :, :earlier], v[:, :, :earlier], scale=scale)
    own, own_lse = _flash(q, k[:, :, earlier:], v[:, :, earlier:], is_causal=True, scale=scale)
    share = torch.sigmoid(past_lse - own_lse).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, past, share)


def _windowed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int, out: torch.Tensor
) -> None:
    queries, length = q.shape[2], k.shape[2]
    for start in range(0, queries, WINDOW_TILE):
        end = min(start + WINDOW_TILE, queries)
        last = length - queries + end
        first = max(0, length - queries + start - window + 1)
        seen = visible(end - start, last - first, window, q.device)
        keys = slice(first, last)
        rows = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, start:end], k[:, :, keys], v[:, :, keys], attn_mask=seen, scale=scale
        )
        out[:, :, start:end] = rows
