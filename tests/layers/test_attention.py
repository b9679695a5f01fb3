"""Attention layers over a cache with two block tables, and inside texts, against one query after another."""

from typing import Any

import pytest
import torch

from onecard.engines.layers.attention import EncoderAttention, PagedAttention
from onecard.engines.layers.forward_batch import EncodeBatch, ForwardBatch
from onecard.kernels.paged_attention import PagedBatch

BLOCK_SIZE, HEADS, KV_HEADS, DIM, LAYERS = 4, 6, 2, 16, 3


class Cache:
    """An arena of NaN with blocks handed out at random."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.kv = torch.full((64, LAYERS, 2, BLOCK_SIZE, KV_HEADS, DIM), float("nan"))
        self.free = torch.randperm(64).tolist()

    def paged(self, queries: list[int], lengths: list[int], stored: list[int]) -> PagedBatch:
        """The last `stored` tokens of each sequence have slots; all have blocks."""
        width = max(-(-n // BLOCK_SIZE) for n in lengths)
        tables = [[self.free.pop() for _ in range(width)] for _ in lengths]
        slots = [
            tables[i][p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
            for i, (n, new) in enumerate(zip(lengths, stored, strict=True))
            for p in range(n - new, n)
        ]
        return PagedBatch(
            cu_seqlens_q=torch.tensor([0, *queries]).cumsum(0).int(),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            slot_mapping=torch.tensor(slots, dtype=torch.int64),
            max_seqlen_q=max(queries),
            max_seqlen_k=max(lengths),
            num_decodes=len(queries) if max(queries) == 1 else 0,
        )


def projected(tokens: int) -> Any:
    """q, k, v as views of one projection."""
    return torch.randn(tokens, HEADS + 2 * KV_HEADS, DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """`[T, Hq, D]` over `[S, Hk, D]`; if causal, the queries are the last of the S tokens."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q.double(), k.double()) * DIM**-0.5
    if causal:
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        scores = scores.masked_fill(~seen, float("-inf"))
    return torch.einsum("hts,shd->thd", scores.softmax(-1), v.double()).float()


@pytest.mark.parametrize("layer", [0, 2])
def test_a_decoder_with_cross_attention_reads_both_tables(layer: int) -> None:
    """As Whisper: a prompt whose sound is stored with it, then steps that find the sound in the cache."""
    cache, sounds, texts = Cache(), [11, 6], [5, 3]
    own = PagedAttention(layer, DIM**-0.5)
    other = PagedAttention(layer, DIM**-0.5, table="cross", causal=False)
    cross = cache.paged(texts, sounds, sounds)
    _, sound_k, sound_v = projected(sum(sounds))
    positions = torch.cat([torch.arange(n) for n in texts]).unsqueeze(0)
    ids = positions[0]
    paged = cache.paged(texts, texts, texts)
    batch = ForwardBatch(ids, positions, paged, cache.kv, ids[:0], cross)
    q, k, v = projected(sum(texts))
    got = own.forward(q, k, v, batch), other.forward(q, sound_k, sound_v, batch)
    kept = [
        list(zip(k.split(texts), v.split(texts))),
        list(zip(sound_k.split(sounds), sound_v.split(sounds))),
    ]
    for result, stored, causal in zip(got, kept, (True, False)):
        parts = zip(q.split(texts), stored, strict=True)
        expected = torch.cat([attend(queries, *keys, causal) for queries, keys in parts])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert not cache.kv[:, [i for i in range(LAYERS) if i != layer]].isfinite().any()

    before = cache.kv.clone()
    starts = torch.arange(3, dtype=torch.int32)
    none = torch.empty(0, dtype=torch.int64)
    decode = PagedBatch(starts, cross.seq_lens, cross.block_tables, none, 1, 11, 2)
    q = projected(2)[0]
    result = other.forward(
        q, None, None, ForwardBatch(ids[:2], positions[:, :2], paged, cache.kv, ids[:0], decode)
    )
    expected = torch.cat([attend(q[i : i + 1], *kept[1][i], False) for i in range(2)])
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.kv, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("causal", [False, True])
def test_encoders_may_look_ahead_or_not(causal: bool) -> None:
    lengths = [4, 1, 7]
    q, k, v = torch.randn(12, 9, DIM).split(3, dim=1)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    batch = EncodeBatch(torch.zeros(12).long(), torch.zeros(12).long(), ends, 7)
    got = EncoderAttention(DIM**-0.5, causal).forward(q, k, v, batch).split(lengths)
    for i, parts in enumerate(zip(q.split(lengths), k.split(lengths), v.split(lengths))):
        torch.testing.assert_close(got[i], attend(*parts, causal), atol=1e-5, rtol=1e-5)
