"""Decode on a CPU without a gather and without padding: the sequences' tokens as a sparse matrix.

One row of the matrix is a (sequence, query head), one column a row of `D` numbers in the arena; the entries
of a row are the tokens its query sees. Then QK is a product sampled at the entries
(`torch.sparse.sampled_addmm`), PV a sum of arena rows weighted by them (`embedding_bag`), both ragged,
parallel, and straight from the strided cache; nothing that no sequence owns is ever read. The columns are the
same in every layer, which differ only in where row 0 lies.
"""

import warnings

import torch
import torch.nn.functional as F

from onecard.kernels.paged_attention.metadata import PagedBatch


def can_read_in_place(q: torch.Tensor, cache: torch.Tensor) -> bool:
    """float32, and blocks that are whole rows of D numbers apart."""
    _, _, heads, dim = cache.shape
    packed = cache.stride()[1:] == (heads * dim, dim, 1) and cache.stride(0) % dim == 0
    return packed and q.dtype == cache.dtype == torch.float32


class DecodePlan:
    """What every layer of a step shares: the sparse matrix, and room for scores and weights."""

    def __init__(self, query_heads: int, cache: torch.Tensor, paged: PagedBatch, window: int):
        blocks, block_size, kv_heads, dim = cache.shape
        self.rows_per_block = cache.stride(0) // dim
        self.arena_rows = (blocks - 1) * self.rows_per_block + block_size * kv_heads
        lengths = paged.lengths[: paged.num_decodes]
        seen = [min(n, window) if window > 0 else n for n in lengths]
        rows = self._token_rows(paged, lengths, seen, block_size, kv_heads)
        kv_head = torch.arange(kv_heads).repeat_interleave(query_heads // kv_heads).unsqueeze(1)
        self.columns = torch.empty(rows.numel() * query_heads, dtype=torch.int64)
        self.offsets = torch.zeros(len(seen) * query_heads + 1, dtype=torch.int64)
        torch.cumsum(torch.tensor(seen).repeat_interleave(query_heads), 0, out=self.offsets[1:])
        start = 0
        for n in seen:
            entries = self.columns[start * query_heads : (start + n) * query_heads]
            torch.add(rows[start : start + n], kv_head, out=entries.view(query_heads, n))
            start += n
        self.scores = self._sparse(torch.zeros(rows.numel() * query_heads))
        self.weights = torch.empty_like(self.scores.values())
        self.softmax_runs = self._softmax_runs(seen, query_heads)

    def _token_rows(
        self, paged: PagedBatch, lengths: list[int], seen: list[int], block_size: int, kv_heads: int
    ) -> torch.Tensor:
        """The arena row of K/V head 0 of every token seen, sequence after sequence."""
        sequence = torch.arange(len(seen)).repeat_interleave(torch.tensor(seen))
        ends = torch.tensor(seen).cumsum(0)
        position = torch.arange(len(sequence)) + (torch.tensor(lengths) - ends)[sequence]
        block = paged.block_tables[sequence, position // block_size].long()
        return block * self.rows_per_block + position % block_size * kv_heads

    def _sparse(self, values: torch.Tensor) -> torch.Tensor:
        size = (len(self.offsets) - 1, self.arena_rows)
        with warnings.catch_warnings():  # torch calls its sparse CSR layout beta, once a process
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(self.offsets, self.columns, values, size, check_invariants=False)

    def _softmax_runs(self, seen: list[int], query_heads: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(scores, weights) as matrices, one for each run of neighbours that see equally many tokens."""
        runs, start, first = [], 0, 0
        for i, n in enumerate(seen):
            if i + 1 < len(seen) and seen[i + 1] == n:
                continue
            rows = (i + 1 - first) * query_heads
            entries = slice(start, start + rows * n)
            if n:
                runs.append(
                    (self.scores.values()[entries].view(rows, n), self.weights[entries].view(rows, n))
                )
            start, first = entries.stop, i + 1
        return runs

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """q `[num_decodes, Hq, D]` -> the same shape; sequences of length 0 get zeros."""
        queries = q.reshape(-1, q.shape[-1])
        keys, values = self._arena(k_cache), self._arena(v_cache)
        torch.sparse.sampled_addmm(self.scores, queries, keys.t(), beta=0.0, alpha=scale, out=self.scores)
        for scores, weights in self.softmax_runs:
            torch.softmax(scores, -1, out=weights)
        out = F.embedding_bag(
            self.columns,
            values,
            self.offsets,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )
        return out.view(q.shape)

    def _arena(self, cache: torch.Tensor) -> torch.Tensor:
        """The arena from this layer's K or V on, as rows of D numbers: a view."""
        dim = cache.shape[-1]
        return cache.as_strided((self.arena_rows, dim), (dim, 1), cache.storage_offset())
