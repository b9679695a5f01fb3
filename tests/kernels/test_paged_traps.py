"""What goes wrong with paged caches when nobody looks: each trap that the kernels avoid, sprung on
purpose."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from paged_cases import DEVICE, IMPLEMENTATIONS, Paged, build_paged
from torch.utils._python_dispatch import TorchDispatchMode

from onecard.kernels.kv_store import kv_store
from onecard.kernels.paged_attention import PagedBatch, decode_splits, paged_attention
from onecard.kernels.rotary_kv_store import rotary_kv_store

FAR = 2**31
"""The first element that 32 bits can't address."""


class LargestAllocation(TorchDispatchMode):
    """Records the bytes of the largest tensor made while it is on; views of what existed cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {a.untyped_storage().data_ptr() for a in flat_tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in flat_tensors(result):
            if tensor.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def flat_tensors(tree: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [x for x in leaves if isinstance(x, torch.Tensor) and x.layout == torch.strided]


@pytest.mark.parametrize("implementation", ["reference", "cpu"] if DEVICE == "cpu" else ["triton"])
@pytest.mark.parametrize(("queries", "lengths"), [([1, 1], [90, 30]), ([40], [90]), ([1, 8], [20, 90])])
@pytest.mark.parametrize("causal", [True, False])
def test_cache_is_neither_copied_nor_expanded(
    implementation: str, queries: list[int], lengths: list[int], causal: bool
) -> None:
    """Nothing as large as a sequence's K and V at the query heads' number, let alone a cache, is made.

    (Triton's interpreter copies all it is given, so on a CPU it is not asked.)
    """
    heads, kv_heads, dim = 4, 1, 64
    paged = build_paged(queries, lengths, kv_heads, dim, num_blocks=4096)
    q = torch.randn(sum(queries), heads, dim, device=DEVICE)
    before = paged.k_cache.data_ptr(), paged.v_cache.data_ptr()
    attend = getattr(paged_attention, f"run_{implementation}")
    with LargestAllocation() as largest:
        attend(q, paged.k_cache, paged.v_cache, paged.batch, 0.125, 0, causal)
    assert (paged.k_cache.data_ptr(), paged.v_cache.data_ptr()) == before
    block = 2 * 2 * 4 * kv_heads * dim * 4
    widest = max(max(lengths) * dim * 4 + block, 3 * q.nbytes + block)
    if implementation == "triton":  # what the splits of the keys come to, whatever the lengths
        widest = max(widest, decode_splits.MAX_SPLITS * q.nbytes)
    assert largest.bytes <= widest


def test_largest_allocation_sees_a_copy() -> None:
    paged = build_paged([1], [3], 1, 16)
    with LargestAllocation() as largest:
        paged.k_cache.contiguous()
    assert largest.bytes >= paged.k_cache.nbytes


def far_away(dtype: torch.dtype) -> tuple[Paged, Callable[[int], int]]:
    """The caches of `build_paged` re-laid so that block b lies at element b * stride, most of them past 2^31.

    The arena is never touched but where blocks are, so the pages in between cost no memory.
    """
    paged = build_paged([1, 3], [6, 5], 2, 16, dtype=dtype, num_blocks=8)
    reach = FAR if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] > 48 << 30 else FAR // 4
    stride = reach + 3 * 16
    arena = torch.empty(8 * stride, dtype=dtype, device=DEVICE)
    shape, strides = paged.k_cache.shape, (stride, *paged.k_cache.stride()[1:])
    k_cache, v_cache = (arena.as_strided(shape, strides, offset) for offset in (0, 4 * 2 * 16))
    k_cache.copy_(paged.k_cache)
    v_cache.copy_(paged.v_cache)
    return Paged(k_cache, v_cache, paged.batch, paged.tokens), lambda block: block * stride


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_addresses_have_64_bits(implementation: str) -> None:
    near = build_paged([1, 3], [6, 5], 2, 16, dtype=torch.float16, num_blocks=8)
    torch.manual_seed(0)
    paged, element = far_away(torch.float16)
    q = torch.randn(4, 4, 16, device=DEVICE).half()
    used = [b for row, n in zip(paged.batch.block_tables, [2, 2], strict=True) for b in row[:n].tolist()]
    assert max(element(b) for b in used) > FAR
    got = getattr(paged_attention, f"run_{implementation}")(
        q, paged.k_cache, paged.v_cache, paged.batch, 0.25
    )
    close = (
        torch.empty_like(near.k_cache).copy_(paged.k_cache),
        torch.empty_like(near.v_cache).copy_(paged.v_cache),
    )
    expected = paged_attention.run_reference(q, *close, paged.batch, 0.25)
    torch.testing.assert_close(got, expected, atol=4e-3, rtol=4e-3)
    k = torch.randn(1, 2, 16, device=DEVICE).half()
    slot = torch.tensor([7 * 4 + 2], device=DEVICE)
    getattr(kv_store, f"run_{implementation}")(k, k * 2, paged.k_cache, paged.v_cache, slot)
    assert torch.equal(paged.k_cache[7, 2], k[0])
    assert torch.equal(paged.v_cache[7, 2], k[0] * 2)
    batch = replace(paged.batch, slot_mapping=slot)
    cos_sin = torch.tensor([[1.0] * 8 + [0.0] * 8], device=DEVICE)
    caches = paged.k_cache, paged.v_cache
    getattr(rotary_kv_store, f"run_{implementation}")(k.clone(), k + 1, k - 1, cos_sin, *caches, batch)
    assert torch.equal(paged.k_cache[7, 2], k[0] + 1)
    assert torch.equal(paged.v_cache[7, 2], k[0] - 1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("window", "causal"), [(0, True), (5, True), (0, False)])
def test_stale_bytes_never_count(implementation: str, window: int, causal: bool) -> None:
    """The answer is the same whether unused slots hold NaN, infinity or zeros."""
    paged = build_paged([1, 1, 3, 9], [5, 18, 7, 9], 2, 16)
    q = torch.randn(14, 4, 16, device=DEVICE)
    run = getattr(paged_attention, f"run_{implementation}")
    stale = paged.k_cache.isnan(), paged.v_cache.isnan()
    results = []
    for junk in (float("nan"), float("inf"), 0.0):
        for cache, unused in zip((paged.k_cache, paged.v_cache), stale, strict=True):
            cache[unused] = junk
        results.append(run(q, paged.k_cache, paged.v_cache, paged.batch, 0.25, window, causal))
    assert results[0].isfinite().all()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_padded_rows_store_nothing_and_read_zeros(implementation: str) -> None:
    paged = build_paged([1, 1, 1], [6, 0, 0], 2, 16)
    assert paged.batch.slot_mapping[1:].tolist() == [-1, -1]
    k = torch.randn(3, 2, 16, device=DEVICE)
    before = paged.k_cache.clone()
    getattr(kv_store, f"run_{implementation}")(k, k, paged.k_cache, paged.v_cache, paged.batch.slot_mapping)
    changed = (paged.k_cache != before) & ~(paged.k_cache.isnan() & before.isnan())
    assert int(changed.flatten(2).any(-1).sum()) == 1
    q = torch.randn(3, 4, 16, device=DEVICE)
    out = getattr(paged_attention, f"run_{implementation}")(
        q, paged.k_cache, paged.v_cache, paged.batch, 0.25
    )
    assert out[0].abs().min() > 0
    assert not out[1:].any()


class HostBlind(PagedBatch):
    """A batch whose lengths can't be read on the host, as while a graph is captured."""

    @property
    def lengths(self) -> list[int]:
        raise AssertionError("a launch read the lengths")

    @property
    def query_starts(self) -> list[int]:
        raise AssertionError("a launch read the query starts")


@pytest.mark.parametrize("causal", [True, False])
def test_triton_launches_know_no_lengths(causal: bool) -> None:
    """The same launch holds for any lengths: a captured graph stays right, nothing is compiled for one."""
    paged = build_paged([1, 1, 4], [9, 21, 11], 2, 16)
    batch = HostBlind(**{name: getattr(paged.batch, name) for name in PagedBatch.__dataclass_fields__})
    q = torch.randn(6, 4, 16, device=DEVICE)
    out = paged_attention.run_triton(q, paged.k_cache, paged.v_cache, batch, 0.25, 0, causal)
    expected = paged_attention.run_reference(q, paged.k_cache, paged.v_cache, paged.batch, 0.25, 0, causal)
    torch.testing.assert_close(out, expected)


@pytest.mark.skipif(DEVICE != "cpu", reason="the plan is the CPU path's")
def test_layers_of_a_step_share_one_plan() -> None:
    paged = build_paged([1, 1], [9, 21], 2, 16)
    q = torch.randn(2, 4, 16)
    other = torch.randn_like(paged.k_cache), torch.randn_like(paged.v_cache)
    arena = torch.stack(other, dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.25)
        (plan,) = paged.batch.plans.values()
        again = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.25)
    assert list(paged.batch.plans.values()) == [plan]
    assert torch.equal(first, again)
    elsewhere = paged_attention(q, arena[:, 0], arena[:, 1], paged.batch, 0.25)
    expected = paged_attention.run_reference(q, *other, paged.batch, 0.25)
    torch.testing.assert_close(elsewhere, expected)


