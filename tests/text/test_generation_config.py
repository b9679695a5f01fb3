"""Defaults come from the model's own files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onecard.engines.text.model_files import GenerationDefaults, load_generation_defaults


def test_from_generation_config(tmp_path: Path) -> None:
    content = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": None,
        "max_new_tokens": 99,
        "eos_token_id": [5, 6],
        "x": 1,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    expected = GenerationDefaults({"temperature": 0.6, "top_k": 20, "max_tokens": 99}, (5, 6))
    assert load_generation_defaults(tmp_path) == expected


def test_end_token_from_the_model_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert load_generation_defaults(tmp_path) == GenerationDefaults({}, (9,))


def test_nothing_said(tmp_path: Path) -> None:
    assert load_generation_defaults(tmp_path) == GenerationDefaults()


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"generation_config\.json is not valid JSON"):
        load_generation_defaults(tmp_path)


def test_from_gguf(write_gguf: Callable[[dict[str, Any]], Path]) -> None:
    path = write_gguf(
        {"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "tokenizer.ggml.eos_token_id": 2}
    )
    assert load_generation_defaults(path) == GenerationDefaults({"temperature": 0.5, "top_k": 7}, (2,))
