"""torch's own attention of packed sequences (`torch.nn.attention.varlen`): FlashAttention, hand-tuned."""

import inspect
from collections.abc import Callable
from types import NotImplementedType
from typing import Any

import torch

LARGEST_HEAD = 256


def _find() -> Callable[..., Any] | None:
    """`varlen_attn`, if this torch has it with a scale and windows of its own (2.11 and later)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size"} <= parameters.keys() else None


VARLEN_ATTN = _find()


def takes(q: torch.Tensor) -> bool:
    """16 bits, heads of a multiple of 8 up to 256, Ampere or later, something to do."""
    return (
        VARLEN_ATTN is not None
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= LARGEST_HEAD
        and q.numel() > 0
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    """See `varlen_attention`."""
    assert VARLEN_ATTN is not None
    window = (-1, 0) if causal else (-1, -1)
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    return VARLEN_ATTN(q, k, v, *lengths, scale=scale, window_size=window).contiguous()


def launch(q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor | NotImplementedType:
    """`attend`, if it takes q."""
    return attend(q, *args, **kwargs) if takes(q) else NotImplemented
