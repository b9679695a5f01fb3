import ctypes
import sys

import psutil
import pytest

from onecard.engines.runtime.memory_use import give_back_heap

BLOCK, COUNT = 64 << 10, 2000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_memory_below_a_block_in_use_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("needs glibc")
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    resident = psutil.Process().memory_info
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    *freed, kept = blocks
    for block in freed:
        libc.free(block)
    before = resident().rss
    give_back_heap()
    assert before - resident().rss > 0.8 * BLOCK * COUNT
    assert ctypes.string_at(kept, BLOCK) == b"\1" * BLOCK
    libc.free(kept)
    give_back_heap()
