import pytest
import torch

from onecard.engines.encoder.packing import FILLER_TOKENS, filler_texts, pack
from onecard.engines.layers.linear_methods import padded_rows


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 100, 1025, 2047, 2048, 8000])
def test_filler_brings_a_step_to_a_row_count_that_is_known(num_tokens: int):
    filler = filler_texts(num_tokens)
    assert num_tokens + sum(map(len, filler)) == padded_rows(num_tokens)
    assert all(0 < len(text) <= FILLER_TOKENS for text in filler)


def test_texts_lie_one_after_another():
    batch = pack([[5, 6, 7], [8]], torch.device("cpu"))
    assert batch.input_ids.tolist() == [5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 4]
    assert batch.max_seqlen == 3
