"""Per-sequence state that steps gather by row: block tables and sampling parameters.

A sequence keeps its row from its first step until it stops running, so a step costs one gather an array
instead of rebuilding everything from Python lists.
"""

import numpy as np

from onecard.engines.llm.request import Sequence


class RequestRows:
    """`max_num_seqs` rows on the host; `max_blocks` is the widest block table."""

    def __init__(self, max_num_seqs: int, max_blocks: int):
        self.block_tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self.num_blocks = np.zeros(max_num_seqs, dtype=np.int32)
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.seed = np.zeros(max_num_seqs, dtype=np.int64)
        self._free = list(range(max_num_seqs))[::-1]

    def enter(self, sequence: Sequence) -> None:
        """Give the sequence a row and write what stays the same while it runs."""
        row = self._free.pop()
        params = sequence.request.sampling
        sequence.row = row
        self.num_blocks[row] = 0
        self.temperature[row] = params.temperature
        self.top_k[row] = params.top_k
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.seed[row] = sequence.seed

    def leave(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self._free.append(sequence.row)
            sequence.row = -1

    def update_blocks(self, sequence: Sequence) -> None:
        """Write the blocks that the sequence gained since its last step."""
        row, table = sequence.row, sequence.block_table
        known = self.num_blocks[row]
        if len(table) != known:
            self.block_tables[row, known : len(table)] = table[known:]
            self.num_blocks[row] = len(table)
