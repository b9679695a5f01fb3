"""Time every operation at shapes that models have; one JSON line each.

    python benchmarks/kernels.py [--threads 2] [--only paged_attention]

`share` is the part reached of what this machine was measured to do just before: its copy bandwidth for
operations that move bytes, its matrix-product rate for those that compute. Caches are larger than the
processor's own and layers are visited in turn, so K and V come from memory as they do when a model runs.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch

from onecard.kernels.activation import silu_and_mul
from onecard.kernels.kv_store import kv_store
from onecard.kernels.layer_norm import layer_norm
from onecard.kernels.paged_attention import PagedBatch, paged_attention
from onecard.kernels.rms_norm import add_rms_norm, rms_norm
from onecard.kernels.rotary import rotary
from onecard.kernels.sampling import sample
from onecard.kernels.varlen_attention import varlen_attention

HEADS, KV_HEADS, DIM, LAYERS, BLOCK_SIZE, NUM_BLOCKS = 9, 3, 64, 30, 16, 2600
HIDDEN, INTERMEDIATE, VOCAB = HEADS * DIM, 1536, 49_152


@dataclass(frozen=True)
class Run:
    """One thing to time, and the bytes it must move or the floating-point operations it must do."""

    op: str
    shape: str
    call: Callable[[], object]
    bytes: int = 0
    flops: int = 0


def microseconds(call: Callable[[], object], device: torch.device) -> float:
    """The best of many means over 2 ms: what the machine can do when nobody else wants it."""
    call()
    repeats = 1
    while _timed(call, repeats, device) < 0.002 and repeats < 1000:
        repeats *= 2
    end = time.perf_counter() + 0.3
    best = _timed(call, repeats, device)
    while time.perf_counter() < end:
        best = min(best, _timed(call, repeats, device))
    return best / repeats * 1e6


def _timed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds(lambda: target.copy_(source), device) * 1e6


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square product."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / microseconds(lambda: a @ a, device) * 1e6


def elementwise(device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    for tokens in (1, 16, 512):
        x, residual = (torch.randn(tokens, HIDDEN, device=device).to(dtype) for _ in range(2))
        weight = torch.ones(HIDDEN, device=device, dtype=dtype)
        gate_up = torch.randn(tokens, 2 * INTERMEDIATE, device=device).to(dtype)
        qkv = (
            torch.randn(tokens, (HEADS + 2 * KV_HEADS) * DIM, device=device).to(dtype).unflatten(1, (-1, DIM))
        )
        q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        angles = torch.rand(4096, DIM // 2, device=device)
        cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
        positions = torch.randint(0, 4096, (tokens,), device=device)
        arena = torch.zeros(64, LAYERS, 2, BLOCK_SIZE, KV_HEADS, DIM, device=device, dtype=dtype)
        k_cache, v_cache = arena[:, 3, 0], arena[:, 3, 1]
        slots = torch.randperm(64 * BLOCK_SIZE, device=device)[:tokens]
        calls: list[tuple[str, Callable[[], object], int]] = [
            ("rms_norm", partial(rms_norm, x, weight, 1e-5), 2 * x.nbytes),
            ("add_rms_norm", partial(add_rms_norm, x, residual, weight, 1e-5), 4 * x.nbytes),
            ("layer_norm", partial(layer_norm, x, weight, weight, 1e-5, residual), 3 * x.nbytes),
            ("silu_and_mul", partial(silu_and_mul, gate_up), gate_up.nbytes * 3 // 2),
            ("rotary", partial(rotary, q, k, positions, cos_sin), 2 * (q.nbytes + k.nbytes)),
            ("kv_store", partial(kv_store, k, v, k_cache, v_cache, slots), 2 * (k.nbytes + v.nbytes)),
        ]
        for name, call, moved in calls:
            yield Run(name, f"{tokens} tokens", call, bytes=moved)


def paged_batch(queries: list[int], lengths: list[int], device: torch.device) -> PagedBatch:
    """Sequences whose blocks lie anywhere in the arena; longer than it together, they share some."""
    width = -(-max(lengths) // BLOCK_SIZE)
    order = torch.randperm(NUM_BLOCKS)
    places = torch.arange(len(lengths) * width) % NUM_BLOCKS
    starts = torch.tensor([0, *queries]).cumsum(0).to(torch.int32)
    return PagedBatch(
        cu_seqlens_q=starts.to(device),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_tables=order[places].view(len(lengths), width).to(torch.int32).to(device),
        slot_mapping=torch.full((sum(queries),), -1, device=device),
        max_seqlen_q=max(queries),
        max_seqlen_k=max(lengths),
        num_decodes=len(queries) if max(queries) == 1 else 0,
    )


def attention(device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    arena = torch.empty(NUM_BLOCKS, LAYERS, 2, BLOCK_SIZE, KV_HEADS, DIM, device=device, dtype=dtype)
    torch.nn.init.uniform_(arena)
    layers = cycle([(arena[:, i, 0], arena[:, i, 1]) for i in range(LAYERS)])

    def attend(q: torch.Tensor, batch: PagedBatch) -> Callable[[], object]:
        return lambda: paged_attention(q, *next(layers), batch, DIM**-0.5)

    for sequences in (1, 8, 16, 64):
        for length in (128, 512, 2000):
            batch = paged_batch([1] * sequences, [length] * sequences, device)
            q = torch.randn(sequences, HEADS, DIM, device=device).to(dtype)
            moved = sequences * length * 2 * KV_HEADS * DIM * arena.element_size()
            yield Run("paged_attention", f"decode {sequences} x {length}", attend(q, batch), bytes=moved)
    for queries, length in ((128, 128), (512, 512), (2048, 2048), (512, 2048), (256, 4096)):
        batch = paged_batch([queries], [length], device)
        q = torch.randn(queries, HEADS, DIM, device=device).to(dtype)
        flops = 4 * HEADS * DIM * queries * (length - queries // 2)
        yield Run("paged_attention", f"prefill {queries} of {length}", attend(q, batch), flops=flops)
    for sequences, length in ((32, 16), (32, 128), (8, 512)):
        q, k, v = torch.randn(3, sequences * length, 12, 32, device=device).to(dtype)
        ends = torch.arange(0, sequences * length + 1, length, dtype=torch.int32, device=device)
        yield Run(
            "varlen_attention",
            f"{sequences} x {length}",
            partial(varlen_attention, q, k, v, ends, length, 32**-0.5),
            flops=4 * 12 * 32 * sequences * length**2,
        )


def sampling(device: torch.device) -> Iterator[Run]:
    settings = {
        "greedy": (0.0, 0, 1.0),
        "plain": (1.0, 0, 1.0),
        "top-k 50": (1.0, 50, 1.0),
        "top-p 0.9": (0.7, 0, 0.9),
    }
    for rows in (1, 16):
        logits = torch.randn(rows, VOCAB, device=device) * 3
        steps = torch.arange(rows, device=device)
        off = torch.zeros(rows, device=device)
        for name, (temperature, top_k, top_p) in settings.items():
            knobs = (
                torch.full((rows,), temperature, device=device),
                torch.full((rows,), top_k, dtype=torch.int32, device=device),
                torch.full((rows,), top_p, device=device),
            )
            yield Run(
                "sample",
                f"{rows} rows {name}",
                partial(sample, logits, *knobs, off, steps, steps),
                bytes=logits.nbytes,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--only", default="", help="run the operations whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    bandwidth, rate = copy_bandwidth(device), matmul_rate(device, dtype)
    machine = {"device": str(device), "threads": options.threads, "dtype": str(dtype)[6:]}
    print(
        json.dumps({**machine, "copy_gb_s": round(bandwidth / 1e9, 1), "matmul_gflop_s": round(rate / 1e9)})
    )
    for group in (elementwise(device, dtype), attention(device, dtype), sampling(device)):
        for run in group:
            if options.only in run.op:
                us = microseconds(run.call, device)
                line: dict[str, object] = {"op": run.op, "shape": run.shape, "us": round(us, 1)}
                if run.flops:
                    reached = run.flops / us * 1e6
                    line |= {"gflop_s": round(reached / 1e9, 1), "share": round(reached / rate, 3)}
                else:
                    reached = run.bytes / us * 1e6
                    line |= {"gb_s": round(reached / 1e9, 2), "share": round(reached / bandwidth, 3)}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
