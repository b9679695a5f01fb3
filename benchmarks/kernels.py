"""Time every operation at shapes that models have, beside torch's own; one JSON line each.

    python benchmarks/kernels.py [--threads 2] [--only paged_attention] [--peers]

Each line gives the bytes that must move and the floating-point operations that must be done, what this
machine needs for them at the least (`ceiling_us`: at the copy bandwidth and the matrix-product rate measured
just before), and the `share` of that which is reached. On a card the shapes are Qwen2.5-7B's and bge-m3's in
bfloat16, times are the card's own, and `host_us` is what a launch costs the host; on a CPU the shapes are
SmolLM2-135M's and MiniLM's. Small tensors stay in a cache, so their shares may exceed 1; K and V don't, since
layers are visited in turn as they are when a model runs.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as F
from harness import kernel_peers as peers
from harness.kernel_peers import Call
from harness.kernel_timing import ceilings, host_microseconds, microseconds

from onecard.kernels.activation import silu_and_mul
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


@dataclass(frozen=True)
class Shapes:
    """A decoder's and an encoder's, and the steps to time: (queries, length), (texts, tokens each)."""

    heads: int
    kv_heads: int
    dim: int
    layers: int
    intermediate: int
    vocab: int
    encoder_heads: int
    encoder_dim: int
    blocks: int
    tokens: tuple[int, ...]
    decodes: tuple[int, ...]
    lengths: tuple[int, ...]
    prompts: tuple[tuple[int, int], ...]
    texts: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]

    @property
    def hidden(self) -> int:
        return self.heads * self.dim


CPU_SHAPES = Shapes(
    heads=9, kv_heads=3, dim=64, layers=30, intermediate=1536, vocab=49_152, encoder_heads=12, encoder_dim=32,
    blocks=2600, tokens=(1, 16, 512), decodes=(1, 8, 16, 64), lengths=(128, 512, 2000),
    prompts=((128, 128), (512, 512), (2048, 2048), (512, 2048), (256, 4096)),
    texts=((32, 16), (32, 128), (8, 512)), rows=(1, 16),
)  # fmt: skip
CARD_SHAPES = Shapes(
    heads=28, kv_heads=4, dim=128, layers=8, intermediate=18_944, vocab=152_064, encoder_heads=16,
    encoder_dim=64, blocks=32_768, tokens=(1, 64, 8192), decodes=(1, 16, 64, 256), lengths=(512, 2000, 8000),
    prompts=((512, 512), (2048, 2048), (8192, 8192), (2048, 8192)),
    texts=((512, 32), (64, 512), (8, 4096)), rows=(1, 64),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One thing to time, the bytes it must move, the operations it must do, and who else can do it."""

    op: str
    shape: str
    call: Call
    bytes: int = 0
    flops: int = 0
    peers: dict[str, Call] = field(default_factory=dict)


