"""Whose tokenizer `engine.tokenizer` names."""

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from onecard.engines.api import ChatPrompt
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.text.tokenizer_files import tokenizer_folder

TEMPLATE = "{{ messages[0].content }}!"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, of a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


async def test_a_repository_s_tokenizer_comes_with_its_template(cache: Path, minilm_path: Path) -> None:
    """The vocabulary alone was read, once: messages had no template, and nobody said so."""
    repository = cache / "models--org--mine"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm_path / name, snapshot)
    (snapshot / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(tokenizer_folder("org/mine"))
    assert await tokenizer.render_chat(ChatPrompt(({"role": "user", "content": "Hi"},))) == "Hi!"
    assert tokenizer.encode("a cat") == load_tokenizer(minilm_path).encode("a cat")


def test_what_is_neither_a_folder_nor_to_be_had_is_told(cache: Path) -> None:
    with pytest.raises(ModelFileError, match=r"there is no folder org/none, and as a repository of the Hub"):
        tokenizer_folder("org/none")


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert tokenizer_folder(str(tmp_path)) == tmp_path
