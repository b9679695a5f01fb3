"""What errors mean, by those that torch, numpy and the operating system really raise."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from onecard.engines.runtime.failures import EXIT_STATUS, classify

HELP = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below "
    "might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with "
    "`TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)


def raised(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("it raises nothing")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
        lambda: torch.zeros(8).expand(1 << 50, 8).clone(),
        lambda: np.empty(1 << 60, dtype=np.uint8),
        lambda: bytearray(1 << 62),
    ],
    ids=["torch", "torch-operator", "numpy", "python"],
)
def test_what_this_machine_raises_without_memory(allocate):
    assert classify(raised(allocate)) == "memory"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB ..."
        ),
        torch.AcceleratorError("CUDA error: out of memory" + HELP),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=str,
)
def test_shortages_of_a_card_s_memory(error):
    assert classify(error) == "memory"


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + HELP),
        torch.AcceleratorError("CUDA error: device-side assert triggered" + HELP),
        torch.AcceleratorError("CUDA error: unspecified launch failure" + HELP),
        torch.AcceleratorError("CUDA error: misaligned address" + HELP),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + HELP),
        RuntimeError("CUDA error: an illegal instruction was encountered" + HELP),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, ...)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasLtMatmul(...)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: device-side assert triggered"),
    ],
    ids=str,
)
def test_errors_after_which_cuda_works_no_more(error):
    assert classify(error) == "fatal"


@pytest.mark.parametrize(
    "error",
    [
        raised(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)),
        raised(lambda: torch.zeros(3)[torch.tensor([5])]),
        raised(lambda: torch.zeros(2).cuda() if not torch.cuda.is_available() else [][0]),
        ValueError("out of memory, said the user"),
        torch.AcceleratorError("CUDA error: invalid configuration argument" + HELP),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device" + HELP),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle, ...)`"),
        RuntimeError("Triton Error [CUDA]: invalid argument"),
        RuntimeError("the model said: device failed\nCUDA error: is only general advice here"),
    ],
    ids=lambda error: str(error)[:60],
)
def test_a_step_s_own_trouble(error):
    assert classify(error) == "step"


def test_an_error_while_a_lost_card_is_dealt_with_is_as_fatal():
    def clean_up() -> None:
        try:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        except RuntimeError:
            raise KeyError("row") from None

    def wrap() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except RuntimeError as error:
            raise ValueError("no luck") from error

    assert classify(raised(clean_up)) == "fatal"
    assert classify(raised(wrap)) == "step"


PROCESS = """
import logging, threading, time, torch
from onecard.engines.runtime.failures import end_process
logging.basicConfig(level="INFO")
print("unflushed", end="")
def die():
    try:
        raise {error}
    except Exception as error:
        end_process(error)
threading.Thread(target=die).start()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            'torch.AcceleratorError("CUDA error: device-side assert triggered")',
            ["The card is lost", "device-side assert", "CUDA_LAUNCH_BLOCKING=1", "KERNELS=reference"],
        ),
        ('KeyError("engine")', ["A device loop has ended", "KeyError: 'engine'", "a bug in onecard"]),
    ],
)
def test_the_end_of_the_process_says_why_and_asks_for_a_restart(error, words):
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(error=error)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == EXIT_STATUS == 70
    assert done.stdout == "unflushed"
    assert "CRITICAL" in done.stderr
    assert "Traceback" in done.stderr
    for word in [*words, "supervisor must start it again"]:
        assert word in done.stderr
