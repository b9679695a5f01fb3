"""What the card can do at best: the ceilings that the other gpu_*.py scripts' shares are of.

Copies of 4 GiB within the card, over the bus from pinned memory, a sum that only reads; square products in
bfloat16, float16 and float32; and how long a launch takes the host.
"""

import time

import torch
from harness.gpu import card_facts, copy_bandwidth, device_of, matmul_rate, parse_arguments, seconds
from harness.report import Report

LAUNCHES = 2000


def main() -> None:
    args = parse_arguments(__doc__)
    device = device_of(args)
    report = Report("gpu_machine", card_facts(device))
    with torch.inference_mode():
        report.add({"what": "copy", "gb_s": round(copy_bandwidth(device) / 1e9, 1)})
        report.add({"what": "read", "gb_s": round(read_bandwidth(device) / 1e9, 1)})
        if device.type == "cuda":
            report.add({"what": "host to device, pinned", "gb_s": round(upload_bandwidth(device) / 1e9, 1)})
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            rate = matmul_rate(device, dtype)
            report.add({"what": f"matmul {str(dtype)[6:]}", "tflop_s": round(rate / 1e12, 2)})
        report.add({"what": "launch", "host_us": round(launch_microseconds(device), 2)})
    report.write(args.json_out)


def read_bandwidth(device: torch.device) -> float:
    source = torch.ones((4 << 30) // 4 if device.type == "cuda" else 1 << 22, device=device)
    return source.nbytes / seconds(source.sum, device)


def upload_bandwidth(device: torch.device) -> float:
    source = torch.ones(1 << 28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return source.nbytes / seconds(lambda: target.copy_(source, non_blocking=True), device)


def launch_microseconds(device: torch.device) -> float:
    """Of an operation too small for the card to notice."""
    x = torch.ones(1, device=device)
    for _ in range(10):
        x.add_(1)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        x.add_(1)
    return (time.perf_counter() - started) / LAUNCHES * 1e6


if __name__ == "__main__":
    main()