def elementwise(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    for tokens in shapes.tokens:
        x, y = (torch.randn(tokens, shapes.hidden, device=device).to(dtype) for _ in range(2))
        gain = torch.ones(shapes.hidden, device=device, dtype=dtype)
        gate_up = torch.randn(tokens, 2 * shapes.intermediate, device=device).to(dtype)
        row = 2 * x.nbytes
        runs: list[tuple[str, Call, int, Call]] = [
            ("rms_norm", partial(rms_norm, x, gain, 1e-5), row, partial(peers.rms_norm, x, gain)),
            (
                "add_rms_norm",
                partial(add_rms_norm, x, y, gain, 1e-5),
                2 * row,
                partial(peers.add_rms_norm, x, y, gain),
            ),
            (
                "layer_norm",
                partial(layer_norm, x, gain, gain, 1e-5, y),
                3 * x.nbytes,
                partial(peers.layer_norm, x, y, gain),
            ),
            (
                "silu_and_mul",
                partial(silu_and_mul, gate_up),
                gate_up.nbytes * 3 // 2,
                partial(peers.silu_and_mul, gate_up),
            ),
        ]
        for name, call, moved, peer in runs:
            yield Run(name, f"{tokens} tokens", call, bytes=moved, peers={"torch": peer})
        yield from cache_writes(shapes, tokens, device, dtype)


def cache_writes(shapes: Shapes, tokens: int, device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    heads = [shapes.heads, shapes.kv_heads, shapes.kv_heads]
    q, k, v = torch.randn(tokens, sum(heads), shapes.dim, device=device).to(dtype).split(heads, dim=1)
    angles = torch.rand(tokens, shapes.dim // 2, device=device)
    cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)
    blocks = max(64, tokens // BLOCK_SIZE)
    arena = torch.zeros(blocks, 2, 2, BLOCK_SIZE, shapes.kv_heads, shapes.dim, device=device, dtype=dtype)
    caches = arena[:, 1, 0], arena[:, 1, 1]
    slots = torch.randperm(blocks * BLOCK_SIZE, device=device)[:tokens]
    counts = torch.arange(tokens + 1, dtype=torch.int32, device=device)
    batch = PagedBatch(counts, counts[1:], counts[:, None], slots, 1, tokens, tokens)

    def apart() -> None:
        rotary(q, k, cos_sin)
        kv_store(k, v, *caches, slots)

    turned, stored = 2 * (q.nbytes + k.nbytes), 2 * (k.nbytes + v.nbytes)
    name = f"{tokens} tokens"
    yield Run("rotary", name, partial(rotary, q, k, cos_sin), bytes=turned)
    yield Run("kv_store", name, partial(kv_store, k, v, *caches, slots), bytes=stored)
    fused = partial(rotary_kv_store, q, k, v, cos_sin, *caches, batch)
    yield Run("rotary_kv_store", name, fused, bytes=2 * q.nbytes + stored, peers={"apart": apart})


def paged_batch(shapes: Shapes, queries: list[int], lengths: list[int], device: torch.device) -> PagedBatch:
    """Sequences whose blocks lie anywhere in the arena, each block some one sequence's."""
    counts = [-(-length // BLOCK_SIZE) for length in lengths]
    order = torch.randperm(shapes.blocks)[: sum(counts)].to(torch.int32)
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    for i, blocks in enumerate(order.split(counts)):
        tables[i, : len(blocks)] = blocks
    starts = torch.tensor([0, *queries]).cumsum(0).to(torch.int32)
    return PagedBatch(
        cu_seqlens_q=starts.to(device),
        seq_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        slot_mapping=torch.full((sum(queries),), -1, device=device),
        max_seqlen_q=max(queries),
        max_seqlen_k=max(lengths),
        num_decodes=len(queries) if max(queries) == 1 else 0,
    )


def decode_batches(shapes: Shapes) -> Iterator[tuple[str, list[int]]]:
    """Equal lengths, as far as the arena holds them; and one sequence among others 64 times as short."""
    for sequences in shapes.decodes:
        for length in shapes.lengths:
            if sequences * -(-length // BLOCK_SIZE) <= shapes.blocks:
                yield f"decode {sequences} x {length}", [length] * sequences
    longest = 4 * shapes.lengths[-1]
    yield f"decode 63 x {longest // 64} and 1 x {longest}", [longest // 64] * 63 + [longest]


def paged(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    heads, kv_heads, dim = shapes.heads, shapes.kv_heads, shapes.dim
    arena = torch.empty(
        shapes.blocks, shapes.layers, 2, BLOCK_SIZE, kv_heads, dim, device=device, dtype=dtype
    )
    torch.nn.init.uniform_(arena)
    layers = cycle([(arena[:, i, 0], arena[:, i, 1]) for i in range(shapes.layers)])

    def attend(q: torch.Tensor, batch: PagedBatch) -> Call:
        return lambda: paged_attention(q, *next(layers), batch, dim**-0.5)

    for name, lengths in decode_batches(shapes):
        sequences, tokens = len(lengths), sum(lengths)
        batch = paged_batch(shapes, [1] * sequences, lengths, device)
        q = torch.randn(sequences, heads, dim, device=device).to(dtype)
        cached = tokens * 2 * kv_heads * dim * arena.element_size()
        comparable = cached < 1 << 30 and len(set(lengths)) == 1
        yield Run(
            "paged_attention",
            name,
            attend(q, batch),
            bytes=cached + 2 * q.nbytes,
            flops=4 * heads * dim * tokens,
            peers=peers.of_decodes(q, kv_heads, sequences, lengths[0]) if comparable else {},
        )
    for queries, length in shapes.prompts:
        batch = paged_batch(shapes, [queries], [length], device)
        q = torch.randn(queries, heads, dim, device=device).to(dtype)
        yield Run(
            "paged_attention",
            f"prefill {queries} of {length}",
            attend(q, batch),
            bytes=2 * q.nbytes + length * 2 * kv_heads * dim * arena.element_size(),
            flops=4 * heads * dim * queries * (length - (queries - 1) // 2),
            peers=peers.of_prompt(q, kv_heads) if queries == length else {},
        )


def packed(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Iterator[Run]:
    heads, dim = shapes.encoder_heads, shapes.encoder_dim
    for texts, length in shapes.texts:
        q, k, v = torch.randn(3, texts * length, heads, dim, device=device).to(dtype)
        ends = torch.arange(0, texts * length + 1, length, dtype=torch.int32, device=device)
        args = (q, k, v, ends, length, dim**-0.5)
        padded = [x.unflatten(0, (texts, length)).transpose(1, 2) for x in (q, k, v)]
        others: dict[str, Call] = {"sdpa": partial(F.scaled_dot_product_attention, *padded)}
        if device.type == "cuda":
            others["our_triton"] = partial(varlen_attention.run_triton, *args)
        yield Run(
            "varlen_attention",
            f"{texts} x {length}",
            partial(varlen_attention, *args),
            bytes=4 * q.nbytes,
            flops=4 * heads * dim * texts * length**2,
            peers=others,
        )


def sampling(shapes: Shapes, device: torch.device) -> Iterator[Run]:
    settings = {
        "greedy": (0.0, 0, 1.0),
        "plain": (1.0, 0, 1.0),
        "top-k 50": (1.0, 50, 1.0),
        "top-p 0.9": (0.7, 0, 0.9),
        "top-k 20, top-p 0.8": (0.7, 20, 0.8),
    }
    for rows in shapes.rows:
        logits = torch.randn(rows, shapes.vocab, device=device) * 3
        steps = torch.arange(rows, device=device)
        off = torch.zeros(rows, device=device)
        others: dict[str, dict[str, Call]] = {
            "greedy": {"torch": partial(torch.argmax, logits, -1)},
            "plain": {"torch": partial(peers.sample, logits)},
        }
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
                peers=others.get(name, {}),
            )


def gathering(device: torch.device) -> Iterator[Run]:
    for rows in (1, 256):
        tables = torch.zeros(rows, 2048, dtype=torch.int32, device=device)
        numbers = [torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(4)]
        ids = torch.arange(rows, dtype=torch.int32, device=device)
        starts = torch.full_like(ids, 2000)
        args = (ids, starts, numbers[0], tables, BLOCK_SIZE, *numbers[1:], ids.clone(), tables.clone())
        yield Run(
            "gather_decode_inputs",
            f"{rows} rows of 2000 tokens",
            partial(gather_decode_inputs, *args),
            bytes=rows * (2 * 126 * 4 + 40),
        )


def measure(run: Run, device: torch.device, ceiling: tuple[float, float], beside: bool) -> dict[str, object]:
    bandwidth, rate = ceiling
    us = microseconds(run.call, device)
    by_bytes, by_flops = run.bytes / bandwidth * 1e6, run.flops / rate * 1e6
    least = max(by_bytes, by_flops)
    line: dict[str, object] = {
        "op": run.op,
        "shape": run.shape,
        "us": round(us, 1),
        "bytes": run.bytes,
        "flops": run.flops,
        "bound": "flops" if by_flops > by_bytes else "bytes",
        "ceiling_us": round(least, 2),
        "share": round(least / us, 3),
        "gb_s": round(run.bytes / us / 1e3, 2),
        "gflop_s": round(run.flops / us / 1e3, 1),
    }
    if device.type == "cuda":
        line["host_us"] = round(host_microseconds(run.call, device), 1)
    for name, call in run.peers.items() if beside else ():
        taken = microseconds(call, device)
        line |= {f"{name}_us": round(taken, 1), f"over_{name}": round(taken / us, 2)}
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--only", default="", help="run the operations whose name contains this")
    parser.add_argument("--peers", action="store_true", help="beside torch's own on a CPU, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shapes = CPU_SHAPES if device.type == "cpu" else CARD_SHAPES
    bandwidth, rate = ceilings(device, dtype)
    machine = {"device": str(device), "threads": options.threads, "dtype": str(dtype)[6:]}
    print(
        json.dumps({**machine, "copy_gb_s": round(bandwidth / 1e9, 1), "matmul_gflop_s": round(rate / 1e9)}),
        flush=True,
    )
    groups: dict[str, Iterator[Run]] = {
        "rms_norm add_rms_norm layer_norm silu_and_mul rotary kv_store rotary_kv_store": elementwise(
            shapes, device, dtype
        ),
        "paged_attention": paged(shapes, device, dtype),
        "varlen_attention": packed(shapes, device, dtype),
        "sample": sampling(shapes, device),
        "gather_decode_inputs": gathering(device),
    }
    with torch.inference_mode():
        for names, runs in groups.items():
            for run in runs if options.only in names else ():
                if options.only in run.op:
                    beside = options.peers or device.type == "cuda"
                    print(json.dumps(measure(run, device, (bandwidth, rate), beside)), flush=True)


if __name__ == "__main__":
    main()
