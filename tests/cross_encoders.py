"""Rerankers of two random layers, saved as transformers saves them, for tests that need no real weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

from onecard.registry.spec import CardSpec, EngineSpec, MemoryAmount, ModelSpec, Registry

LONGEST = 128
"""Tokens of a pair that the random models read."""
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
}
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁the", "▁dog", "▁cat", "▁runs", "▁over", "ing"]


def write_bert(folder: Path, tokenizer: Path, **sizes: Any) -> None:
    """With the tokenizer of the folder `tokenizer`, whose ids and types matter to the scores."""
    vocabulary = len(json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"])
    sizes = {"max_position_embeddings": LONGEST, "type_vocab_size": 2, **sizes}
    _save(folder, "BertForSequenceClassification", vocab_size=vocabulary, **sizes)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(tokenizer / file, folder)
    _limit(folder / "tokenizer_config.json")


def write_xlm_roberta(folder: Path, pair: str = "<s> $A </s> </s> $B </s>", **sizes: Any) -> None:
    """With a small tokenizer of its own, which joins two texts as `pair` says."""
    _save(
        folder,
        "XLMRobertaForSequenceClassification",
        vocab_size=len(SPECIALS) + len(PIECES),
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
        **sizes,
    )
    pieces = [*((name, 0.0) for name in SPECIALS), *((piece, -float(1 + len(piece))) for piece in PIECES)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=SPECIALS.index("<unk>")))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(SPECIALS)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    others = {"pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**roles, **others}))
    _limit(folder / "tokenizer_config.json")


def registry_of(folder: Path, kind: Any = "reranker", **engine: Any) -> Registry:
    """One model, `judge`, on a small card."""
    return Registry(
        cards=(CardSpec(device="cpu", memory=MemoryAmount(nbytes=1 << 28)),),
        models=(ModelSpec(name="judge", kind=kind, source=str(folder), engine=EngineSpec(**engine)),),
    )


def _save(folder: Path, name: str, **sizes: Any) -> None:
    torch.manual_seed(0)
    model_class: Any = getattr(transformers, name)
    model = model_class(model_class.config_class(**{**SIZES, **sizes}))
    with torch.no_grad():
        for weight, parameter in model.named_parameters():
            parameter.normal_(1.0 if "LayerNorm.weight" in weight else 0.0, 0.2)
    model.save_pretrained(folder)


def _limit(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": LONGEST}))
