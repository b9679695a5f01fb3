"""A tokenizer from a Hugging Face model folder."""

import math
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from onecard.engines.text.generation_config import (
    ModelFileError,
    load_generation_defaults,
    read_json,
    read_text,
)
from onecard.engines.text.token_text import SpecialTokens
from onecard.registry.plain_files import FileRefusedError, is_folder, is_there, read_bytes, regular_size

LARGEST_TOKENIZER = 128 << 20
"""Bytes: four times what a vocabulary of 256,000 tokens has."""
_VOCABULARIES = ("vocab.*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "vocab_file*")

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """Raises `ModelFileError` where the folder holds no tokenizer."""
    file = folder / "tokenizer.json"
    if is_there(file):
        try:
            return tokenizers.Tokenizer.from_buffer(
                read_bytes(file, LARGEST_TOKENIZER).removeprefix(BOM_UTF8)
            )
        except FileRefusedError as error:
            raise ModelFileError(str(error)) from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises nothing narrower, and panics are no Exception
            raise ModelFileError(f"{file} is no tokenizer that can be read: {error}") from error
    check_vocabulary(folder)
    # Only older checkpoints lack the file; transformers knows how to convert their vocabularies.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # it reads a stranger's files of many sorts
        raise ModelFileError(f"{folder} holds no tokenizer that can be read: {error}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelFileError(
            f"{folder}: its tokenizer has no fast version; add a tokenizer.json or set 'tokenizer'"
        )
    # Without its vocabulary transformers makes one of special tokens only, and every word is unknown.
    if set(backend.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ModelFileError(f"{folder} holds no tokenizer: there is no tokenizer.json and no vocabulary")
    return backend


def check_vocabulary(folder: Path) -> None:
    """Raises `ModelFileError` where a model's folder has nothing that a tokenizer could be read from, or
    something that isn't a file, or too large a one."""
    if not is_folder(folder):  # a hub's name
        return
    if is_there(folder / "tokenizer.json"):
        files = [folder / "tokenizer.json"]
    else:
        files = [file for pattern in _VOCABULARIES for file in sorted(folder.glob(pattern))]
    if not files:
        raise ModelFileError(
            f"{folder} holds no tokenizer: there is no tokenizer.json and no vocabulary; add it, or set "
            "`engine.tokenizer` to the folder of one"
        )
    try:
        for file in files:
            regular_size(file, LARGEST_TOKENIZER)
    except FileRefusedError as error:
        raise ModelFileError(str(error)) from error


def load_tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` over the older `special_tokens_map.json`."""
    return {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}


def model_max_length(folder: Path) -> int | None:
    """What the tokenizer's makers say of the longest text, in tokens; None where they say nothing."""
    limit = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return int(limit) if isinstance(limit, int | float) and 1 <= limit < math.inf else None


def tells_token_types(folder: Path) -> bool:
    """Whether a model of two texts is told which of them a token is of; its makers may have left it out."""
    names = read_json(folder / "tokenizer_config.json").get("model_input_names")
    return not isinstance(names, list) or "token_type_ids" in names


def special_tokens(folder: Path, config: dict[str, Any], backend: tokenizers.Tokenizer) -> SpecialTokens:
    names = {role: text for role in _ROLES if (text := _text_of(config.get(role))) is not None}
    ids = {role: backend.token_to_id(text) for role, text in names.items()}
    own_eos = [i for i in [ids.get("eos_token")] if i is not None]
    eos: list[int] = [*own_eos, *load_generation_defaults(folder).eos_token_ids]
    return SpecialTokens(ids.get("bos_token"), tuple(dict.fromkeys(eos)), ids.get("pad_token"), names)


def apply_bos_eos_flags(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """`add_bos_token` and `add_eos_token` of tokenizer_config.json, where given, overrule tokenizer.json."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    bos = _text_of(config.get("bos_token")) if config.get("add_bos_token") else None
    eos = _text_of(config.get("eos_token")) if config.get("add_eos_token") else None
    set_bos_eos(backend, bos, eos)


def set_bos_eos(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Put `bos` before and `eos` after every text that is encoded with special tokens."""
    template = " ".join(part for part in (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0") if part)
    pair = " ".join(part for part in (template, bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if part)
    added = [(text, backend.token_to_id(text)) for text in (bos, eos) if text]
    backend.post_processor = TemplateProcessing(single=template, pair=pair, special_tokens=added)


def chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """By name; `chat_template.jinja` overrules what tokenizer_config.json says."""
    stated = config.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(stated, str):
        templates["default"] = stated
    elif isinstance(stated, list):
        templates = {str(entry["name"]): str(entry["template"]) for entry in stated}
    if is_there(file := folder / "chat_template.jinja"):
        templates["default"] = read_text(file)
    for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[extra.stem] = read_text(extra)
    return templates


def _text_of(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
