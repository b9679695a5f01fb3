"""Rotary embedding on the way to the cache, one token a program: k is read once and not written back."""

import triton
import triton.language as tl


@triton.jit
def _turn(
    x,
    stride_x_head,
    out,
    stride_out_head,
    cos,
    sin,
    HEADS: tl.constexpr,
    PAD: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn the first 2 * HALF numbers of each head of x into out, which may be x."""
    head = tl.arange(0, PAD)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    first = head * stride_x_head + column
    a = tl.load(x + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x + first + HALF, mask=inside, other=0.0).to(tl.float32)
    target = out + head * stride_out_head + column
    tl.store(target, (a * cos - b * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (b * cos + a * sin).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _copy(
    x,
    stride_x_head,
    out,
    FIRST: tl.constexpr,
    HEADS: tl.constexpr,
    PAD: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dimensions FIRST .. DIM of each head."""
    head = tl.arange(0, PAD)[:, None]
    column = FIRST + tl.arange(0, BLOCK)[None, :]
    inside = (head < HEADS) & (column < DIM)
    values = tl.load(x + head * stride_x_head + column, mask=inside)
    tl.store(out + head * DIM + column, values, mask=inside)


@triton.jit(do_not_specialize=["slots"])
def _kernel(
    q,
    k,
    v,
    cos_sin,
    k_cache,
    v_cache,
    slots,
    stride_q: tl.int64,
    stride_k: tl.int64,
    stride_v: tl.int64,
    stride_q_head,
    stride_k_head,
    stride_v_head,
    stride_angle: tl.int64,
    stride_block: tl.int64,
    block_size,
    Q_HEADS: tl.constexpr,
    Q_PAD: tl.constexpr,
    K_HEADS: tl.constexpr,
    K_PAD: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    TAIL_PAD: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    angles = cos_sin + token * stride_angle + column
    cos = tl.load(angles, mask=column < HALF, other=0.0).to(tl.float32)
    sin = tl.load(angles + HALF, mask=column < HALF, other=0.0).to(tl.float32)
    queries, keys, values = q + token * stride_q, k + token * stride_k, v + token * stride_v
    _turn(queries, stride_q_head, queries, stride_q_head, cos, sin, Q_HEADS, Q_PAD, HALF, BLOCK)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        # 64 bits: an arena has more than 2^31 elements
        target = (slot // block_size) * stride_block + (slot % block_size) * (K_HEADS * DIM)
        _turn(keys, stride_k_head, k_cache + target, DIM, cos, sin, K_HEADS, K_PAD, HALF, BLOCK)
        if 2 * HALF < DIM:
            _copy(keys, stride_k_head, k_cache + target, 2 * HALF, K_HEADS, K_PAD, DIM, TAIL_PAD)
        _copy(values, stride_v_head, v_cache + target, 0, K_HEADS, K_PAD, DIM, DIM_PAD)


def launch(q, k, v, cos_sin, k_cache, v_cache, paged):
    tokens, q_heads, dim = q.shape
    k_heads, half = k.shape[1], cos_sin.shape[1] // 2
    if tokens == 0:
        return
    _kernel[(tokens,)](
        q,
        k,
        v,
        cos_sin,
        k_cache,
        v_cache,
        paged.slot_mapping,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        q.stride(1),
        k.stride(1),
        v.stride(1),
        cos_sin.stride(0),
        k_cache.stride(0),
        k_cache.shape[1],
        Q_HEADS=q_heads,
        Q_PAD=triton.next_power_of_2(q_heads),
        K_HEADS=k_heads,
        K_PAD=triton.next_power_of_2(k_heads),
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
        DIM=dim,
        DIM_PAD=triton.next_power_of_2(dim),
        TAIL_PAD=triton.next_power_of_2(max(dim - 2 * half, 1)),
    )
