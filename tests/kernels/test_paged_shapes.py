"""Paged attention at the shapes models have: ragged lengths, shared heads, sizes, windows; beside NaN."""

import pytest
import torch
from paged_cases import DEVICE, IMPLEMENTATIONS, build_paged

from onecard.kernels.paged_attention import paged_attention

KERNELS = [name for name in IMPLEMENTATIONS if name != "reference"]
HEADS = [(1, 1, 64), (4, 2, 80), (6, 2, 96), (7, 1, 128), (16, 1, 64), (2, 2, 256)]
"""Query heads, K/V heads, head size."""


def close_to_reference(
    implementation: str,
    queries: list[int],
    lengths: list[int],
    heads: tuple[int, int, int],
    window: int = 0,
    causal: bool = True,
    dtype: torch.dtype = torch.float32,
) -> None:
    query_heads, kv_heads, dim = heads
    paged = build_paged(queries, lengths, kv_heads, dim, dtype, num_blocks=160)
    q = torch.randn(sum(queries), query_heads, dim, device=DEVICE).to(dtype)
    args = (q, paged.k_cache, paged.v_cache, paged.batch, dim**-0.5, window, causal)
    got = getattr(paged_attention, f"run_{implementation}")(*args)
    tolerance = 2e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(got, paged_attention.run_reference(*args), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decodes_with_one_sequence_a_hundred_times_the_others(
    implementation: str, window: int, heads: tuple[int, int, int]
) -> None:
    close_to_reference(implementation, [1] * 5, [4, 3, 400, 1, 0], heads, window)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("window", [0, 37])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_prompts_with_one_sequence_a_hundred_times_the_others(
    implementation: str, window: int, heads: tuple[int, int, int]
) -> None:
    """Beside decodes; one is a later chunk, one has no keys, one's last tile is a single row."""
    close_to_reference(implementation, [1, 2, 40, 33, 2], [2, 2, 200, 33, 0], heads, window)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("window", [1, 15, 16, 17, 33])
def test_windows_at_the_edges_of_tiles(implementation: str, window: int) -> None:
    close_to_reference(implementation, [1, 20, 50], [50, 20, 83], (2, 1, 16), window)


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("heads", [(4, 2, 64), (7, 1, 128)], ids=str)
def test_in_half_precision(implementation: str, heads: tuple[int, int, int]) -> None:
    close_to_reference(implementation, [1, 1, 20], [200, 2, 130], heads, dtype=torch.float16)


@pytest.mark.parametrize("implementation", KERNELS)
def test_without_a_causal_order_all_keys_are_seen(implementation: str) -> None:
    close_to_reference(implementation, [1, 40, 3], [100, 47, 200], (4, 2, 64), causal=False)
