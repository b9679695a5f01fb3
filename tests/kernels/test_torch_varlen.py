"""torch's attention of packed sequences is asked the right thing, and only what it can do."""

from typing import Any

import pytest
import torch
from paged_cases import DEVICE

from onecard.kernels import torch_varlen
from onecard.kernels.dispatch import op
from onecard.kernels.varlen_attention import varlen_attention

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="test_ops runs it as it is")


def stand_in(calls: list[dict[str, Any]]) -> Any:
    """`varlen_attn` as torch documents it, for a CPU."""

    def varlen_attn(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
    ) -> torch.Tensor:
        calls.append({"cu_seq_k": cu_seq_k, "max_k": max_k, "window_size": window_size})
        assert scale is not None
        causal = {(-1, -1): False, (-1, 0): True}[window_size]
        return varlen_attention.run_reference(query, key, value, cu_seq_q, max_q, scale, causal)

    return varlen_attn


@pytest.mark.parametrize("causal", [False, True])
def test_torch_is_asked_for_the_same(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch_varlen, "VARLEN_ATTN", stand_in(calls))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    q, k, v = torch.randn(9, 6, 16).half().split(2, dim=1)
    args = (q, k, v, torch.tensor([0, 4, 9], dtype=torch.int32), 5, 0.3, causal)
    got = varlen_attention.run_cuda(*args)
    assert len(calls) == 1
    assert calls[0]["max_k"] == 5
    assert got.is_contiguous()
    assert torch.equal(got, varlen_attention.run_reference(*args))


def test_this_torch_takes_the_call() -> None:
    """Shapes and keywords, on tensors without numbers."""
    assert torch_varlen.VARLEN_ATTN is not None, "torch 2.11 and later have it"
    q, k, v = torch.empty(9, 6, 16, device="meta", dtype=torch.bfloat16).split(2, dim=1)
    ends = torch.empty(3, device="meta", dtype=torch.int32)
    assert torch_varlen.attend(q, k, v, ends, 5, 0.3, True).shape == (9, 2, 16)


@pytest.mark.parametrize(
    ("dtype", "tokens", "dim", "capability"),
    [
        (torch.float32, 4, 64, (9, 0)),
        (torch.bfloat16, 4, 20, (9, 0)),
        (torch.bfloat16, 4, 512, (9, 0)),
        (torch.bfloat16, 0, 64, (9, 0)),
        (torch.float16, 4, 64, (7, 5)),
    ],
)
def test_what_it_cannot_do_goes_to_triton(
    dtype: torch.dtype, tokens: int, dim: int, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert not torch_varlen.takes(torch.empty(tokens, 2, dim, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert torch_varlen.takes(torch.empty(4, 2, 64, dtype=torch.bfloat16))
    monkeypatch.setattr(torch_varlen, "VARLEN_ATTN", None)
    assert not torch_varlen.takes(torch.empty(4, 2, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("kernels", "expected"), [(None, ["torch", "triton"]), ("triton", ["triton", "triton"])]
)
def test_the_environment_can_force_triton(
    kernels: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERNELS", raising=False)
    if kernels is not None:
        monkeypatch.setenv("KERNELS", kernels)

    @op(triton=lambda x: "triton", cuda=lambda x: "torch" if x % 2 == 0 else NotImplemented)
    def half(x: int) -> str:
        raise NotImplementedError

    assert [half.run_cuda(4), half.run_cuda(3)] == expected
