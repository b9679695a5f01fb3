"""K and V of one token a program, to the slot the scheduler gave it."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["slots"])
def _kernel(
    k,
    v,
    k_cache,
    v_cache,
    slots,
    stride_k: tl.int64,
    stride_v: tl.int64,
    stride_block: tl.int64,
    block_size,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        column = tl.arange(0, BLOCK)
        inside = column < WIDTH
        # 64 bits: an arena has more than 2^31 elements
        target = (slot // block_size) * stride_block + (slot % block_size) * WIDTH + column
        tl.store(k_cache + target, tl.load(k + token * stride_k + column, mask=inside), mask=inside)
        tl.store(v_cache + target, tl.load(v + token * stride_v + column, mask=inside), mask=inside)


def launch(k, v, k_cache, v_cache, slot_mapping):
    tokens, heads, dim = k.shape
    if tokens == 0:
        return
    width = heads * dim
    k, v = (x if x.stride()[1:] == (dim, 1) else x.contiguous() for x in (k, v))
    _kernel[(tokens,)](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping,
        k.stride(0),
        v.stride(0),
        k_cache.stride(0),
        k_cache.shape[1],
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4 if width >= 512 else 1,
    )
