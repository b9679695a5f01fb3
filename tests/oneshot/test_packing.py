import pytest
import torch

from onecard.engines.layers.linear_methods import padded_rows
from onecard.engines.oneshot.packing import FILLER_TOKENS, filler_texts, pack
from onecard.engines.runtime.staging import Staging


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 100, 1025, 2047, 2048, 8000])
def test_filler_brings_a_step_to_a_row_count_that_is_known(num_tokens: int):
    filler = filler_texts(num_tokens)
    assert num_tokens + sum(map(len, filler)) == padded_rows(num_tokens)
    assert all(0 < len(text) <= FILLER_TOKENS for text in filler)


@pytest.mark.parametrize("longest", [1, 5, 40, FILLER_TOKENS + 1])
def test_filler_is_no_longer_than_what_the_model_reads(longest: int):
    filler = filler_texts(1025, longest)
    assert 1025 + sum(map(len, filler)) == padded_rows(1025)
    assert max(map(len, filler)) <= min(longest, FILLER_TOKENS)


def test_texts_lie_one_after_another():
    batch = pack([[5, 6, 7], [8]], Staging(torch.device("cpu")))
    assert batch.input_ids.tolist() == [5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 4]
    assert batch.max_seqlen == 3
    assert batch.token_type_ids is None


def test_types_lie_with_their_texts_and_those_that_have_none_are_of_type_0():
    texts = [[5, 6, 7], [8], [9, 9], [0, 0]]
    batch = pack(texts, Staging(torch.device("cpu")), [[0, 1, 1], None, [0, 2]])
    assert batch.token_type_ids.dtype == torch.int64
    assert batch.token_type_ids.tolist() == [0, 1, 1, 0, 0, 2, 0, 0], "the filler behind them, too"
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 9, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6, 8]


@pytest.mark.parametrize("types", [(), [None], [None, None]])
def test_a_step_without_types_has_none(types: list[None]):
    assert pack([[5, 6], [7]], Staging(torch.device("cpu")), types).token_type_ids is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_step_goes_to_the_card_in_one_copy_and_may_be_followed_by_others():
    staging = Staging(torch.device("cuda"))
    steps = [[[i] * (1 + (i + j) % 7) for j in range(5)] for i in range(50)]
    batches = [pack(texts, staging) for texts in steps]
    for texts, batch in zip(steps, batches, strict=True):
        expected = pack(texts, Staging(torch.device("cpu")))
        parts = (batch.input_ids, batch.positions, batch.cu_seqlens)
        assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
        assert all(part.data_ptr() % 16 == 0 for part in parts)
        assert batch.input_ids.tolist() == expected.input_ids.tolist()
        assert batch.positions.tolist() == expected.positions.tolist()
        assert batch.cu_seqlens.tolist() == expected.cu_seqlens.tolist()
        types = [[text[0] % 2] * len(text) if text[0] % 3 else None for text in texts]
        typed, expected = pack(texts, staging, types), pack(texts, Staging(torch.device("cpu")), types)
        assert (typed.token_type_ids is None) == (expected.token_type_ids is None)
        if expected.token_type_ids is not None:
            assert typed.token_type_ids.tolist() == expected.token_type_ids.tolist()
