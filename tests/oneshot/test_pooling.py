"""Packing and pooling against the same done text by text; Matryoshka cuts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.oneshot.heads.pool import POOLING_MODES, Pooling, PoolingMode, cut_dimensions
from onecard.engines.oneshot.packing import pack
from onecard.engines.runtime.staging import Staging


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_packs_texts_end_to_end(texts: list[list[int]]) -> None:
    batch = pack(texts, Staging(torch.device("cpu")))
    assert batch.input_ids.tolist() == [token for text in texts for token in text]
    assert batch.positions.tolist() == [position for text in texts for position in range(len(text))]
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum([len(text) for text in texts])]
    assert batch.max_seqlen == max(map(len, texts))
    assert (batch.input_ids.dtype, batch.cu_seqlens.dtype) == (torch.int64, torch.int32)


def pool_one(mode: PoolingMode, rows: torch.Tensor) -> torch.Tensor:
    match mode:
        case "mean":
            return rows.mean(0)
        case "mean_sqrt_len_tokens":
            return rows.sum(0) / len(rows) ** 0.5
        case "cls":
            return rows[0]
        case "max":
            return rows.max(0).values
        case "lasttoken":
            return rows[-1]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", POOLING_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pools_each_text_as_if_alone(mode: PoolingMode, normalize: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    lengths = [3, 1, 7, 2, 1]
    hidden = torch.randn(sum(lengths), 8).to(dtype)
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    expected = torch.stack([pool_one(mode, rows.float()) for rows in hidden.split(lengths)])
    if normalize:
        expected = torch.nn.functional.normalize(expected, dim=-1)
    vectors = Pooling(mode, normalize)(hidden, cu_seqlens)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=1e-5)


def test_cut_vectors_are_unit_length_again_where_they_were() -> None:
    vectors = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]], dtype=np.float32) / 13
    np.testing.assert_allclose(cut_dimensions(vectors, 2, normalize=False), vectors[:, :2])
    cut = cut_dimensions(vectors, 2, normalize=True)
    np.testing.assert_allclose(cut, [[0.6, 0.8], [0, 0]], atol=1e-6)
    assert cut.dtype == np.float32
