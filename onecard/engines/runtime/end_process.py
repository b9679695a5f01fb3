"""The end of a process whose card is lost: say why, and leave the rest to the supervisor."""

import logging
import os
import sys
from typing import NoReturn

from onecard.engines.runtime.failures import classify

logger = logging.getLogger(__name__)

EXIT_STATUS = 70
"""EX_SOFTWARE of sysexits.h."""


def end_process(error: BaseException) -> NoReturn:
    """Logs what has happened and ends the process at once, without cleaning up: that would call CUDA.

    Clients see their connections close.
    """
    what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if classify(error) == "fatal":
        logger.critical(
            "The card is lost: %s. After this error CUDA works for none of this process's models, so the "
            "process ends with status %d; its supervisor must start it again. To find the cause, run it with "
            "CUDA_LAUNCH_BLOCKING=1 (the error is then raised where it arises), or with KERNELS=reference "
            "(if the error is gone then, one of onecard's kernels is at fault).",
            what,
            EXIT_STATUS,
            exc_info=error,
        )
    else:
        logger.critical(
            "A device loop has ended, and with it everything on its card: %s. This is a bug in onecard; the "
            "process ends with status %d; its supervisor must start it again.",
            what,
            EXIT_STATUS,
            exc_info=error,
        )
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_STATUS)
