"""Fill a model from a checkpoint, tensor by tensor.

Everything is checked from the headers before the first weight is read. A linear layer is packed as soon as
its last matrix is in, so that host memory peaks at the model plus the few tensors that are being read.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from onecard.engines.layers.linear import Linear
from onecard.engines.layers.linear_methods import FLOAT16_MAX, fits_float16
from onecard.engines.layers.precision import precision_for
from onecard.engines.models.config import ModelConfig
from onecard.engines.models.registry import build_model
from onecard.engines.models.served_module import ServedModule
from onecard.engines.weights.allocator import HeapAllocator, WeightAllocator, aligned
from onecard.engines.weights.checkpoint import Checkpoint, LoadError, SafetensorsCheckpoint, find_shards
from onecard.engines.weights.mapping import Destination, check_layers, place
from onecard.registry.plain_files import is_folder

Progress = Callable[[int, int], None]
"""Called with the bytes of the checkpoint that have been read, and all of them."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_READERS = 2
"""Threads that read and dequantise ahead of the one that packs."""

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def open_checkpoint(path: Path) -> Checkpoint:
    """The safetensors of a Hugging Face folder, or a .gguf file. Raises `LoadError`; never opens a pickle."""
    if path.suffix == ".gguf":
        from onecard.engines.weights.gguf import GgufCheckpoint  # the gguf package is for such files only

        return GgufCheckpoint(path)
    if path.suffix in _PICKLES:
        raise _refused(path)
    if not is_folder(path):
        raise LoadError(f"{path} is neither a .gguf file nor a folder with safetensors")
    shards = find_shards(path)
    if shards:
        return SafetensorsCheckpoint(shards)
    pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _refused(pickles[0])
    raise LoadError(f"{path} holds no .safetensors file")


def _refused(path: Path) -> LoadError:
    return LoadError(
        f"{path} is a pickle, which can run code when it is read; convert the checkpoint to safetensors "
        "(transformers' save_pretrained writes it) or take one that is"
    )


@dataclass(frozen=True)
class WeightBytes:
    """`home`: weights and tables at the places that an allocator gave them, gaps for alignment included.
    `packed`: what libraries hold in memory of their own."""

    home: int
    packed: int

    @property
    def total(self) -> int:
        return self.home + self.packed


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    `held`: what its weights and tables take. `dtype_used`: what its matrices are stored in ("float32",
    "float16", "bfloat16"). `activation_dtype`: of its hidden states, and of the K and V that it makes.
    `ignored`: tensors of the checkpoint that it doesn't use, by intent.
    """

    model: nn.Module
    held: WeightBytes
    dtype_used: str
    activation_dtype: torch.dtype
    ignored: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        return self.held.total


def load_model(
    path: Path,
    config: ModelConfig,
    device: torch.device,
    dtype: str = "auto",
    allocator: WeightAllocator | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """The model that `config` describes with the weights at `path` (a folder of safetensors, or a .gguf
    file).

    `allocator` gives every parameter's memory on `device` (default: torch's own). Raises `LoadError`.
    """
    checkpoint = open_checkpoint(path)
    storage = _storage_dtype(checkpoint, dtype, device.type)
    precision = precision_for(device.type, storage)
    check_layers(path, checkpoint, config.num_hidden_layers)
    model = build_model(config, precision)
    filler = _Filler(model, allocator or HeapAllocator(device))
    ignored = filler.fill(checkpoint, progress)
    _shorten_lookups(model)
    held = WeightBytes(filler.home_bytes, filler.packed_bytes)
    return LoadedModel(model.eval(), held, str(storage).removeprefix("torch."), precision.compute, ignored)


def weight_needs(path: Path, config: ModelConfig, dtype: str, device_type: str) -> WeightBytes:
    """What `load_model` will hold, from the headers alone. Raises `LoadError`, for weights that don't fit
    too. A matrix beyond float16's range takes more: only its values tell."""
    checkpoint = open_checkpoint(path)
    precision = precision_for(device_type, _storage_dtype(checkpoint, dtype, device_type))
    check_layers(path, checkpoint, config.num_hidden_layers)
    model = build_model(config, precision)
    try:
        place(model, checkpoint.tensors)
    except LoadError as error:
        raise LoadError(f"{path}: {error}") from error
    staged = {
        id(m.weight): precision.linear.nbytes(*m.weight.shape)
        for m in model.modules()
        if isinstance(m, Linear) and m.weight_is_copied and m.weight is not None
    }
    tensors = [*model.parameters(), *model.buffers()]
    home = sum(aligned(tensor.nbytes) for tensor in tensors if id(tensor) not in staged)
    return WeightBytes(home, sum(staged.values()))


