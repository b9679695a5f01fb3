"""Rotary embedding in place, one token a program: all its heads share one row of angles."""

import torch
import triton
import triton.language as tl


@triton.jit
def _turn(
    x, stride_head, cos, sin, HEADS: tl.constexpr, PAD: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    head = tl.arange(0, PAD)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    first = x + head * stride_head + column
    a = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(first + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(first, (a * cos - b * sin).to(x.dtype.element_ty), mask=inside)
    tl.store(first + HALF, (b * cos + a * sin).to(x.dtype.element_ty), mask=inside)


@triton.jit
def _kernel(
    q,
    k,
    cos_sin,
    stride_q: tl.int64,
    stride_k: tl.int64,
    stride_q_head,
    stride_k_head,
    stride_angle: tl.int64,
    Q_HEADS: tl.constexpr,
    Q_PAD: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_PAD: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    angles = cos_sin + token * stride_angle + column
    cos = tl.load(angles, mask=column < HALF, other=0.0).to(tl.float32)
    sin = tl.load(angles + HALF, mask=column < HALF, other=0.0).to(tl.float32)
    _turn(q + token * stride_q, stride_q_head, cos, sin, Q_HEADS, Q_PAD, HALF, BLOCK)
    _turn(k + token * stride_k, stride_k_head, cos, sin, K_HEADS, K_PAD, HALF, BLOCK)


def launch(q: torch.Tensor, k: torch.Tensor, cos_sin: torch.Tensor) -> None:
    tokens, half = q.shape[0], cos_sin.shape[1] // 2
    if tokens == 0:
        return
    _kernel[(tokens,)](
        q,
        k,
        cos_sin,
        q.stride(0),
        k.stride(0),
        q.stride(1),
        k.stride(1),
        cos_sin.stride(0),
        Q_HEADS=q.shape[1],
        Q_PAD=triton.next_power_of_2(q.shape[1]),
        K_HEADS=k.shape[1],
        K_PAD=triton.next_power_of_2(k.shape[1]),
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
    )
