"""Compile the kernels for a Hopper card, which needn't be there, and print what each one takes.

    python benchmarks/kernel_resources.py [--only paged] [--json] [--listing FOLDER]

A row is a kernel at a model's shape: threads a block, registers and stack bytes a thread, instructions that
spill, shared memory, and of the loop that does most of the work the instructions, how many of them are matrix
products (`wgmma`, else `mma`) and asynchronous copies (`cp.async`: K and V of the next tile are on their way
while this one is multiplied).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton.compiler
from harness.hopper_driver import HopperDriver
from harness.machine_code import Loop, read_machine_code
from triton.runtime import driver

from onecard.kernels.activation import silu_and_mul
from onecard.kernels.dispatch import Op
from onecard.kernels.gather_inputs import gather_decode_inputs
from onecard.kernels.kv_store import kv_store
from onecard.kernels.layer_norm import layer_norm
from onecard.kernels.paged_attention import PagedBatch, paged_attention
from onecard.kernels.rms_norm import add_rms_norm, rms_norm
from onecard.kernels.rotary import rotary
from onecard.kernels.rotary_kv_store import rotary_kv_store
from onecard.kernels.sampling import sample
from onecard.kernels.varlen_attention import varlen_attention

BLOCK_SIZE = 16
ATTENTION = [  # query heads, K/V heads, head size, window
    (28, 4, 128, 0), (16, 8, 128, 0), (16, 8, 128, 4096), (9, 3, 64, 0), (8, 4, 256, 0), (32, 32, 80, 0),
]  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One operation at a model's shape; it may take several kernels."""

    shape: str
    op: Op[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Row:
    """What one kernel takes; bytes, and counts of instructions."""

    kernel: str
    shape: str
    threads: int
    registers: int
    stack: int
    spills: int
    shared: int
    instructions: int
    loop: int
    products: int
    copies: int


class Recorder:
    """Stands in for Triton's `compile` and keeps what it returns."""

    def __init__(self) -> None:
        self.compiled: list[Any] = []
        self._compile = triton.compiler.compile

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        kernel = self._compile(*args, **kwargs)
        self.compiled.append(kernel)
        return kernel


def paged(dtype: torch.dtype) -> Iterator[Launch]:
    for heads, kv_heads, dim, window in ATTENTION:
        arena = torch.zeros(4, 2, 2, BLOCK_SIZE, kv_heads, dim, dtype=dtype)
        caches = arena[:, 1, 0], arena[:, 1, 1]
        q = torch.zeros(130, heads, dim, dtype=dtype)
        starts = torch.tensor([0, 1, 2, 130], dtype=torch.int32)
        tables = torch.zeros(3, 16, dtype=torch.int32)
        batch = PagedBatch(starts, starts[1:], tables, torch.full((130,), -1), 128, 200, num_decodes=2)
        name = f"{heads}/{kv_heads} heads of {dim}" + f", window {window:,}" * (window > 0)
        yield Launch(f"{name}, {str(dtype)[6:]}", paged_attention, (q, *caches, batch, 0.1, window))


def packed(dtype: torch.dtype) -> Iterator[Launch]:
    for dim in (32, 64):
        q = torch.zeros(128, 16, dim, dtype=dtype)
        ends = torch.tensor([0, 128], dtype=torch.int32)
        yield Launch(f"16 heads of {dim}, {str(dtype)[6:]}", varlen_attention, (q, q, q, ends, 128, 0.1))


def elementwise(dtype: torch.dtype) -> Iterator[Launch]:
    x, gain = torch.zeros(16, 3584, dtype=dtype), torch.zeros(3584, dtype=dtype)
    yield Launch("3,584 wide", rms_norm, (x, gain, 1e-5))
    yield Launch("3,584 wide", add_rms_norm, (x, x, gain, 1e-5))
    narrow, bias = torch.zeros(16, 1024, dtype=dtype), torch.zeros(1024, dtype=dtype)
    yield Launch("1,024 wide", layer_norm, (narrow, bias, bias, 1e-5, narrow))
    yield Launch("18,944 wide", silu_and_mul, (torch.zeros(16, 2 * 18_944, dtype=dtype),))
    q, k, v = torch.zeros(16, 36, 128, dtype=dtype).split([28, 4, 4], dim=1)
    arena = torch.zeros(4, 2, 2, BLOCK_SIZE, 4, 128, dtype=dtype)
    caches, slots, angles = (arena[:, 1, 0], arena[:, 1, 1]), torch.arange(16), torch.zeros(16, 128)
    counts = torch.arange(17, dtype=torch.int32)
    batch = PagedBatch(counts, counts[1:], counts[1:, None], slots, 1, 16, 16)
    name = "28/4 heads of 128"
    yield Launch(name, rotary, (q, k, angles))
    yield Launch(name, kv_store, (k, v, *caches, slots))
    yield Launch(name, rotary_kv_store, (q, k, v, angles, *caches, batch))


def sampling() -> Iterator[Launch]:
    floats, integers, numbers = (torch.zeros(64, dtype=t) for t in (torch.float32, torch.int32, torch.int64))
    knobs = (floats, integers, floats, floats, numbers, numbers)
    yield Launch("64 rows of 152,064", sample, (torch.zeros(64, 152_064), *knobs))
    tables = torch.zeros(64, 2048, dtype=torch.int32)
    inputs = [torch.zeros_like(numbers) for _ in range(3)]
    rows = (integers, integers, numbers, tables, BLOCK_SIZE, *inputs, integers.clone(), tables.clone())
    yield Launch("64 rows", gather_decode_inputs, rows)


def launches() -> Iterator[Launch]:
    for dtype in (torch.bfloat16, torch.float32):
        yield from paged(dtype)
        yield from packed(dtype)
    yield from elementwise(torch.bfloat16)
    yield from sampling()


def main_loop(loops: list[Loop]) -> Loop | None:
    """The tiles at the edges have a loop of their own, with masks: the shorter one does most of the work."""
    most = max((loop.products for loop in loops), default=0)
    if most:
        return min((loop for loop in loops if loop.products == most), key=lambda loop: loop.instructions)
    longest = max((loop.instructions for loop in loops), default=0)
    return min(
        (loop for loop in loops if loop.instructions > 0.8 * longest),
        key=lambda loop: loop.instructions,
        default=None,
    )


def describe(kernel: Any, shape: str) -> Row:
    code = read_machine_code(kernel.asm["cubin"])
    loop = main_loop(code.loops)
    module = Path(kernel.src.fn.fn.__code__.co_filename).stem
    return Row(
        kernel=f"{module}.{kernel.metadata.name.strip('_')}",
        shape=shape,
        threads=32 * kernel.metadata.num_warps,
        registers=code.registers,
        stack=code.stack,
        spills=code.spills,
        shared=kernel.metadata.shared,
        instructions=code.instructions,
        loop=loop.instructions if loop else 0,
        products=loop.products if loop else 0,
        copies=loop.kinds["LDGSTS"] if loop else 0,
    )


def table(rows: list[Row]) -> str:
    names = list(asdict(rows[0]))
    lines = ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
    for row in rows:
        values = asdict(row).values()
        cells = (f"{value:,}" if isinstance(value, int) else value for value in values)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="compile the operations whose name contains this")
    parser.add_argument("--json", action="store_true", help="a JSON line a row in place of a Markdown table")
    parser.add_argument("--listing", type=Path, help="write each row's intermediate and machine code there")
    options = parser.parse_args()
    driver.set_active(HopperDriver())
    triton.compiler.compile = recorder = Recorder()
    rows = []
    for launch in launches():
        if options.only not in launch.op.name:
            continue
        first = len(recorder.compiled)
        launch.op.run_triton(*launch.args)
        for kernel in recorder.compiled[first:]:
            rows.append(describe(kernel, launch.shape))
            if options.json:
                print(json.dumps(asdict(rows[-1])), flush=True)
            if options.listing:
                write_listing(kernel, options.listing / f"{len(rows):02d}-{rows[-1].kernel}")
    if not options.json:
        print(f"Triton {triton.__version__}, compute capability 9.0\n")
        print(table(rows))


def write_listing(kernel: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("ttgir", "ptx", "sass"):
        path.with_name(f"{path.name}.{kind}").write_text(kernel.asm[kind])


if __name__ == "__main__":
    main()
