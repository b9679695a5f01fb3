"""One operation, several implementations: the reference, and Triton where it can run.

An operation's file is its specification. The decorated function's docstring is the contract (shapes, dtypes,
source of the method), its body, plain torch, the reference; implementations take the same arguments:

    @op(triton="onecard.kernels.triton.rms_norm:launch")
    def rms_norm(x, weight, eps):
        '''contract'''
        return ...

    @rms_norm.cpu
    def _(x, weight, eps): ...          # only where the plain formulation is not the fast one

A name `module:function` is imported when it is first called: Triton is not needed to import an operation.

The implementation is chosen by the device of the first argument: CUDA runs Triton, or what `cuda` names where
torch has something better and it takes the arguments; a CPU its own or else the reference, and so does
everything else. `KERNELS=reference` in the environment forces the reference everywhere, `KERNELS=triton`
Triton on CUDA (for bisecting and comparing); tests call `rms_norm.run_triton(...)` under `TRITON_INTERPRET=1`
to check the kernel without a GPU.
"""

import functools
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Named = str | Callable[..., Any]
"""`module:function`, or the function itself."""


class Op(Generic[P, R]):
    """A named operation. Calling it runs the implementation for the device of its first tensor argument."""

    def __init__(self, reference: Callable[P, R], triton: Named, cuda: Named | None, cpu: Named | None):
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.run_reference = reference
        self._triton, self._cuda, self._cpu = triton, cuda, cpu
        self._forced = os.environ.get("KERNELS")

    def cpu(self, function: Callable[P, R]) -> Callable[P, R]:
        """What a CPU runs; to be given before the first call."""
        self._cpu = function
        return function

    @property
    def prefers_torch(self) -> bool:
        """On CUDA, for some arguments at least."""
        return self._cuda is not None

    @functools.cached_property
    def run_triton(self) -> Callable[P, R]:
        return _imported(self._triton)

    @functools.cached_property
    def run_cpu(self) -> Callable[P, R]:
        return self.run_reference if self._cpu is None else _imported(self._cpu)

    @functools.cached_property
    def run_cuda(self) -> Callable[P, R]:
        if self._cuda is None or self._forced == "triton":
            return self.run_triton
        first_choice = _imported(self._cuda)

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            result = first_choice(*args, **kwargs)
            return self.run_triton(*args, **kwargs) if result is NotImplemented else result

        return run

    @functools.cached_property
    def _on_cpu(self) -> Callable[P, R]:
        return self.run_reference if self._forced == "reference" else self.run_cpu

    @functools.cached_property
    def _on_cuda(self) -> Callable[P, R]:
        return self.run_reference if self._forced == "reference" else self.run_cuda

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if first.is_cpu:
            return self._on_cpu(*args, **kwargs)
        if first.is_cuda:
            return self._on_cuda(*args, **kwargs)
        return self.run_reference(*args, **kwargs)


def _imported(named: Named) -> Callable[..., Any]:
    if not isinstance(named, str):
        return named
    module, _, function = named.partition(":")
    return getattr(import_module(module), function)


def op(
    *, triton: Named, cuda: Named | None = None, cpu: Named | None = None
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Declare an operation by its reference. What `cuda` names returns NotImplemented for arguments that it
    can't take.
    """
    return lambda reference: Op(reference, triton, cuda, cpu)
