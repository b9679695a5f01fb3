"""Ids, bytes and special tokens; GGUF vocabularies encode as the tokenizers that they were made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers

from onecard.engines.api import ChatPrompt
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.token_text import byte_alphabet
from onecard.engines.text.tokenizer import Tokenizer, load_tokenizer

WriteGguf = Callable[[dict[str, Any]], Path]


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """(tokens by id, merges) as a GGUF file lists them."""
    vocab = tokenizer.backend.get_vocab()
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    return sorted(vocab, key=lambda token: vocab[token]), [" ".join(merge) for merge in merges]


def byte_level_fields(tokenizer: Tokenizer, **fields: Any) -> dict[str, Any]:
    tokens, merges = vocabulary(tokenizer)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token == "<|end|>" else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": tokens.index("<|end|>"),
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
    }


def sentencepiece_fields(tokenizer: Tokenizer, **fields: Any) -> dict[str, Any]:
    tokens, merges = vocabulary(tokenizer)
    rank = {merge.replace(" ", ""): position for position, merge in enumerate(reversed(merges))}
    worst = float(-len(merges))
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|end|>": 3}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(rank[t]) if t in rank else worst for t in tokens],
        "tokenizer.ggml.token_type": [kinds.get(t, 6 if t.startswith("<0x") else 1) for t in tokens],
        "tokenizer.ggml.bos_token_id": tokens.index("<s>"),
        "tokenizer.ggml.eos_token_id": tokens.index("</s>"),
        "tokenizer.ggml.unknown_token_id": tokens.index("<unk>"),
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
    }


def test_round_trips(any_tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in texts:
        ids = any_tokenizer.encode(text)
        raw = b"".join(map(any_tokenizer.token_bytes, ids)).decode()
        if any_tokenizer.spelling.kind == "sentencepiece":
            # Its dummy prefix is put before the text and behind every special token.
            assert raw.replace("|> ", "|>") == (text if text.startswith("<") or not text else " " + text)
        else:
            assert raw == text
    assert any_tokenizer.encode_batch(texts) == [any_tokenizer.encode(text) for text in texts]


def test_the_byte_alphabet_is_the_librarys() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_single_tokens(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    space = byte_level.encode(" ")[0]
    assert byte_level.token_piece(space) == "Ġ"
    assert byte_level.token_string(space) == " "
    first = byte_level.encode("🤯")[0]
    assert byte_level.token_string(first) == "\ufffd"
    assert "🤯".encode().startswith(byte_level.token_bytes(first))
    newline = sentencepiece.backend.token_to_id("<0x0A>")
    assert sentencepiece.token_bytes(newline) == b"\n"
    assert byte_level.token_piece(byte_level.max_token_id + 1) == ""
    assert byte_level.max_token_id == byte_level.vocab_size - 1
    assert byte_level.special_token_ids == {byte_level.backend.token_to_id("<|end|>")}


async def test_gguf_byte_level(byte_level: Tokenizer, write_gguf: WriteGguf, texts: list[str]) -> None:
    template = {"tokenizer.chat_template": "{{ messages[0].content }}{{ eos_token }}"}
    loaded = load_tokenizer(write_gguf(byte_level_fields(byte_level) | template))
    assert loaded.encode_batch(texts) == byte_level.encode_batch(texts)
    assert [loaded.decode(loaded.encode(text), False) for text in texts] == texts
    assert loaded.eos_token_ids == (byte_level.backend.token_to_id("<|end|>"),)
    assert await loaded.render_chat(ChatPrompt(({"role": "user", "content": "x"},))) == "x<|end|>"


def test_gguf_sentencepiece(sentencepiece: Tokenizer, write_gguf: WriteGguf, texts: list[str]) -> None:
    loaded = load_tokenizer(write_gguf(sentencepiece_fields(sentencepiece)))
    plain = [loaded.encode(text, add_special_tokens=False) for text in texts]
    assert plain == sentencepiece.encode_batch(texts)
    # Files of this kind that don't say otherwise want a BOS.
    bos = sentencepiece.backend.token_to_id("<s>")
    assert loaded.encode_batch(texts) == [[bos, *ids] for ids in plain]
    assert loaded.bos_token_id == bos
    assert [loaded.decode(ids, False) for ids in plain] == [t.replace("|>", "|> ") for t in texts]


def test_gguf_flags(byte_level: Tokenizer, sentencepiece: Tokenizer, write_gguf: WriteGguf) -> None:
    end = byte_level.backend.token_to_id("<|end|>")
    flags = {"bos_token_id": end, "add_bos_token": True, "add_eos_token": True}
    loaded = load_tokenizer(write_gguf(byte_level_fields(byte_level, **flags)))
    assert loaded.encode("fox") == [end, *byte_level.encode("fox"), end]
    fields = sentencepiece_fields(sentencepiece, add_bos_token=False, add_space_prefix=False)
    loaded = load_tokenizer(write_gguf(fields))
    assert loaded.token_piece(loaded.encode("the")[0]) == "t"
    assert loaded.decode(loaded.encode(" the")) == " the"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a 123", ["a", " 123"]),
        ("smollm", "a 12½", ["a", " ", "1", "2", "½"]),
        ("llama-bpe", "a12345 It's\n\n", ["a", "123", "45", " It", "'s", "\n\n"]),
        ("qwen2", "a123 It'S", ["a", "1", "2", "3", " It", "'S"]),
        ("tekken", "HelloWorld12", ["Hello", "World", "1", "2"]),
    ],
)
def test_pre_tokenizers_split_as_their_models_do(
    byte_level: Tokenizer, write_gguf: WriteGguf, pre: str, text: str, pieces: list[str]
) -> None:
    backend = load_tokenizer(write_gguf(byte_level_fields(byte_level, pre=pre))).backend
    assert backend.pre_tokenizer is not None
    assert [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"pre": "martian"}, "martian"), ({"model": "bert"}, "'bert'")],
)
def test_unknown_gguf_vocabularies_are_refused(
    byte_level: Tokenizer, write_gguf: WriteGguf, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(write_gguf(byte_level_fields(byte_level, **fields)))


def test_damaged_gguf_files_are_refused(byte_level: Tokenizer, write_gguf: WriteGguf, tmp_path: Path) -> None:
    whole = write_gguf(byte_level_fields(byte_level)).read_bytes()
    broken = tmp_path / "broken.gguf"
    for content, message in [
        (b"", "is empty"),
        (b"GGML", "not a GGUF"),
        (b"GGUF" + b"\xff" * 64, "version"),
        (whole[:900], "damaged"),
    ]:
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_tokenizer(broken)


async def test_a_folder(byte_level: Tokenizer, tmp_path: Path) -> None:
    byte_level.backend.save(str(tmp_path / "tokenizer.json"))
    end = byte_level.backend.token_to_id("<|end|>")
    config = {
        "eos_token": {"content": "<|end|>", "special": True},
        "bos_token": "<|end|>",
        "add_bos_token": True,
        "chat_template": [{"name": "default", "template": "old"}, {"name": "tool_use", "template": "tools"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 7]}))
    (tmp_path / "chat_template.jinja").write_text("new")
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("fox") == [end, *byte_level.encode("fox")]
    assert loaded.encode("fox", add_special_tokens=False) == byte_level.encode("fox")
    assert loaded.eos_token_ids == (end, 7)
    chat = ChatPrompt(({"role": "user", "content": "x"},))
    assert await loaded.render_chat(chat) == "new"
    (tmp_path / "mine.jinja").write_text("mine")
    assert await load_tokenizer(tmp_path, tmp_path / "mine.jinja").render_chat(chat) == "mine"
    assert load_tokenizer(tmp_path, lowercase=True).encode("FOX", False) == byte_level.encode("fox")


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    """transformers would make a tokenizer of five special tokens, to which every word is unknown."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(ModelFileError, match="no vocabulary"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    assert load_tokenizer(tmp_path).encode("fox", add_special_tokens=False) == [5]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)


def test_training_leftovers_in_tokenizer_json_are_ignored(byte_level: Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level.backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "the quick brown fox jumps over"
    assert load_tokenizer(tmp_path).encode(text) == byte_level.encode(text)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.weights
async def test_smollm2_encodes_as_transformers_does(
    smollm2: Tokenizer, smollm2_path: Path, texts: list[str]
) -> None:
    """But for numerals such as ½: transformers' GGUF reader knows no `smollm` pre-tokenizer, so it has to be
    told that the model's own tokenizer splits them off."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
    for text in texts:
        if "½" not in text:
            assert smollm2.encode(text) == theirs.encode(text)
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    theirs.backend_tokenizer.pre_tokenizer = digits
    for text in texts:
        assert smollm2.encode(text) == theirs.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert await smollm2.render_chat(ChatPrompt(tuple(messages))) == expected


@pytest.mark.weights
def test_minilm_encodes_as_transformers_does(minilm_path: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(minilm_path), AutoTokenizer.from_pretrained(str(minilm_path))
    for text in texts:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.truncate(ours.encode(text), 8) == theirs.encode(text, truncation=True, max_length=8)
