"""What the operations should return, computed another way, in float64."""

from itertools import pairwise

import torch
from paged_cases import Paged


def rms_norm_oracle(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide / ((wide**2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5 * weight.double()


def add_rms_norm_oracle(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x.double() + residual.double()
    return rms_norm_oracle(total, weight, eps), total


def layer_norm_oracle(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    total = x.double() if residual is None else x.double() + residual.double()
    centred = total - total.sum(-1, keepdim=True) / x.shape[-1]
    deviation = ((centred**2).sum(-1, keepdim=True) / x.shape[-1] + eps) ** 0.5
    return centred / deviation * weight.double() + bias.double()


def rotary_oracle(
    q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Complex numbers: the pair (x[i], x[i + R/2]) times cos + i sin."""
    cos, sin = cos_sin.double().unsqueeze(1).chunk(2, dim=-1)
    half = cos.shape[-1]

    def turn(x: torch.Tensor) -> torch.Tensor:
        wide = x.double()
        turned = torch.complex(wide[..., :half], wide[..., half : 2 * half]) * torch.complex(cos, sin)
        return torch.cat([turned.real, turned.imag, wide[..., 2 * half :]], dim=-1)

    return turn(q), turn(k)


def silu_and_mul_oracle(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.double().chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def kv_store_oracle(
    k: torch.Tensor, v: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    stored = k_cache.clone(), v_cache.clone()
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            for cache, row in zip(stored, (k[t], v[t]), strict=True):
                cache[slot // cache.shape[1], slot % cache.shape[1]] = row
    return stored


def attend_oracle(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool, window: int = 0
) -> torch.Tensor:
    """One sequence, one query and one head after another; the queries are the last ones."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for t in range(len(q)):
        position = len(k) - len(q) + t
        last = position + 1 if causal else len(k)
        first = max(0, position - window + 1) if window else 0
        for h in range(q.shape[1]):
            scores = torch.exp(k[first:last, h // group] @ q[t, h] * scale)
            out[t, h] = scores @ v[first:last, h // group] / scores.sum()
    return out


def varlen_oracle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    ends = cu_seqlens.tolist()
    parts = [slice(a, b) for a, b in pairwise(ends)]
    return torch.cat([attend_oracle(q[p], k[p], v[p], scale, causal) for p in parts])


def paged_oracle(paged: Paged, q: torch.Tensor, scale: float, window: int, causal: bool) -> torch.Tensor:
    starts = paged.batch.query_starts
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for i, (k, v) in enumerate(paged.tokens):
        rows = slice(starts[i], starts[i + 1])
        if len(k):
            out[rows] = attend_oracle(q[rows], k, v, scale, causal, window)
    return out
