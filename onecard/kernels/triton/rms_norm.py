"""RMS norm, one row a program."""

import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(
    x,
    residual,
    weight,
    out,
    total,
    eps,
    heads,
    stride_row: tl.int64,
    stride_head: tl.int64,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    start = (row // heads) * stride_row + (row % heads) * stride_head
    wide = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(residual + row * DIM + column, mask=inside, other=0.0).to(tl.float32)
        rounded = (wide + added).to(total.dtype.element_ty)
        tl.store(total + row * DIM + column, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / DIM + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * DIM + column, (wide * scale * gain).to(out.dtype.element_ty), mask=inside)


def launch(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() > 3 or x.stride(-1) != 1:
        x = x.contiguous().flatten(0, -2)
    heads = x.shape[1] if x.dim() == 3 else 1
    stride_head = x.stride(1) if x.dim() == 3 else 0
    stride_row = x.stride(0) if x.dim() > 1 else 0
    _run(x, x, weight, out, out, eps, heads, stride_row, stride_head, add=False)
    return out


def launch_add(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out)
    _run(x, residual.contiguous(), weight, out, total, eps, 1, x.stride(0), 0, add=True)
    return out, total


def _run(x, residual, weight, out, total, eps, heads, stride_row, stride_head, add):
    dim = x.shape[-1]
    rows = x.numel() // dim
    if rows == 0:
        return
    block = triton.next_power_of_2(dim)
    _kernel[(rows,)](
        x,
        residual,
        weight,
        out,
        total,
        eps,
        heads,
        stride_row,
        stride_head,
        DIM=dim,
        BLOCK=block,
        ADD=add,
        num_warps=min(max(block // 512, 1), 8),
    )
