"""What this machine can do at best: the floors that the other benchmarks' figures stand on.

Memory: bytes a second of copying and of reading arrays far larger than the caches. Arithmetic: float32
operations a second of linear layers with packed weights (oneDNN float32, FBGEMM float16 weights) and of
F.linear, at the sizes of SmolLM2-135M, at 1 thread and at all. A decode step reads every weight once and
multiplies it B times, so its floor is the larger of bytes / bandwidth and operations / rate.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness.report import Report, add_common_arguments

COPY_BYTES = 512 << 20
SHAPES = {
    "qkv": (960, 576),
    "o": (576, 576),
    "gate_up": (3072, 576),
    "down": (576, 1536),
    "head": (49152, 576),
}
LAYERS = 30
ROWS = (1, 8, 16, 128)


def main() -> None:
    args = parse_arguments()
    repeats = 5 if args.quick else 30
    report = Report("machine", {"repeats": repeats})
    with torch.inference_mode():
        for threads in sorted({1, args.threads}):
            torch.set_num_threads(threads)
            report.add({"threads": threads, **bandwidth(repeats)})
            for rows in ROWS:
                report.add({"threads": threads, "rows": rows, **linear_rates(rows, repeats)})
    report.write(args.json_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, repeats=1)
    return parser.parse_args()


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def bandwidth(repeats: int) -> dict[str, float]:
    """GB/s; a copy counts its reads and its writes."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    copy = best_seconds(lambda: target.copy_(source), max(3, repeats // 3))
    read = best_seconds(source.sum, max(3, repeats // 3))
    return {
        "copy_gb_s": round(2 * COPY_BYTES / copy / 1e9, 1),
        "read_gb_s": round(COPY_BYTES / read / 1e9, 1),
    }


def linear_rates(rows: int, repeats: int) -> dict[str, float]:
    """GFLOP/s over one model's linear layers in turn (so that weights come from memory), each way."""
    ways = {"F.linear": plain, "onednn_float32": onednn, "fbgemm_float16": fbgemm}
    rates = {}
    for name, make in ways.items():
        layers = [(make(torch.randn(shape)), torch.randn(rows, shape[1])) for shape in model_shapes()]
        flops = sum(2 * rows * out * into for out, into in model_shapes())
        seconds = best_seconds(lambda layers=layers: run(layers), max(3, repeats // 6))
        rates[f"{name}_gflops"] = round(flops / seconds / 1e9, 1)
        rates[f"{name}_step_ms"] = round(seconds * 1e3, 2)
    return rates


def run(layers: list[tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]]) -> None:
    for layer, x in layers:
        layer(x)


def model_shapes() -> list[tuple[int, int]]:
    return [SHAPES[name] for _ in range(LAYERS) for name in ("qkv", "o", "gate_up", "down")] + [
        SHAPES["head"]
    ]


def plain(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: F.linear(x, weight)


def onednn(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def fbgemm(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    packed = torch.ops.quantized.linear_prepack_fp16(weight, None)
    return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, packed)


if __name__ == "__main__":
    main()
