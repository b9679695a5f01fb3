"""A decode step's inputs, gathered on the card from the rows of its sequences."""

import torch

from onecard.kernels.dispatch import op


@op(triton="onecard.kernels.triton.gather_inputs:launch")
def gather_decode_inputs(
    row_ids: torch.Tensor,
    starts: torch.Tensor,
    last_token: torch.Tensor,
    rows_tables: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    seq_lens: torch.Tensor,
    block_tables: torch.Tensor,
) -> None:
    """Fill the inputs of B decoding sequences, one token each, in place: static buffers of a captured graph.

    row_ids `[B]` int32 (-1: padding) and starts `[B]` int32, the position of each one's token; last_token
    `[R]` int64 and rows_tables `[R, W]` int32 are the rows. Written: input_ids, positions, slot_mapping `[B]`
    int64, seq_lens `[B]` int32, block_tables `[B, W]` int32, of which the entries up to the sequence's length
    count. Padding gets token 0 at position 0, slot -1 and length 0. positions is the first row of a batch's:
    a token's place in its sequence.
    """
    real = row_ids >= 0
    rows = row_ids.clamp(min=0).long()
    start = torch.where(real, starts, 0).long()
    tables = rows_tables.index_select(0, rows)
    block = tables.gather(1, (start // block_size).unsqueeze(1)).squeeze(1).long()
    input_ids.copy_(torch.where(real, last_token.index_select(0, rows), 0))
    positions.copy_(start)
    slot_mapping.copy_(torch.where(real, block * block_size + start % block_size, -1))
    seq_lens.copy_(torch.where(real, start + 1, 0))
    block_tables.copy_(tables)
