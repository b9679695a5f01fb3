"""Per-sequence state that steps gather by row: block tables, sampling parameters, the last token.

A sequence keeps its row from its first step until it stops running, so a step costs one gather an array
instead of rebuilding everything from Python lists. The host's arrays lead; the card's rows follow by what has
changed, and alone know a token that has been sampled but not read yet.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch

from onecard.engines.paged.request import Sequence
from onecard.engines.runtime.staging import Staging


@dataclass(frozen=True)
class SamplingRows:
    """R + 1 rows of the card, what stays the same while a sequence runs; the last row is nobody's."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor


_SAMPLING = tuple(field.name for field in fields(SamplingRows))


class RequestRows:
    """`max_num_seqs` rows, and one for padding; `max_blocks` is the widest block table.

    `mirrored`: the card's rows are a copy of the host's, kept up by `send` with every step; else they are the
    host's arrays, and nothing has to be sent.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int, device: torch.device, mirrored: bool):
        count = max_num_seqs + 1
        self.padding_row = max_num_seqs
        self.block_tables = np.zeros((count, max_blocks), dtype=np.int32)
        self.num_blocks = np.zeros(count, dtype=np.int32)
        self.temperature = np.zeros(count, dtype=np.float32)
        self.top_k = np.zeros(count, dtype=np.int32)
        self.top_p = np.ones(count, dtype=np.float32)
        self.min_p = np.zeros(count, dtype=np.float32)
        self.seed = np.zeros(count, dtype=np.int64)
        self.last_token = torch.zeros(count, dtype=torch.int64, device=device)
        """On the card: the token that a row's last step sampled."""
        self._device, self._mirrored = device, mirrored
        self.device_tables = self._on_card(self.block_tables)
        self.device_sampling = SamplingRows(*(self._on_card(getattr(self, name)) for name in _SAMPLING))
        self._entered: list[int] = []
        self._new_blocks: list[tuple[int, int, int]] = []
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
        if self._mirrored:
            self._entered.append(row)

    def leave(self, sequence: Sequence) -> None:
        if sequence.row >= 0:
            self._free.append(sequence.row)
            sequence.row = -1

    def update_blocks(self, sequence: Sequence) -> None:
        """Write the blocks that the sequence gained since its last step."""
        row, table = sequence.row, sequence.block_table
        known = int(self.num_blocks[row])
        if len(table) != known:
            self.block_tables[row, known : len(table)] = table[known:]
            self.num_blocks[row] = len(table)
            if self._mirrored:
                self._new_blocks.append((row, known, len(table)))

    def rewrite_blocks(self, sequence: Sequence) -> None:
        """The sequence's blocks were moved: its next step writes its whole table anew."""
        if sequence.row >= 0:
            self.num_blocks[sequence.row] = 0

    def send(self, staging: Staging) -> None:
        """Bring the card's rows up to date: a copy for what entered, and one for new blocks."""
        if self._entered:
            self._send_sampling(staging, np.array(self._entered, dtype=np.int64))
            self._entered = []
        if self._new_blocks:
            self._send_blocks(staging, self._new_blocks)
            self._new_blocks = []

    def _send_sampling(self, staging: Staging, rows: np.ndarray) -> None:
        index, *values = staging.to_device([rows, *(getattr(self, name)[rows] for name in _SAMPLING)])
        for name, value in zip(_SAMPLING, values, strict=True):
            getattr(self.device_sampling, name).index_copy_(0, index, value)

    def _send_blocks(self, staging: Staging, blocks: list[tuple[int, int, int]]) -> None:
        width = self.block_tables.shape[1]
        places = np.concatenate([row * width + np.arange(first, end) for row, first, end in blocks])
        places = np.unique(places)  # a row may have changed hands since its last step: once each
        index, values = staging.to_device([places, self.block_tables.reshape(-1)[places]])
        self.device_tables.view(-1).index_copy_(0, index, values)

    def _on_card(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.to(self._device, copy=True) if self._mirrored else tensor