def activation_dtype(path: Path, dtype: str, device_type: str) -> torch.dtype:
    """What a model loaded so will compute in, and keep its K and V in; from the headers alone."""
    return precision_for(device_type, _storage_dtype(open_checkpoint(path), dtype, device_type)).compute


def _storage_dtype(checkpoint: Checkpoint, dtype: str, device_type: str) -> torch.dtype:
    """`auto`: a CPU keeps float32 and takes everything else as float16; a GPU keeps 16 bits and else takes
    bfloat16."""
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise LoadError(f"dtype {dtype!r} isn't served; choose auto, {', '.join(_DTYPES)}")
        return _DTYPES[dtype]
    stored = _stored_dtype(checkpoint)
    if device_type == "cpu":
        return torch.float32 if stored in (torch.float32, torch.float64) else torch.float16
    return torch.float16 if stored == torch.float16 else torch.bfloat16


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """What most bytes of the checkpoint are stored in; None: quantised."""
    sizes: Counter[torch.dtype | None] = Counter()
    for info in checkpoint.tensors.values():
        sizes[info.dtype] += info.nbytes
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def _shorten_lookups(model: nn.Module) -> None:
    """Put parameters and submodules where Python looks first.

    nn.Module finds them by its slow `__getattr__`: half of the Python time of a small model's step. The model
    must not be moved after this; replacing a parameter by assignment still works.
    """
    for module in model.modules():
        for found in (module._modules, module._parameters, module._buffers):
            module.__dict__.update(found)


class _Filler:
    """Gives every parameter of a meta model its memory and its values."""

    def __init__(self, model: ServedModule, allocator: WeightAllocator):
        self.model = model
        self.allocator = allocator
        self.home_bytes = self.packed_bytes = 0
        self._open: Counter[str] = Counter()

    @torch.no_grad()
    def fill(self, checkpoint: Checkpoint, progress: Progress | None) -> tuple[str, ...]:
        """All weights, then the tables; returns the names that the model ignores. Raises `LoadError`."""
        placed, ignored = place(self.model, checkpoint.tensors)
        for places in placed.values():
            self._open.update(place.module_name for place in places)
        done, total = 0, sum(checkpoint.tensors[name].nbytes for name in placed)
        for name, tensor in _read_ahead(checkpoint, list(placed)):
            for destination in placed[name]:
                self._copy(name, tensor, destination)
            done += checkpoint.tensors[name].nbytes
            if progress is not None:
                progress(done, total)
        for name, values in self.model.tables().items():
            self.model.register_buffer(name, self._memory(name, values, staged=False).copy_(values))
        self.model.finalize()
        return ignored

    def _copy(self, name: str, tensor: torch.Tensor, destination: Destination) -> None:
        module, key = destination.module, destination.parameter
        parameter = getattr(module, key)
        staged = key == "weight" and isinstance(module, Linear) and module.weight_is_copied
        if staged and destination.whole and tensor.dtype == parameter.dtype:
            setattr(module, key, nn.Parameter(tensor, requires_grad=False))
        else:
            if parameter.is_meta:
                memory = self._memory(f"{destination.module_name}.{key}", parameter, staged)
                parameter = nn.Parameter(memory, requires_grad=False)
                setattr(module, key, parameter)
            _check_range(name, tensor, parameter.dtype)
            parameter.data[destination.start : destination.start + destination.shape[0]].copy_(tensor)
        self._open[destination.module_name] -= 1
        if isinstance(module, Linear) and not self._open[destination.module_name]:
            held = module.finalize()
            self.packed_bytes += held
            self.allocator.count(f"{destination.module_name}.weight", held)

    def _memory(self, name: str, like: torch.Tensor, staged: bool) -> torch.Tensor:
        if staged:
            return torch.empty(like.shape, dtype=like.dtype)
        tensor = self.allocator.empty(name, tuple(like.shape), like.dtype)
        self.home_bytes += aligned(tensor.nbytes)
        return tensor


def _check_range(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and tensor.dtype != torch.float16 and not fits_float16(tensor):
        raise LoadError(
            f"{name} holds values beyond float16's {FLOAT16_MAX:.0f}; set dtype to bfloat16 or float32"
        )


def _read_ahead(checkpoint: Checkpoint, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in order, while the next ones are read by other threads."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="weights") as pool:
        reading: deque[tuple[str, Future[torch.Tensor]]] = deque()
        for name in names:
            reading.append((name, pool.submit(checkpoint.read, name)))
            if len(reading) > _READERS:
                ready, future = reading.popleft()
                yield ready, future.result()
        for ready, future in reading:
            yield ready, future.result()
