"""What an error of a step means: a shortage of memory, a card that is lost, or that step's own trouble;
and the end of a process whose card is lost.

Torch raises `OutOfMemoryError` where its own allocator of a card is at its end, `AcceleratorError` ("CUDA
error: ...") for every other failed call of CUDA's runtime, and plain `RuntimeError`s for the driver, cuBLAS,
cuDNN and a CPU's allocator; Triton raises `RuntimeError("Triton Error [CUDA]: ...")`. Only the text tells
them apart. After most of CUDA's errors every later call of the process fails as well (CUDA Runtime API: the
process "must be terminated and relaunched"); those of a call's own arguments leave the card alone.
"""

import logging
import os
import sys
from typing import Literal, NoReturn

import torch

Failure = Literal["memory", "fatal", "step"]

_CALLS_TO_CUDA = ("cuda error", "cuda driver error", "triton error [cuda]", "cublas_status_", "cudnn_status_")

_MEMORY = (
    "cuda error: out of memory",
    "cuda driver error: out of memory",
    "triton error [cuda]: out of memory",
    "status_alloc_failed",
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
)

_HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "too many resources requested for launch",
    "no kernel image is available",
    "operation not supported",
    "status_invalid_value",
    "status_not_supported",
    "status_bad_param",
    "status_arch_mismatch",
)
"""A call to CUDA that was refused and has changed nothing."""

_LOST = ("device-side assert", "an illegal memory access was encountered", "unspecified launch failure")
"""Says that the card is lost, whoever says it."""


def classify(error: BaseException) -> Failure:
    """memory: the same in smaller steps may work. fatal: the process can't use its card any more. step: all
    else.

    An error that was raised while another one was handled is as fatal as that one.
    """
    chain = _chain(error)
    if any(_is_fatal(link) for link in chain):
        return "fatal"
    return "memory" if _is_memory(error) else "step"


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _says(error, _MEMORY)


def _is_fatal(error: BaseException) -> bool:
    if not isinstance(error, RuntimeError) or _is_memory(error):
        return False
    called = isinstance(error, torch.AcceleratorError) or _says(error, _CALLS_TO_CUDA)
    return _says(error, _LOST) or (called and not _says(error, _HARMLESS))


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    """Whether the error's first line has one of these; the lines below are general advice."""
    first_line = str(error).partition("\n")[0].lower()
    return any(phrase in first_line for phrase in phrases)


logger = logging.getLogger(__name__)

EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits.h."""


_CARD_LOST = (
    "The card is lost: %s. After this error CUDA works for none of this process's models, so the process "
    "ends with status %d; its supervisor must start it again. To find the cause, run it with "
    "CUDA_LAUNCH_BLOCKING=1 (the error is then raised where it arises), or with KERNELS=reference (if the "
    "error is gone then, one of onecard's kernels is at fault)."
)
_LOOP_ENDED = (
    "A device loop has ended, and with it everything on its card: %s. This is a bug in onecard; the process "
    "ends with status %d; its supervisor must start it again."
)


def end_process(error: BaseException) -> NoReturn:
    """Logs what has happened and ends the process at once, without cleaning up: that would call CUDA.

    Clients see their connections close.
    """
    what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    sentence = _CARD_LOST if classify(error) == "fatal" else _LOOP_ENDED
    logger.critical(sentence, what, EXIT_STATUS, exc_info=error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_STATUS)
