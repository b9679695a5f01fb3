"""Tiles small enough for Triton's interpreter."""

import pytest
import torch


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter pays by the program: let short inputs cross the borders of tiles, splits and chunks."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from onecard.kernels.triton import paged_decode, paged_prefill, sampling, varlen_attention

    monkeypatch.setattr(varlen_attention, "QUERY_TILE", 16)
    monkeypatch.setattr(varlen_attention, "KEY_TILE", 16)
    monkeypatch.setattr(paged_prefill, "ROW_TILE", 16)
    monkeypatch.setattr(paged_prefill, "KEY_TILE", 16)
    monkeypatch.setattr(paged_decode, "KEY_TILE", 16)
    monkeypatch.setattr(paged_decode, "MAX_SPLITS", 3)
    monkeypatch.setattr(sampling, "CHUNK", 128)
    torch.manual_seed(0)
