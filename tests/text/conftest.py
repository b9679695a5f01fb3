"""Small tokenizers of the kinds that are served, trained on the spot, and a writer of GGUF metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.tokenizer import Tokenizer, load_tokenizer
from onecard.engines.text.vocabulary import SpecialTokens

CORPUS = [
    "the quick brown fox jumps over the lazy dog 123 times",
    "naïve café déjà vu, “quotes” and — dashes",
    "日本語のテキスト 中文文本 한국어 텍스트",
    "emoji 🤖 👩‍👩‍👧‍👦 🇫🇷 combining e\u0301 a\u0308",
    "def f(x):\n    return x ** 2\n\t# tabs\r\n",
    "don't can't I'LL we've   many   spaces",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [
        *CORPUS,
        "",
        " ",
        "  leading and trailing  ",
        "unseen: Ω≈ç√∫˜ µ≤ ß ½ ² ٣٤٥",
        "mixed 日本 and 🤖🤖 e\u0301e\u0301",
        "<|end|>special inside<|end|> text",
    ]


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """Byte-level BPE; every byte has a token, most characters beyond ASCII take several."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    return Tokenizer(backend, SpecialTokens(), ChatTemplates())


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """Llama 2's kind: U+2581 for spaces, byte tokens for the characters that the vocabulary lacks."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    specials = ["<unk>", "<s>", "</s>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=specials, limit_alphabet=60, show_progress=False
    )
    trained.train_from_iterator(["\u2581" + line.replace(" ", "\u2581") for line in CORPUS * 4], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.add_special_tokens(["<s>", "</s>", "<|end|>"])
    spaces = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence(spaces)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return Tokenizer(backend, SpecialTokens(), ChatTemplates())


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes a GGUF file with metadata alone."""

    def write(fields: dict[str, Any]) -> Path:
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in fields.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(smollm2_path)
