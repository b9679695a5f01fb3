"""What this machine and this installation are like: the text that belongs into a bug report."""

import importlib.metadata
import os
import platform
import sys

import psutil
import torch

LIBRARIES = (
    "onecard",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "modelscope",
    "triton",
    "numpy",
    "aiohttp",
    "uvloop",
    "pydantic",
    "prometheus-client",
    "nvidia-ml-py",
)
GIB = 1 << 30


def describe() -> dict[str, dict[str, str]]:
    """Section -> name -> value. Nothing in it is secret: no names, keys, paths or addresses."""
    return {
        "versions": _versions(),
        "torch": _torch(),
        "machine": _machine(),
        "cards": _cards(),
        "kernels": {"backend": kernels_backend()},
    }


def kernels_backend() -> str:
    """Which implementation `kernels.dispatch` picks here, and why."""
    forced = os.environ.get("KERNELS")
    if forced == "reference":
        return "reference (forced by KERNELS=reference)"
    if not torch.cuda.is_available():
        return "reference (no CUDA card)"
    return (
        "triton (forced by KERNELS=triton)"
        if forced == "triton"
        else "triton, torch's own where that is better"
    )


def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0]} | {name: _version(name) for name in LIBRARIES}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _torch() -> dict[str, str]:
    return {
        "CUDA of the build": torch.version.cuda or "none",
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": "yes" if torch.backends.mkldnn.is_available() else "no",
        "quantized engines": ", ".join(torch.backends.quantized.supported_engines),
        "threads within an operation": str(torch.get_num_threads()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores usable": f"{len(psutil.Process().cpu_affinity() or [])} of {os.cpu_count()}",
        "memory": f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB available",
    }


def _processor() -> str:
    """The CPU's trade name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cards() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"CUDA": "no card that this torch can use"}
    return {f"cuda:{index}": _card(index) for index in range(torch.cuda.device_count())}


def _card(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return (
        f"{facts.name}, compute {facts.major}.{facts.minor}, "
        f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free, {facts.multi_processor_count} SMs"
    )
