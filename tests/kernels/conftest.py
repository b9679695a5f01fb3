"""On a CPU, tiles small enough for Triton's interpreter; on a card the kernels run as they are served."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a card these tests run on it, and `-m gpu` finds them."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter pays by the program: let short inputs cross the borders of tiles, splits and chunks."""
    pytest.importorskip("triton", reason="Triton is not installed")
    torch.manual_seed(0)
    if torch.cuda.is_available():
        return
    from onecard.kernels.paged_attention import decode_splits
    from onecard.kernels.triton import paged_decode, paged_prefill, sampling, varlen_attention

    monkeypatch.setattr(varlen_attention, "QUERY_TILE", 16)
    monkeypatch.setattr(varlen_attention, "KEY_TILE", 16)
    monkeypatch.setattr(varlen_attention, "wide_tile", lambda _: (16, 16))
    small = paged_prefill.Tiles(rows=16, keys=16, warps=4, stages=2)
    monkeypatch.setattr(paged_prefill, "tiles", lambda *_: small)
    monkeypatch.setattr(paged_decode, "KEY_TILE", 16)
    monkeypatch.setattr(paged_decode, "SMALLEST_SHARE", 16)
    monkeypatch.setattr(paged_decode, "LENGTHS", 2)
    monkeypatch.setattr(decode_splits, "MAX_SPLITS", 4)
    monkeypatch.setattr(decode_splits, "PROGRAMS_WANTED", 12)
    monkeypatch.setattr(sampling, "CHUNK", 128)
    monkeypatch.setattr(sampling, "MAX_GROUPS", 32)
    monkeypatch.setattr(sampling, "TILE", 32)
