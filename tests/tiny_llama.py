"""A language model of two random layers and a tokenizer of numbered words, for tests of what is around."""

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, models

ROWS = 64


def write_llama(folder: Path, words: int = ROWS, decoder: Any = None, **generation: Any) -> Path:
    """Two random layers, `ROWS` rows, and a tokenizer of so many words."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=None,
        bos_token_id=None,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    names = {f"w{i}" if decoder is None else "w" * (i + 1): i for i in range(words)}
    backend = tokenizers.Tokenizer(models.WordLevel(names, unk_token=next(iter(names))))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if decoder is not None:
        backend.decoder = decoder
    backend.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def add_token(folder: Path, text: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens([AddedToken(text, special=True)])
    backend.save(str(folder / "tokenizer.json"))
