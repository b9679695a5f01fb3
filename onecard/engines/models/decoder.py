"""The decoder-only language model that Llama's descendants share.

A model file says which of its options it takes; precision lives in the layers, K and V in the batch's cache.
"""

import torch
from torch import nn

from onecard.engines.layers.attention import PagedAttention
from onecard.engines.layers.embedding import Embedding
from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.layers.linear import Linear
from onecard.engines.layers.mlp import GatedMLP
from onecard.engines.layers.norm import RMSNorm
from onecard.engines.layers.precision import Precision
from onecard.engines.layers.rotary import cos_sin_table, rotary_rows
from onecard.engines.models.config import DecoderConfig
from onecard.engines.models.served_module import ServedModule


class DecoderAttention(nn.Module):
    """Grouped-query attention with rotary positions; q, k and v come out of one product."""

    def __init__(self, config: DecoderConfig, layer: int, precision: Precision, qk_norm: bool):
        super().__init__()
        heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads = [heads, kv_heads, kv_heads]
        self.qkv_shape = (-1, heads + 2 * kv_heads, dim)
        self.out_shape = (-1, heads * dim)
        parts = {"q_proj": heads * dim, "k_proj": kv_heads * dim, "v_proj": kv_heads * dim}
        self.qkv_proj = Linear(config.hidden_size, parts, precision, config.attention_bias)
        self.o_proj = Linear(heads * dim, config.hidden_size, precision, config.attention_output_bias)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps, precision) if qk_norm else None
        self.k_norm = RMSNorm(dim, config.rms_norm_eps, precision) if qk_norm else None
        self.attention = PagedAttention(layer, dim**-0.5, config.sliding_windows[layer])

    def forward(self, x: torch.Tensor, batch: ForwardBatch, cos_sin: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv_proj.forward(x, batch).view(self.qkv_shape).split(self.heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        attended = self.attention.forward(q, k, v, batch, cos_sin)
        return self.o_proj.forward(attended.view(self.out_shape), batch)


class DecoderLayer(nn.Module):
    """Attention, then MLP, each behind a norm; the residual sum is carried along, not yet added."""

    def __init__(self, config: DecoderConfig, layer: int, precision: Precision, qk_norm: bool):
        super().__init__()
        self.self_attn = DecoderAttention(config, layer, precision, qk_norm)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, precision, config.mlp_bias)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: ForwardBatch, cos_sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            normed, residual = self.input_layernorm.forward(x), x
        else:
            normed, residual = self.input_layernorm.add(x, residual)
        attended = self.self_attn.forward(normed, batch, cos_sin)
        normed, residual = self.post_attention_layernorm.add(attended, residual)
        return self.mlp.forward(normed, batch), residual


class DecoderForCausalLM(ServedModule):
    """Token ids to the final hidden states, and hidden states to logits.

    `cos_sin` is the rotary table, float32 `[max_position_embeddings, rotary_dim]`: not of the checkpoint,
    made by the loader. A tied head reads the embedding's table, or with a method that packs a copy of it.
    """

    checkpoint_prefix = "model."
    ignored_weights = (r"lm_head\.weight", r".*rotary_emb\.inv_freq")
    """A tied head may have been saved all the same."""

    cos_sin: torch.Tensor

    def __init__(self, config: DecoderConfig, precision: Precision, qk_norm: bool = False):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, precision)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, precision, qk_norm) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, precision)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, precision)
        self.head_is_table = config.tie_word_embeddings and not precision.linear.copies
        if self.head_is_table:
            self.lm_head.weight = None
        elif config.tie_word_embeddings:
            self.shared_weights = {"lm_head.weight": "embed_tokens.weight"}
        self.register_buffer("cos_sin", torch.empty(config.max_position_embeddings, config.rope.rotary_dim))

    def tables(self) -> dict[str, torch.Tensor]:
        return {"cos_sin": cos_sin_table(self.config.rope, self.config.max_position_embeddings)}

    def finalize(self) -> None:
        if self.head_is_table:
            self.lm_head.weight = self.embed_tokens.weight
            self.lm_head.finalize()

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states `[T, hidden]` of all tokens, normed; K and V of the step are stored on the way."""
        x, residual = self.embed_tokens.forward(batch.input_ids), None
        cos_sin = rotary_rows(self.cos_sin, batch.positions, self.config.rope.sections)
        for layer in self.layers:
            x, residual = layer.forward(x, residual, batch, cos_sin)
        return self.norm.forward(x) if residual is None else self.norm.add(x, residual)[0]

    def compute_logits(self, hidden: torch.Tensor, batch: ForwardBatch | None = None) -> torch.Tensor:
        """Logits `[N, vocab]` float32 of hidden states `[N, hidden]`: of all of the batch's `logits_rows`."""
        return self.lm_head.forward(hidden, batch).float()
