"""A sentence-transformers folder as bge-m3's (XLM-RoBERTa, first token, unit length), served as it comes."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel

from onecard.engines.api import ContextLengthError, EmbedRequest
from onecard.registry.spec import CardSpec, MemoryAmount, ModelSpec, Registry

LONGEST = 40
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁the", "▁dog", "▁cat", "▁runs", "▁over", "ing"]
TEXTS = ("the dog runs.", "", "a cat, the cat", "walking over the dog and the cat " * 9, "日本語 x", "z")


def write_encoder(folder: Path) -> None:
    """A random XLM-RoBERTa of two layers and a Unigram tokenizer for it."""
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(SPECIALS) + len(PIECES),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    model = XLMRobertaModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.2)
    model.save_pretrained(folder)
    pieces = [*((name, 0.0) for name in SPECIALS), *((piece, -float(1 + len(piece))) for piece in PIECES)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=SPECIALS.index("<unk>")))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(SPECIALS)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    others = {"pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "XLMRobertaTokenizer"}
    settings = {**roles, **others, "model_max_length": LONGEST}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def sentence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    encoder, folder = tmp_path_factory.mktemp("encoder"), tmp_path_factory.mktemp("sentence")
    write_encoder(encoder)
    parts = [Transformer(str(encoder)), Pooling(48, pooling_mode="cls"), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def reference(sentence_folder: Path) -> np.ndarray:
    """Each text by itself, so that nothing is padded."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(sentence_folder), device="cpu")
    return np.stack([model.encode(text) for text in TEXTS])


@pytest.fixture
def embed(sentence_folder: Path, open_live_node: Any) -> Any:
    """`embed(*requests)`: the answers of a node that serves the folder, all asked at once."""
    registry = Registry(
        cards=(CardSpec(device="cpu", memory=MemoryAmount(nbytes=1 << 27)),),
        models=(ModelSpec(name="m3", kind="embedding", source=str(sentence_folder)),),
    )
    with open_live_node(registry, {"m3": sentence_folder}) as live:
        engine = live.node.engine("m3")
        assert engine.info.max_model_len == LONGEST

        async def gather(requests: tuple[EmbedRequest, ...]) -> list[Any]:
            return await asyncio.gather(*map(engine.embed, requests), return_exceptions=True)

        yield lambda *requests: live.call(gather(requests))


def request(*texts: str, truncate: int | None = -1) -> EmbedRequest:
    return EmbedRequest("r", texts, truncate_prompt_tokens=truncate)


def test_vectors_are_sentence_transformers(embed: Callable[..., list[Any]], reference: np.ndarray) -> None:
    assert np.abs(reference @ reference.T - np.eye(len(TEXTS))).max() < 0.999, "the texts differ"
    alone = [embed(request(text))[0].vectors[0] for text in TEXTS]
    np.testing.assert_allclose(alone, reference, atol=1e-5)
    together, turned = embed(request(*TEXTS), request(*reversed(TEXTS)))
    np.testing.assert_allclose(together.vectors, reference, atol=1e-5)
    np.testing.assert_allclose(turned.vectors[::-1], reference, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1.0, atol=1e-6)


def test_a_text_may_fill_every_position_but_no_more(embed: Callable[..., list[Any]]) -> None:
    fits, too_long = embed(request("z" * 37, truncate=None), request("z" * 38, truncate=None))
    assert fits.prompt_tokens == LONGEST
    assert isinstance(too_long, ContextLengthError)
    assert f"{LONGEST} tokens" in str(too_long)
