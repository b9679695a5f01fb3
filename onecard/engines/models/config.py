"""What a checkpoint says of its architecture, in one form for every source.

The dataclasses, and what the architectures' own `parse` functions share; `registry.load_config` picks one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onecard.engines.layers.rotary import ROPE_TYPES, RopeParameters
from onecard.engines.models.config_values import ConfigError as ConfigError
from onecard.engines.models.config_values import real, reals, require, whole


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only language model. Names are transformers'.

    `sliding_windows` holds each layer's window in tokens (0: sees everything before it).
    `max_position_embeddings` is also the length that the rotary table is built for: replace it by the longest
    sequence to be served to save memory. `dtype` is what the checkpoint stores ("float32", "float16",
    "bfloat16", or a GGUF type such as "Q4_K").
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeParameters
    sliding_windows: tuple[int, ...]
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "float32"

    @property
    def num_matrix_parameters(self) -> int:
        """Weights that every token is multiplied with in the layers: half the FLOPs of computing its K and
        V."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        per_layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)
        return self.num_hidden_layers * per_layer


@dataclass(frozen=True)
class EncoderConfig:
    """A BERT-style text encoder. Names are transformers'; `dtype` is what the checkpoint stores.

    The first token of a text is at row `first_position` of the position table. `id2label` names what a
    classification head gives, in order; empty: the model has none.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str = "gelu"
    dtype: str = "float32"
    first_position: int = 0
    id2label: tuple[str, ...] = ()

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def max_text_len(self) -> int:
        """The most tokens of a text that have a position."""
        return self.max_position_embeddings - self.first_position


ModelConfig = DecoderConfig | EncoderConfig


MOST_LABELS = 10_000
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def stored_dtype(raw: Mapping[str, Any]) -> str:
    """The dtype that the config claims for its weights."""
    return str(raw.get("dtype") or raw.get("torch_dtype") or "float32")


def labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classification head's outputs; as in transformers, two where the config says nothing."""
    given = raw.get("id2label")
    if given is None:
        given = {index: f"LABEL_{index}" for index in range(whole(raw, "num_labels", 2))}
    if not isinstance(given, Mapping) or len(given) > MOST_LABELS:
        raise ConfigError(f"id2label must be a mapping of {MOST_LABELS:,} labels at most")
    names = {str(index): str(name) for index, name in given.items()}
    order = [str(index) for index in range(len(names))]
    if not names or names.keys() != set(order):
        raise ConfigError(f"id2label must name the head's outputs 0, 1, ...: {given}")
    return tuple(names[index] for index in order)


