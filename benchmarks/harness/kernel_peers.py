"""What torch itself has for the operations that `kernels.py` times."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from onecard.kernels.torch_varlen import VARLEN_ATTN

Call = Callable[[], object]


def rms_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, gain.shape, gain, 1e-5)


def add_rms_norm(x: torch.Tensor, y: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x + y, gain.shape, gain, 1e-5)


def layer_norm(x: torch.Tensor, y: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x + y, gain.shape, gain, gain, 1e-5)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def sample(logits: torch.Tensor) -> torch.Tensor:
    """By exponential clocks: without reading anything back, unlike `multinomial`."""
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_()).argmax(-1)


def of_decodes(q: torch.Tensor, kv_heads: int, sequences: int, length: int) -> dict[str, Call]:
    """torch on K and V that lie together already, all equally long: no blocks to follow, nothing ragged."""
    size = (2, sequences, kv_heads, length, q.shape[2])
    k, v = torch.randn(size, device=q.device, dtype=q.dtype)
    return {"sdpa": partial(F.scaled_dot_product_attention, q.unsqueeze(2), k, v, enable_gqa=True)}


def of_prompt(q: torch.Tensor, kv_heads: int) -> dict[str, Call]:
    """torch on a fresh prompt's own K and V."""
    queries = len(q)
    k, v = torch.randn(2, queries, kv_heads, q.shape[2], device=q.device).to(q.dtype)
    heads = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
    sdpa: Call = partial(F.scaled_dot_product_attention, *heads, is_causal=True, enable_gqa=True)
    if VARLEN_ATTN is None or q.device.type != "cuda":
        return {"sdpa": sdpa}
    ends = torch.tensor([0, queries], dtype=torch.int32, device=q.device)
    grouped = {"enable_gqa": True}
    if "enable_gqa" not in inspect.signature(VARLEN_ATTN).parameters:
        k, v = (x.repeat_interleave(q.shape[1] // kv_heads, dim=1) for x in (k, v))
        grouped = {}
    own: Call = partial(VARLEN_ATTN, q, k, v, ends, ends, queries, queries, window_size=(-1, 0), **grouped)
    return {"sdpa": sdpa, "varlen_attn": own}
