"""Whose token is whose, and where its K and V lie: built once a step, read by every layer."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True)
class PagedBatch:
    """T query tokens of B sequences, packed; the first `num_decodes` sequences have one query token each.

    cu_seqlens_q  `[B + 1]` int32   query tokens of sequence i are rows cu_seqlens_q[i] .. cu_seqlens_q[i + 1]
    seq_lens      `[B]` int32       tokens of sequence i whose K/V exist once this step's are stored; the
                                    query tokens are its last ones, unless they ask another sequence's (0: a
                                    padded row, its output is zeros)
    block_tables  `[B, W]` int32    block ids of sequence i in order; entries past its length are undefined
    slot_mapping  `[T]` int64       block_id * block_size + offset of each token that is stored, the query
                                    tokens; -1: store nothing
    """

    cu_seqlens_q: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    slot_mapping: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    num_decodes: int

    @cached_property
    def query_starts(self) -> list[int]:
        """`cu_seqlens_q` on the host; a copy from the device, so for reference paths only."""
        return self.cu_seqlens_q.tolist()

    @cached_property
    def lengths(self) -> list[int]:
        """`seq_lens` on the host; for reference paths only."""
        return self.seq_lens.tolist()

    @cached_property
    def plans(self) -> dict[Any, Any]:
        """What one layer worked out from this batch and the next ones need again; filled by the kernels."""
        return {}