def decoder_config(
    architecture: str,
    raw: Mapping[str, Any],
    *,
    default_kv_heads: int | None = None,
    default_head_dim: int | None = None,
    default_max_positions: int = 32768,
    attention_bias: bool = False,
    attention_output_bias: bool = False,
    mlp_bias: bool = False,
    sliding_windows: tuple[int, ...] | None = None,
) -> DecoderConfig:
    """What the decoders' configs have in common; the rest is each architecture's own. Raises `ConfigError`.

    The defaults are transformers' for keys that config.json leaves out; a null `num_key_value_heads` (and the
    default None) means as many as query heads.
    """
    vocab, hidden, intermediate, layers, heads = require(raw, *SIZES)
    if raw.get("quantization_config"):
        raise ConfigError(
            "the checkpoint is quantized (quantization_config); served are plain weights and GGUF files"
        )
    if (act := raw.get("hidden_act", "silu")) != "silu":
        raise ConfigError(f"hidden_act is {act!r}; {architecture} is served with 'silu' only")
    # A null means as many as query heads, a key that is missing what transformers takes then.
    kv_heads = whole(raw, "num_key_value_heads", heads) if "num_key_value_heads" in raw else default_kv_heads
    kv_heads = kv_heads or heads
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = whole(raw, "head_dim", default_head_dim or hidden // heads)
    max_positions = whole(raw, "max_position_embeddings", default_max_positions)
    return DecoderConfig(
        architecture=architecture,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=real(raw, "rms_norm_eps", 1e-6),
        max_position_embeddings=max_positions,
        rope=_parse_rope(raw, head_dim, max_positions),
        sliding_windows=sliding_windows or (0,) * layers,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=attention_bias,
        attention_output_bias=attention_output_bias,
        mlp_bias=mlp_bias,
        dtype=stored_dtype(raw),
    )


def window_of(raw: Mapping[str, Any]) -> int:
    """The sliding window; 0 for a null."""
    return whole(raw, "sliding_window", 0, least=0) if "sliding_window" in raw else 4096


def layer_windows(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """Each layer's sliding window as Qwen's configs say it: `use_sliding_window`, `layer_types`,
    `max_window_layers`.
    """
    layers = require(raw, "num_hidden_layers")[0]
    window = window_of(raw)
    if not raw.get("use_sliding_window", False):
        return (0,) * layers
    types = raw.get("layer_types")
    if types is None:
        first = whole(raw, "max_window_layers", 28, least=0)
        return tuple(window if i >= first else 0 for i in range(layers))
    if (
        not isinstance(types, list)
        or len(types) != layers
        or not set(types) <= {"full_attention", "sliding_attention"}
    ):
        raise ConfigError(
            f"layer_types must be full_attention or sliding_attention for each of {layers} layers: {types}"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _parse_rope(raw: Mapping[str, Any], head_dim: int, max_positions: int) -> RopeParameters:
    """transformers 5 has all of it in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`."""
    given = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = "default" if kind == "mrope" else kind  # Qwen2-VL's first name for it; the sections say the rest
    if kind not in ROPE_TYPES:
        raise ConfigError(f"rope_type is {kind!r}; served are {', '.join(ROPE_TYPES)}")
    theta = real(given, "rope_theta", real(raw, "rope_theta", 10000.0, above=1.0), above=1.0)
    partial = real(given, "partial_rotary_factor", real(raw, "partial_rotary_factor", 1.0))
    length = "original_max_position_embeddings"
    original = whole(raw, length, whole(given, length, max_positions, least=2), least=2)
    if kind == "dynamic":  # transformers scales this one from max_position_embeddings, whatever else is given
        original = max_positions
    if given.get("factor") is None and kind in ("linear", "dynamic", "llama3"):
        raise ConfigError(f"rope_type {kind} needs a factor in rope_scaling (or rope_parameters)")
    rotary_dim = int(head_dim * partial)
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise ConfigError(
            f"of heads of {head_dim}, {rotary_dim} would be rotated; that should be an even part"
        )
    half = rotary_dim // 2
    rope = RopeParameters(
        rotary_dim=rotary_dim,
        rope_theta=theta,
        rope_type=kind,
        factor=real(given, "factor", max_positions / original),
        original_max_position_embeddings=original,
        attention_factor=real(given, "attention_factor", 1.0) if given.get("attention_factor") else None,
        beta_fast=real(given, "beta_fast", 32.0),
        beta_slow=real(given, "beta_slow", 1.0),
        mscale=real(given, "mscale", 0.0, above=-1.0),
        mscale_all_dim=real(given, "mscale_all_dim", 0.0, above=-1.0),
        truncate=bool(given.get("truncate", True)),
        low_freq_factor=real(given, "low_freq_factor", 1.0),
        high_freq_factor=real(given, "high_freq_factor", 4.0),
        short_factor=reals(given, "short_factor", half),
        long_factor=reals(given, "long_factor", half),
        freq_factors=reals(given, "freq_factors", half),
        sections=tuple(given.get("mrope_section") or ()),
    )
    if rope.sections and (sum(rope.sections) != half or given.get("mrope_interleaved")):
        raise ConfigError(
            f"mrope_section {list(rope.sections)} is served where it divides the {half} frequencies in order"
        )
    if kind == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise ConfigError("rope_type llama3 needs a high_freq_factor above its low_freq_factor")
    if kind == "longrope" and not (rope.short_factor and rope.long_factor):
        raise ConfigError(f"rope_type longrope needs short_factor and long_factor with {half} numbers each")
    return rope