@pytest.mark.skipif(DEVICE != "cpu", reason="the plan is the CPU path's")
def test_layers_of_a_step_share_the_indices_of_their_stores() -> None:
    """Also models with two tables of angles (local and global layers): one plan for each one's rows."""
    paged = build_paged([1, 1, 3], [9, 0, 3], 2, 16)
    positions = torch.tensor([8, 0, 0, 1, 2])
    rows = [torch.rand(9, 16)[positions], torch.rand(9, 16)[positions]]
    for cos_sin in (rows[0], rows[1], rows[0]):
        q, k, v = torch.randn(5, 4, 16), torch.randn(5, 2, 16), torch.randn(5, 2, 16)
        got, expected = ([x.clone() for x in (paged.k_cache, paged.v_cache)] for _ in range(2))
        turned = q.clone()
        rotary_kv_store.run_reference(turned, k.clone(), v, cos_sin, *expected, paged.batch)
        rotary_kv_store(q, k, v, cos_sin, *got, paged.batch)
        for a, b in zip((q, *got), (turned, *expected), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)
    assert len(paged.batch.plans) == 2


def test_later_chunks_equal_the_whole_prompt() -> None:
    """A prompt in chunks, through every path of the CPU's prefill, gives what it gives in one go."""
    paged = build_paged([33], [33], 2, 16)
    q = torch.randn(33, 4, 16, device=DEVICE)
    for window in (0, 7):
        whole = paged_attention(q, paged.k_cache, paged.v_cache, paged.batch, 0.25, window)
        parts = []
        for start, end in ((0, 12), (12, 13), (13, 33)):
            batch = PagedBatch(
                cu_seqlens_q=torch.tensor([0, end - start], dtype=torch.int32, device=DEVICE),
                seq_lens=torch.tensor([end], dtype=torch.int32, device=DEVICE),
                block_tables=paged.batch.block_tables,
                slot_mapping=paged.batch.slot_mapping[start:end],
                max_seqlen_q=end - start,
                max_seqlen_k=end,
                num_decodes=int(end - start == 1),
            )
            parts.append(paged_attention(q[start:end], paged.k_cache, paged.v_cache, batch, 0.25, window))
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
