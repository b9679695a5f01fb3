"""Which tensor of a checkpoint goes where in a model.

The model says it itself: its parameters are named as the checkpoint's, a `Linear` with `parts` takes one
tensor a part, and the class names a prefix to drop, renamings, and tensors that it doesn't use.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from onecard.engines.layers.linear import Linear
from onecard.engines.models.served_module import ServedModule
from onecard.engines.weights.checkpoint import Checkpoint, LoadError, TensorInfo


@dataclass(frozen=True)
class Destination:
    """Rows `start .. start + shape[0]` of a module's parameter; `whole` where that is all of it."""

    module_name: str
    module: nn.Module
    parameter: str
    start: int
    shape: tuple[int, ...]
    whole: bool


_LAYER = re.compile(r"(?:^|\.)layers?\.(\d{1,9})\.")
"""Of a decoder `layers.3.`, of an encoder `layer.3.`."""

Placed = Mapping[str, tuple[Destination, ...]]
"""Checkpoint names, in the checkpoint's order, with the places that each tensor is copied to."""


def check_layers(path: Path, checkpoint: Checkpoint, layers: int) -> None:
    """Raises `LoadError` where a config promises more layers than its checkpoint has: before they are built,
    which takes time and memory for each."""
    there = {int(match[1]) for name in checkpoint.tensors if (match := _LAYER.search(name))}
    if layers > len(there):
        raise LoadError(
            f"{path}: the config says {layers} layers (num_hidden_layers), but the weights have "
            f"{len(there)}; one of the two is of another model"
        )


def place(model: ServedModule, tensors: Mapping[str, TensorInfo]) -> tuple[Placed, tuple[str, ...]]:
    """Where each tensor goes, and the names that the model ignores on purpose.

    Raises `LoadError` if a parameter gets nothing, a tensor has no place, or shapes differ. No weights are
    read.
    """
    expected = _destinations(model)
    placed: dict[str, tuple[Destination, ...]] = {}
    ignored, extra, wrong = [], [], []
    for name, info in tensors.items():
        ours = _model_name(model, name)
        if ours in expected:
            placed[name] = places = expected.pop(ours)
            wrong += [
                f"{name} is {list(info.shape)}, not {list(p.shape)}" for p in places if p.shape != info.shape
            ]
        elif any(re.fullmatch(pattern, ours) for pattern in model.ignored_weights):
            ignored.append(name)
        else:
            extra.append(name)
    problems = [
        *_problem("tensors that the model needs are missing", list(expected)),
        *_problem("tensors have no place in the model", extra),
        *_problem("shapes don't match the config", wrong),
    ]
    if problems:
        raise LoadError(f"the checkpoint doesn't fit {type(model).__name__}: " + "; ".join(problems))
    return placed, tuple(ignored)


def _problem(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return [f"{len(names)} {what} ({', '.join(sorted(names)[:10])}{more})"]


def _model_name(model: ServedModule, name: str) -> str:
    name = name.removeprefix(model.checkpoint_prefix)
    for old, new in model.renamed_weights:
        name = name.replace(old, new)
    return name


def _destinations(model: ServedModule) -> dict[str, tuple[Destination, ...]]:
    """Every name that the model expects, with the places that it fills."""
    found: dict[str, tuple[Destination, ...]] = {}
    for module_name, module in model.named_modules():
        for source, destination in _of_module(module_name, module):
            source = model.shared_weights.get(source, source)
            found[source] = (*found.get(source, ()), destination)
    return found


def _of_module(module_name: str, module: nn.Module) -> Iterator[tuple[str, Destination]]:
    parts = module.parts if isinstance(module, Linear) else {}
    parent = module_name.rpartition(".")[0]
    for name, parameter in module.named_parameters(recurse=False):
        shape = tuple(parameter.shape)
        if not parts:
            yield f"{module_name}.{name}", Destination(module_name, module, name, 0, shape, whole=True)
        start = 0
        for part, rows in parts.items():
            place = Destination(module_name, module, name, start, (rows, *shape[1:]), whole=False)
            yield f"{parent}.{part}.{name}", place
            start += rows
