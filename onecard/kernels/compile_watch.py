"""Tells when Triton compiles: while requests are served that would stop a step for seconds."""

from collections.abc import Callable
from typing import Any


class CompilationWatch:
    """Calls back until it is closed; also a context manager. See `watch_compilations`."""

    def __init__(self, callback: Callable[[str], None], runtime: Any):
        self._callback = callback
        self._runtime = runtime
        self._before = runtime.jit_post_compile_hook
        self._installed = self._hook  # one object: a bound method is a new one each time it is read
        self._open = True
        runtime.jit_post_compile_hook = self._installed

    def _hook(self, **compilation: Any) -> Any:
        if self._open:
            kernel = compilation["fn"]
            self._callback(f"{kernel.module}.{kernel.name}")
        return self._before(**compilation) if self._before is not None else None

    def close(self) -> None:
        """No more calls. The hook is taken out, unless another one was put on top and leads through it."""
        self._open = False
        if self._runtime.jit_post_compile_hook is self._installed:
            self._runtime.jit_post_compile_hook = self._before

    def __enter__(self) -> "CompilationWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def watch_compilations(callback: Callable[[str], None]) -> CompilationWatch:
    """Call `callback("module.name")` after each compilation of a kernel, on the thread that launched it.

    A kernel's code that comes from Triton's cache on the disk counts, since loading it stops the step, too;
    a kernel that this process has used before with arguments of the same kind doesn't. A hook that was there
    before is called after ours. Raises ImportError where Triton is not installed.
    """
    from triton import knobs

    return CompilationWatch(callback, knobs.runtime)
