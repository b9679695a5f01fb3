"""A tokenizer's own faults, panics of its Rust code included, are answers to one request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from onecard.engines.api import EngineFailedError, SamplingParams
from onecard.engines.api.errors import is_panic
from onecard.engines.paged.output import SequenceOutput
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer, load_tokenizer


def word_level() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))


def panics_as_it_encodes() -> tokenizers.Tokenizer:
    backend = word_level()
    backend.pre_tokenizer = pre_tokenizers.FixedLength(0)
    return backend


def panics_as_it_decodes() -> tokenizers.Tokenizer:
    backend = word_level()
    backend.decoder = decoders.Strip("a", 0, 5)
    return backend


def test_what_is_tried_here_is_no_exception() -> None:
    with pytest.raises(BaseException, match="chunk size") as raised:
        panics_as_it_encodes().encode("a")
    assert is_panic(raised.value)
    assert not isinstance(raised.value, Exception)
    assert not any(map(is_panic, (KeyboardInterrupt(), ValueError())))


@pytest.mark.parametrize("text", ["a", "a" * 5000])
def test_a_panic_is_an_error_of_the_request(text: str) -> None:
    broken = Tokenizer(panics_as_it_encodes(), SpecialTokens(), ChatTemplates())
    with pytest.raises(EngineFailedError, match="tokenizer can't read the text: chunk size"):
        broken.encode(text)
    with pytest.raises(EngineFailedError, match="can't read the text"):
        broken.encode_batch([text, "a"])
    broken = Tokenizer(panics_as_it_decodes(), SpecialTokens(), ChatTemplates())
    with pytest.raises(EngineFailedError, match="can't write the text"):
        broken.decode([0] * len(text))


def test_so_is_any_other_fault() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    with pytest.raises(EngineFailedError, match=r"Missing \[UNK\] token"):
        Tokenizer(backend, SpecialTokens(), ChatTemplates()).encode("b")


def test_a_tokenizer_that_reads_nothing_is_refused_as_it_is_loaded(tmp_path: Path) -> None:
    panics_as_it_encodes().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelFileError, match=f"{tmp_path} holds no tokenizer that works: .* chunk size"):
        load_tokenizer(tmp_path)
    template = {"type": "TemplateProcessing", "special_tokens": {}, "pair": []}
    template["single"] = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    description = json.loads(word_level().to_str()) | {"post_processor": template}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(ModelFileError, match="holds no tokenizer that works"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["tokens", "merges", "scores"])
def test_a_gguf_without_a_part_of_its_tokenizer_is_refused_by_name(
    write_gguf: Callable[[dict[str, Any]], Path], missing: str
) -> None:
    kind = {"merges": "gpt2"}.get(missing, "llama")
    fields = {"tokens": ["<unk>", "a"], "scores": [0.0, -1.0], "merges": ["a a"]}
    del fields[missing]
    names = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    path = write_gguf({"tokenizer.ggml.model": kind, **names})
    with pytest.raises(ModelFileError, match=rf"{path} holds no tokenizer .*tokenizer\.ggml\.{missing}"):
        load_tokenizer(path)


def test_the_detokenizer_of_an_answer_raises_what_the_engine_expects() -> None:
    broken = Tokenizer(panics_as_it_decodes(), SpecialTokens(), ChatTemplates())
    output = SequenceOutput(broken, SamplingParams(), 0, [], 10, frozenset())
    with pytest.raises(EngineFailedError, match="can't write the text"):
        output.append(0, None)
