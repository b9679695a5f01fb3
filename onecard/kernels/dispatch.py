"""One operation, several implementations: the reference, and Triton where it can run.

An operation file reads as a specification:

    @op
    def rms_norm(x, weight, eps):
        '''contract: shapes, dtypes, source of the method'''

    @rms_norm.reference
    def _(x, weight, eps): ...          # plain torch; this is the specification

    @rms_norm.triton
    def _(x, weight, eps):              # imports its kernel inside: Triton is not needed to import this file
        from onecard.kernels.triton.rms_norm import launch
        return launch(x, weight, eps)

The implementation is chosen by the device of the first argument: CUDA runs Triton, or `@rms_norm.cuda` where
torch has something better and it takes the arguments; a CPU runs the reference, or `@rms_norm.cpu` where the
plain formulation is not the fast one; everything else the reference. `KERNELS=reference` in the environment
forces the reference everywhere, `KERNELS=triton` Triton on CUDA (for bisecting and comparing); tests call
`rms_norm.run_triton(...)` under `TRITON_INTERPRET=1` to check the kernel without a GPU.
"""

import functools
import os
from collections.abc import Callable
from types import NotImplementedType
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Op(Generic[P, R]):
    """A named operation. Calling it runs the implementation for the device of its first tensor argument."""

    def __init__(self, contract: Callable[P, R]):
        functools.update_wrapper(self, contract)
        self.name = contract.__name__
        self._reference: Callable[P, R] | None = None
        self._cpu: Callable[P, R] | None = None
        self._triton: Callable[P, R] | None = None
        self._cuda: Callable[P, R | NotImplementedType] | None = None
        self._forced = os.environ.get("KERNELS")

    def reference(self, function: Callable[P, R]) -> Callable[P, R]:
        self._reference = function
        return function

    def cpu(self, function: Callable[P, R]) -> Callable[P, R]:
        self._cpu = function
        return function

    def triton(self, function: Callable[P, R]) -> Callable[P, R]:
        self._triton = function
        return function

    def cuda(self, function: Callable[P, R | NotImplementedType]) -> Callable[P, R | NotImplementedType]:
        """What CUDA tries before Triton; it returns NotImplemented for arguments that it can't take."""
        self._cuda = function
        return function

    @property
    def prefers_torch(self) -> bool:
        """On CUDA, for some arguments at least."""
        return self._cuda is not None

    def run_reference(self, *args: P.args, **kwargs: P.kwargs) -> R:
        assert self._reference is not None, f"{self.name} has no reference"
        return self._reference(*args, **kwargs)

    def run_triton(self, *args: P.args, **kwargs: P.kwargs) -> R:
        assert self._triton is not None, f"{self.name} has no Triton kernel"
        return self._triton(*args, **kwargs)

    def run_cpu(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return (self._cpu or self.run_reference)(*args, **kwargs)

    def run_cuda(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._cuda is not None and self._forced != "triton":
            result = self._cuda(*args, **kwargs)
            if not isinstance(result, NotImplementedType):
                return result
        return self.run_triton(*args, **kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if self._forced == "reference":
            return self.run_reference(*args, **kwargs)
        if first.is_cuda and self._triton is not None:
            return self.run_cuda(*args, **kwargs)
        if first.is_cpu:
            return self.run_cpu(*args, **kwargs)
        return self.run_reference(*args, **kwargs)


def op(contract: Callable[P, R]) -> Op[P, R]:
    """Declare an operation; the decorated function's signature and docstring are its contract."""
    return Op(contract)
