"""The C library's heap."""

import ctypes
import gc
import sys


def give_back_heap() -> None:
    """Return what is free in the heap to the system, where the C library can (glibc).

    It keeps freed blocks otherwise, a model's weights and what was read to make them included, in a heap of
    its own for every thread. Takes some 10 ms after a large release, else 1.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def collect_garbage() -> None:
    """Free what only refers to itself by now, and return it to the system. Takes some 0.2 s of the GIL."""
    gc.collect()
    give_back_heap()
