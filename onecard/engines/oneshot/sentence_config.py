"""What an embedding model's own files say about turning token vectors into one: `modules.json` and its
folders.

A folder without `modules.json` is a plain encoder: mean pooling, not normalised, as sentence-transformers
does.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onecard.engines.oneshot.heads.pool import POOLING_MODES, Pooling
from onecard.engines.text.generation_config import ModelFileError, read_any_json, read_json, readable
from onecard.engines.text.hf_tokenizer import model_max_length
from onecard.registry.plain_files import is_there

_TRANSFORMER_CONFIGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
_LEGACY_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceConfig:
    """`max_seq_length` counts special tokens; `transformer_path` is the folder with the encoder's weights."""

    transformer_path: Path
    pooling: Pooling = field(default_factory=Pooling)
    max_seq_length: int | None = None
    do_lower_case: bool = False
    is_matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    """Dimensions that may be asked for; empty for a Matryoshka model: any."""


def load_sentence_config(folder: Path) -> SentenceConfig:
    """Raises `ModelFileError` for a model with a module that this version doesn't run."""
    with readable(folder):
        modules = _modules(folder)
        transformer = folder / modules[0][1] if modules else folder
        file, stated = _stated(transformer)
        config = read_json(transformer / "config.json")
        dimensions = config.get("matryoshka_dimensions") or ()
        return SentenceConfig(
            transformer_path=transformer,
            pooling=_pooling(folder, modules[1:]) if modules else Pooling(),
            max_seq_length=_length(file, stated) or model_max_length(transformer),
            do_lower_case=bool(stated.get("do_lower_case", False)),
            is_matryoshka=bool(dimensions or config.get("is_matryoshka")),
            matryoshka_dimensions=_dimensions(transformer / "config.json", dimensions),
        )


def _stated(transformer: Path) -> tuple[Path, dict[str, Any]]:
    """The first of the encoder's own files that says anything, and what it says."""
    for name in _TRANSFORMER_CONFIGS:
        if stated := read_json(transformer / name):
            return transformer / name, stated
    return transformer, {}


def _length(file: Path, stated: dict[str, Any]) -> int | None:
    length = stated.get("max_seq_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise ModelFileError(f"{file}: max_seq_length should be a whole number of at least 1")
    return length


def _dimensions(file: Path, dimensions: Any) -> tuple[int, ...]:
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in dimensions):
        raise ModelFileError(f"{file}: matryoshka_dimensions should be a list of whole numbers")
    return tuple(sorted(dimensions))


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(class name, folder) of each module in order; the first is the encoder."""
    file = folder / "modules.json"
    if not is_there(file):
        return []
    try:
        entries = sorted(read_any_json(file), key=lambda entry: entry["idx"])
        modules = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (KeyError, TypeError) as error:
        raise ModelFileError(f"{file} is not a list of sentence-transformers modules: {error!r}") from error
    if not modules or modules[0][0] != "Transformer":
        raise ModelFileError(f"{file}: the first module should be a Transformer, not {modules[:1]}")
    for _, path in modules:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ModelFileError(f"{file}: the module {path[:100]!r} would lie outside the model's folder")
    return modules


def _pooling(folder: Path, modules: list[tuple[str, str]]) -> Pooling:
    mode: str | None = None
    normalize = False
    for name, path in modules:
        if name == "Pooling" and mode is None and not normalize:
            mode = _pooling_mode(folder / path / "config.json")
        elif name == "Normalize" and mode is not None:
            normalize = True
        elif name != "Dropout":
            raise ModelFileError(
                f"{folder / 'modules.json'}: the module {name!r} after the encoder is not supported; "
                "models with Transformer, Pooling and Normalize modules can be served"
            )
    for known in POOLING_MODES:
        if mode == known:
            return Pooling(known, normalize)
    raise ModelFileError(
        f"{folder}: pooling {mode!r} is not supported; known are {', '.join(POOLING_MODES)}, one at a time"
    )


def _pooling_mode(file: Path) -> str:
    config = read_json(file)
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        return stated
    modes = list(stated) if stated else [mode for key, mode in _LEGACY_MODES.items() if config.get(key)]
    return "+".join(modes) or "mean"
