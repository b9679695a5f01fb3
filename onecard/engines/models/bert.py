"""BERT (Devlin et al. 2018) as a text encoder over packed texts: MiniLM, BGE, E5 and their kin."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from onecard.engines.layers.attention import EncoderAttention
from onecard.engines.layers.embedding import Embedding
from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.layers.linear import Linear
from onecard.engines.layers.linear_methods import ACTIVATIONS
from onecard.engines.layers.norm import LayerNorm
from onecard.engines.layers.precision import Precision
from onecard.engines.models.config import SIZES, EncoderConfig, labels, stored_dtype
from onecard.engines.models.config_values import ConfigError, real, require, whole
from onecard.engines.models.served_module import ServedModule


class PositionEmbedding(Embedding):
    """`[T]` int64 positions in their texts, from 0, to `[T, hidden]`."""

    def __init__(self, config: EncoderConfig, precision: Precision):
        super().__init__(config.max_position_embeddings, config.hidden_size, precision)
        self.first = config.first_position

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return F.embedding(positions, self.weight[self.first :]).to(self.compute)


class BertEmbeddings(nn.Module):
    """Word, position and token type together, normed."""

    def __init__(self, config: EncoderConfig, precision: Precision):
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, precision)
        self.position_embeddings = PositionEmbedding(config, precision)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size, precision)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, precision)

    def forward(self, batch: EncodeBatch) -> torch.Tensor:
        places = self.position_embeddings.forward(batch.positions)
        if batch.token_type_ids is None:
            types = self.token_type_embeddings.weight[0].to(places.dtype)
        else:
            types = self.token_type_embeddings.forward(batch.token_type_ids)
        return self.norm.forward(self.word_embeddings.forward(batch.input_ids), places + types)


class BertLayer(nn.Module):
    """Attention, then MLP, each followed by the residual sum and a norm."""

    def __init__(self, config: EncoderConfig, precision: Precision):
        super().__init__()
        hidden, dim = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.heads = config.num_attention_heads
        self.qkv_shape = (-1, 3 * self.heads, dim)
        self.out_shape = (-1, hidden)
        parts = {"query": hidden, "key": hidden, "value": hidden}
        self.qkv = Linear(hidden, parts, precision, bias=True)
        self.attention = EncoderAttention(dim**-0.5)
        self.attention_output = Linear(hidden, hidden, precision, bias=True)
        self.attention_norm = LayerNorm(hidden, config.layer_norm_eps, precision)
        self.intermediate = Linear(
            hidden, config.intermediate_size, precision, bias=True, activation=config.hidden_act
        )
        self.output = Linear(config.intermediate_size, hidden, precision, bias=True)
        self.output_norm = LayerNorm(hidden, config.layer_norm_eps, precision)

    def forward(self, x: torch.Tensor, batch: EncodeBatch) -> torch.Tensor:
        q, k, v = self.qkv.forward(x, batch).view(self.qkv_shape).split(self.heads, dim=1)
        attended = self.attention.forward(q, k, v, batch).view(self.out_shape)
        x = self.attention_norm.forward(self.attention_output.forward(attended, batch), x)
        wide = self.intermediate.forward(x, batch)
        return self.output_norm.forward(self.output.forward(wide, batch), x)


class BertModel(ServedModule):
    """Token ids to the last hidden states; pooling is the encoder engine's."""

    checkpoint_prefix = "bert."
    renamed_weights: tuple[tuple[str, str], ...] = (
        ("encoder.layer.", "layers."),
        (".attention.self.", "."),
        (".attention.output.dense.", ".attention_output."),
        (".attention.output.LayerNorm.", ".attention_norm."),
        (".intermediate.dense.", ".intermediate."),
        (".output.dense.", ".output."),
        (".output.LayerNorm.", ".output_norm."),
        ("embeddings.LayerNorm.", "embeddings.norm."),
        ("norm.gamma", "norm.weight"),  # the first checkpoints' names, from TensorFlow
        ("norm.beta", "norm.bias"),
    )
    ignored_weights: tuple[str, ...] = (r"embeddings\.position_ids", r"pooler\..*", r"cls\..*")

    def __init__(self, config: EncoderConfig, precision: Precision):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config, precision)
        self.layers = nn.ModuleList(BertLayer(config, precision) for _ in range(config.num_hidden_layers))

    def forward(self, batch: EncodeBatch) -> torch.Tensor:
        """Hidden states `[T, hidden]` of all tokens, in the order of the batch."""
        x = self.embeddings.forward(batch)
        for layer in self.layers:
            x = layer.forward(x, batch)
        return x


class ClassificationHead(nn.Module):
    """First tokens to logits: dense, tanh, dense."""

    def __init__(self, config: EncoderConfig, precision: Precision):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, precision, bias=True)
        self.out = Linear(config.hidden_size, config.num_labels, precision, bias=True)

    def forward(self, first: torch.Tensor, batch: EncodeBatch | None) -> torch.Tensor:
        return self.out.forward(self.dense.forward(first, batch).tanh_(), batch)


class BertForSequenceClassification(BertModel):
    """Token ids to the last hidden states, and the first ones of the texts to their labels' logits."""

    renamed_weights = (
        *BertModel.renamed_weights,
        ("pooler.dense.", "head.dense."),
        ("classifier.", "head.out."),
    )
    ignored_weights: tuple[str, ...] = (r"embeddings\.position_ids", r"cls\..*")

    def __init__(self, config: EncoderConfig, precision: Precision):
        super().__init__(config, precision)
        self.head = ClassificationHead(config, precision)

    def classify(self, first: torch.Tensor, batch: EncodeBatch | None) -> torch.Tensor:
        """Logits `[B, num_labels]` float32 of the hidden states `[B, hidden]` of each text's first token."""
        return self.head.forward(first, batch).float()


def parse(raw: Mapping[str, Any]) -> EncoderConfig:
    return encoder_config("BertModel", raw)


def parse_classifier(raw: Mapping[str, Any]) -> EncoderConfig:
    return replace(encoder_config("BertForSequenceClassification", raw), id2label=labels(raw))


def encoder_config(architecture: str, raw: Mapping[str, Any], first_position: int = 0) -> EncoderConfig:
    """What the configs of BERT and its kin share; defaults are transformers'. Raises `ConfigError`."""
    vocab, hidden, intermediate, layers, heads = require(raw, *SIZES)
    if (kind := raw.get("position_embedding_type") or "absolute") != "absolute":
        raise ConfigError(
            f"position_embedding_type is {kind!r}; {architecture} is served with 'absolute' only"
        )
    if raw.get("is_decoder"):
        raise ConfigError(f"the {architecture} checkpoint is a decoder (is_decoder); served are encoders")
    if (act := raw.get("hidden_act", "gelu")) not in ACTIVATIONS:
        raise ConfigError(f"hidden_act is {act!r}; {architecture} is served with {', '.join(ACTIVATIONS)}")
    if hidden % heads:
        raise ConfigError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    config = EncoderConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        layer_norm_eps=real(raw, "layer_norm_eps", 1e-12),
        max_position_embeddings=whole(raw, "max_position_embeddings", 512),
        type_vocab_size=whole(raw, "type_vocab_size", 2),
        hidden_act=act,
        dtype=stored_dtype(raw),
        first_position=first_position,
    )
    if config.max_text_len < 1:
        raise ConfigError(
            f"max_position_embeddings is {config.max_position_embeddings}, but the first position of "
            f"{architecture} is {first_position}: no text has room"
        )
    return config
