"""What a model's makers recommend where a request is silent: sampling parameters and end tokens.

Read from `generation_config.json` (then `config.json` for the end tokens) or from a GGUF file's metadata.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecard.engines.weights.gguf_file import GgufFile
from onecard.registry import plain_files
from onecard.registry.plain_files import FileRefusedError, is_folder, is_there

Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_SANE: dict[str, tuple[Check, str]] = {
    "temperature": (lambda v: _number(v) and 0 <= v <= 100, "a number from 0 to 100"),
    "top_p": (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "top_k": (lambda v: _whole(v) and -1 <= v < 2**31, "a whole number of at least -1"),
    "min_p": (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "repetition_penalty": (lambda v: _number(v) and 0 < v <= 100, "a number above 0, up to 100"),
    "max_tokens": (lambda v: _whole(v) and 1 <= v < 2**31, "a whole number of at least 1"),
}
"""What a value may be; with anything else a model would load, and every request fail."""

_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
"""Hugging Face's names, and ours (`api.SamplingParams`)."""

_GGUF_NAMES = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


class ModelFileError(ValueError):
    """A tokenizer, template or JSON file beside a model's weights that can't be used; the message names it
    and says why."""


@dataclass(frozen=True)
class GenerationDefaults:
    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields of `api.SamplingParams` that the model's files set."""
    eos_token_ids: tuple[int, ...] = ()


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever the content of `path` makes fail inside is a `ModelFileError` that names it: strangers' files
    are wrong in more ways than can be foreseen. Errors that were raised to be read pass."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.startswith("onecard."):
            raise
        raise ModelFileError(f"{path} says what makes no sense: {type(error).__name__}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty where there is no such file. Raises `ModelFileError` with the path."""
    content = read_any_json(path) if is_there(path) else {}
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} should hold a JSON object")
    return content


def read_any_json(path: Path) -> Any:
    try:
        return plain_files.read_json(path)
    except FileRefusedError as error:
        raise ModelFileError(str(error)) from error


def read_text(path: Path) -> str:
    """Raises `ModelFileError` with the path."""
    try:
        return plain_files.read_text(path)
    except FileRefusedError as error:
        raise ModelFileError(str(error)) from error


def load_generation_defaults(path: Path) -> GenerationDefaults:
    """`path`: a model folder or a GGUF file. Missing files mean no defaults. Raises `ModelFileError`."""
    if not is_folder(path):
        metadata = GgufFile(path).metadata
        sampling = _sane(path, metadata, _GGUF_NAMES)
        return GenerationDefaults(sampling, _ids(path, metadata.get("tokenizer.ggml.eos_token_id")))
    file = path / "generation_config.json"
    generation, config = read_json(file), read_json(path / "config.json")
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return GenerationDefaults(_sane(file, generation, _NAMES), _ids(file, eos))


def _sane(file: Path, stated: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    sampling: dict[str, Any] = {}
    for name, ours in names.items():
        value = stated.get(name)
        if value is None:
            continue
        fits, wanted = _SANE[ours]
        if not fits(value):
            raise ModelFileError(f"{file}: {name} is {str(value)[:50]!r}; it should be {wanted}")
        sampling[ours] = value
    return sampling


def _ids(file: Path, ids: Any) -> tuple[int, ...]:
    """Of one token or several."""
    listed = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if not all(_whole(token) and 0 <= token < 2**31 for token in listed):
        raise ModelFileError(f"{file}: eos_token_id should be the number of a token, or a list of such")
    return tuple(listed)
