"""Which files a hub's repository has: kept beside what was fetched of it, since what is here tells nothing of
what isn't.

Another tool may have filled the hub's cache with less than onecard reads: a model without its pooling or its
template is another model.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from onecard.registry.plain_files import FileRefusedError, is_there, read_json
from onecard.registry.sources.base import publishing

_LARGEST = 32 << 20
ALLOWED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")
IGNORED = ("onnx/*", "openvino/*", "original/*", "consolidated*.safetensors")
"""Fetched are weights, configs, chat templates and tokenizer files of every sort; not the same weights once
more, in layouts that onecard does not read."""

CHANGING_ANSWERS = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
"""Files that a repository may have and without which its model is served another way."""


def wanted(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that onecard fetches."""
    return [name for name in names if _matches(name, ALLOWED) and not _matches(name, IGNORED)]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def lacking(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of `names` that aren't in `folder`."""
    return [name for name in names if not (folder / name).is_file()]


def is_complete(folder: Path) -> bool:
    """Whether a folder has a config and every shard of its safetensors weights."""
    if not (folder / "config.json").is_file():
        return False
    indexes = list(folder.glob("*.safetensors.index.json"))
    if not indexes:
        return any(folder.glob("*.safetensors"))
    try:
        shards = {
            str(name) for index in indexes for name in read_json(index, _LARGEST)["weight_map"].values()
        }
    except (FileRefusedError, KeyError, TypeError, AttributeError):
        return False
    return not lacking(folder, shards)


def remember(file: Path, names: Iterable[str]) -> None:
    """Keep `names` in `file`; where it can't be written they are asked for again the next time."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        with publishing(file) as scratch:
            (scratch / file.name).write_text(json.dumps(sorted(names), indent=1), encoding="utf-8")


def remembered(file: Path) -> list[str] | None:
    """What `remember` kept there; None for nothing that can be read."""
    if not is_there(file):
        return None
    try:
        names = read_json(file, _LARGEST)
    except FileRefusedError:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def unknown(name: str, folder: Path) -> str:
    """The warning for a snapshot whose listing isn't known and can't be had."""
    absent = ", ".join(lacking(folder, CHANGING_ANSWERS))
    return (
        f"{name}: another tool has put it into the cache, and which files it has can't be asked now. "
        f"If it has one of these, which aren't here, the model answers otherwise than it should: {absent}. "
        f"Run `onecard pull` once where the hub can be reached, or write {folder} as `source` if it is whole"
    )
