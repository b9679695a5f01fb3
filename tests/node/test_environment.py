"""What a bug report says of the kernels is what `kernels.dispatch` does."""

import pytest
import torch

from onecard.engines.node.environment import describe, kernels_backend


@pytest.mark.parametrize(
    ("variable", "has_card", "said"),
    [
        (None, False, "reference (no CUDA card)"),
        ("triton", False, "reference (no CUDA card)"),
        ("reference", False, "reference (forced by KERNELS=reference)"),
        ("reference", True, "reference (forced by KERNELS=reference)"),
        ("triton", True, "triton (forced by KERNELS=triton)"),
        (None, True, "triton, torch's own where that is better"),
    ],
)
def test_it_says_which_kernels_run_and_why(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, has_card: bool, said: str
) -> None:
    monkeypatch.delenv("KERNELS", raising=False)
    if variable is not None:
        monkeypatch.setenv("KERNELS", variable)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_card)
    assert kernels_backend() == said


def test_the_report_has_its_sections() -> None:
    report = describe()
    assert list(report) == ["versions", "torch", "machine", "cards", "kernels"]
    assert report["kernels"] == {"backend": kernels_backend()}
