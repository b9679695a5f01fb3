"""How a linear layer's weights are stored and multiplied: one class a way, chosen by device and precision.

A method packs a loaded weight into a callable `(x [T, in], batch) -> [T, out]`, which is the layer's
`forward`; none of these here asks whose tokens they are. On a CPU the packed forms of oneDNN
and FBGEMM read the weight once in the order that their kernels want it, which F.linear doesn't. They are
internals of torch that a build or a processor may lack, so each is tried on a tiny case before it is used;
F.linear is the fallback.
"""

from collections.abc import Callable
from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from onecard.engines.layers.forward_batch import Batch

Apply = Callable[[torch.Tensor, Batch | None], torch.Tensor]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""By transformers' names of `hidden_act`."""

FLOAT16_MAX = 65504.0


def fits_float16(weight: torch.Tensor) -> bool:
    """Whether no value (NaN counts as one) is beyond float16's range."""
    if not weight.numel():
        return True
    low, high = weight.aminmax()
    return bool(low >= -FLOAT16_MAX) and bool(high <= FLOAT16_MAX)


class LinearMethod(Protocol):
    """`weight_dtype` is what `bind` takes; `copies`: `bind` keeps a form of its own and the weight may be
    freed.
    """

    weight_dtype: torch.dtype
    copies: bool

    def bind(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> tuple[Apply, int]:
        """The layer's arithmetic over `weight [out, in]` and `bias [out]`, and the bytes it holds beside
        them.
        """
        ...

    def nbytes(self, out_features: int, in_features: int) -> int:
        """Bytes that the weight takes once bound."""
        ...


class PlainLinear:
    """F.linear on the weight as it lies. The weight's dtype is the arithmetic's."""

    copies = False

    def __init__(self, weight_dtype: torch.dtype):
        self.weight_dtype = weight_dtype

    def bind(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> tuple[Apply, int]:
        return _then(lambda x, batch: F.linear(x, weight, bias), activation), 0

    def nbytes(self, out_features: int, in_features: int) -> int:
        return out_features * in_features * self.weight_dtype.itemsize


class CpuBfloat16Linear:
    """bfloat16 weights under float32 activations: inputs are rounded, outputs widened."""

    copies = False
    weight_dtype = torch.bfloat16

    def bind(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> tuple[Apply, int]:
        narrow_bias = None if bias is None else bias.to(torch.bfloat16)

        def apply(x: torch.Tensor, batch: Batch | None) -> torch.Tensor:
            return F.linear(x.to(torch.bfloat16), weight, narrow_bias).float()

        return _then(apply, activation), 0

    def nbytes(self, out_features: int, in_features: int) -> int:
        return out_features * in_features * 2


_POST_OPS: dict[str | None, tuple[str, str]] = {
    None: ("none", ""),
    "relu": ("relu", ""),
    "gelu": ("gelu", "none"),
    "gelu_new": ("gelu", "tanh"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
}
"""oneDNN's name of an activation and of the algorithm that computes it."""


def padded_rows(rows: int) -> int:
    """The count that `rows` are padded to: each up to 16, then eight an octave (an eighth more at most)."""
    step = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // step) * step


class OneDnnFloat32Linear:
    """float32 weights in oneDNN's blocked layout; GELU and ReLU run inside the product's epilogue.

    oneDNN compiles a kernel for every number of rows that it meets, which takes milliseconds, and keeps some
    half a megabyte of each for good. Ragged batches have a new number each, so rows are padded to a few.
    """

    copies = True
    weight_dtype = torch.float32

    def bind(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> tuple[Apply, int]:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        multiply = torch.ops.mkldnn._linear_pointwise.default
        post_op, algorithm = _POST_OPS[activation]

        def apply(x: torch.Tensor, batch: Batch | None) -> torch.Tensor:
            rows = x.shape[0]
            more = padded_rows(rows) - rows
            if not more:
                return multiply(x, packed, bias, post_op, [], algorithm)
            return multiply(F.pad(x, (0, 0, 0, more)), packed, bias, post_op, [], algorithm)[:rows]

        return apply, self.nbytes(*weight.shape)

    def nbytes(self, out_features: int, in_features: int) -> int:
        return out_features * in_features * 4


_FBGEMM_ROWS = 512
"""Input features in a block of FBGEMM's packed float16 matrix."""


class FbgemmFloat16Linear:
    """float16 weights in FBGEMM's packed layout under float32 activations, accumulated in float32.

    The packed form is padded to whole blocks of input features, so a narrow model gains speed more than
    memory. A weight that float16 can't hold (beyond 65504) stays in float32.
    """

    copies = True
    weight_dtype = torch.float32

    def bind(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
    ) -> tuple[Apply, int]:
        if not fits_float16(weight):
            return cpu_float32_method().bind(weight, bias, activation)
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        held = self.nbytes(*weight.shape)
        if activation == "relu":
            multiply_relu = torch.ops.quantized.linear_relu_dynamic_fp16.default
            return lambda x, batch: multiply_relu(x, packed), held
        multiply = torch.ops.quantized.linear_dynamic_fp16.default

        def apply(x: torch.Tensor, batch: Batch | None) -> torch.Tensor:
            return multiply(x, packed)

        return _then(apply, activation), held

    def nbytes(self, out_features: int, in_features: int) -> int:
        return 2 * _rounded_up(out_features, 16) * _rounded_up(in_features, _FBGEMM_ROWS)


def _rounded_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _then(apply: Apply, activation: str | None) -> Apply:
    if activation is None:
        return apply
    function = ACTIVATIONS[activation]
    return lambda x, batch: function(apply(x, batch))


def linear_method(device_type: str, dtype: torch.dtype) -> LinearMethod:
    """The best method that works here for weights stored as `dtype` (float32, float16 or bfloat16)."""
    if device_type != "cpu":
        return PlainLinear(dtype)
    if dtype == torch.float32:
        return cpu_float32_method()
    if dtype == torch.bfloat16:
        method: LinearMethod = CpuBfloat16Linear()
    else:
        method = FbgemmFloat16Linear()
    return method if works(type(method)) else cpu_float32_method()


def cpu_float32_method() -> LinearMethod:
    return OneDnnFloat32Linear() if works(OneDnnFloat32Linear) else PlainLinear(torch.float32)


@cache
def works(method_class: type[LinearMethod]) -> bool:
    """Whether the method runs on this machine and agrees with F.linear on a tiny case (exact in 16 bits)."""
    weight = (torch.arange(24 * 16, dtype=torch.float32).reshape(24, 16) % 7 - 3) / 4
    bias = torch.arange(24, dtype=torch.float32) / 8 - 1
    x = (torch.arange(5 * 16, dtype=torch.float32).reshape(5, 16) % 5 - 2) / 2
    method = method_class()
    try:
        with torch.inference_mode():
            got = method.bind(weight.to(method.weight_dtype), bias, None)[0](x, None)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return got.dtype == x.dtype and torch.allclose(got, F.linear(x, weight, bias), rtol=1e-2, atol=1e-2)
