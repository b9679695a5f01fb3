"""What a model's makers recommend where a request is silent: sampling parameters and end tokens.

Read from `generation_config.json` (then `config.json` for the end tokens) or from a GGUF file's metadata.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecard.engines.weights.gguf_file import GgufFile

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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty where there is no such file. Raises `ModelFileError` with the path."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} should hold a JSON object")
    return content


def read_text(path: Path) -> str:
    """Raises `ModelFileError` with the path."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} can't be read: save it as UTF-8 ({error})") from error


def load_generation_defaults(path: Path) -> GenerationDefaults:
    """`path`: a model folder or a GGUF file. Missing files mean no defaults."""
    if path.is_file():
        metadata = GgufFile(path).metadata
        sampling = {ours: metadata[key] for key, ours in _GGUF_NAMES.items() if key in metadata}
        eos = metadata.get("tokenizer.ggml.eos_token_id")
        return GenerationDefaults(sampling, () if eos is None else (eos,))
    generation = read_json(path / "generation_config.json")
    config = read_json(path / "config.json")
    sampling = {ours: generation[name] for name, ours in _NAMES.items() if generation.get(name) is not None}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return GenerationDefaults(sampling, _as_tuple(eos))


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)
