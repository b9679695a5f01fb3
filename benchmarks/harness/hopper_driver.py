"""Triton's runtime without a card: kernels are compiled for compute capability 9.0, launches do nothing.

Triton's compiler brings NVIDIA's assembler along, so everything up to the machine code is real; the driver is
the only part that is played. `driver.set_active(HopperDriver())` before the first launch.
"""

from typing import Any

from triton.backends.compiler import GPUTarget

SHARED_BYTES = 227 << 10
"""What a block of compute capability 9.0 may use."""


class _Utils:
    def __init__(self) -> None:
        self.loaded: list[tuple[str, bytes]] = []
        """Names and machine code."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Module, function, registers, spills, most threads a block."""
        assert binary.startswith(b"\x7fELF")
        assert shared <= SHARED_BYTES, f"{name} wants {shared} bytes of shared memory"
        self.loaded.append((name, binary))
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None: ...

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132, "warpSize": 32}


class _Launcher:
    def __init__(self, *_: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> None: ...


class HopperDriver:
    """What Triton's runtime asks of a driver."""

    launcher_cls = _Launcher

    def __init__(self) -> None:
        self.utils = _Utils()

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind
