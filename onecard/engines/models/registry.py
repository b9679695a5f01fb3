"""Which class runs which architecture, under which of the registry's kinds."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch

from onecard.engines.layers.precision import Precision, precision_for
from onecard.engines.models import bert, llama, mistral, qwen2, qwen3, xlm_roberta
from onecard.engines.models.config import ConfigError, DecoderConfig, EncoderConfig, ModelConfig
from onecard.engines.models.served_module import ServedModule
from onecard.registry.spec import ModelKind


@dataclass(frozen=True)
class Architecture:
    """How to read an architecture's config, and what to build from it; the config names the built class."""

    parse: Callable[[Mapping[str, Any]], ModelConfig]
    build: Callable[..., ServedModule]


_BERT = Architecture(bert.parse, bert.BertModel)
_ROBERTA = Architecture(xlm_roberta.parse, xlm_roberta.XLMRobertaModel)
_ROBERTA_CLASSIFIER = Architecture(
    xlm_roberta.parse_classifier, xlm_roberta.XLMRobertaForSequenceClassification
)

ARCHITECTURES: Mapping[ModelKind, Mapping[str, Architecture]] = {
    "llm": {
        "LlamaForCausalLM": Architecture(llama.parse, llama.LlamaForCausalLM),
        "MistralForCausalLM": Architecture(mistral.parse, mistral.MistralForCausalLM),
        "Qwen2ForCausalLM": Architecture(qwen2.parse, qwen2.Qwen2ForCausalLM),
        "Qwen3ForCausalLM": Architecture(qwen3.parse, qwen3.Qwen3ForCausalLM),
    },
    "embedding": {
        "BertModel": _BERT,
        "XLMRobertaModel": _ROBERTA,
        # below a head that tells the next token, not the text's meaning
        "BertForMaskedLM": _BERT,
        "BertForPreTraining": _BERT,
        "RobertaModel": _ROBERTA,
        "CamembertModel": _ROBERTA,
        "XLMRobertaForMaskedLM": _ROBERTA,
        "RobertaForMaskedLM": _ROBERTA,
        "CamembertForMaskedLM": _ROBERTA,
    },
    "reranker": {
        "BertForSequenceClassification": Architecture(
            bert.parse_classifier, bert.BertForSequenceClassification
        ),
        "XLMRobertaForSequenceClassification": _ROBERTA_CLASSIFIER,
        "RobertaForSequenceClassification": _ROBERTA_CLASSIFIER,
        "CamembertForSequenceClassification": _ROBERTA_CLASSIFIER,
    },
}
"""By the kind that the registry says a model is and the name in its config.json: a checkpoint that one kind
serves whole is never served as another with its head dropped."""

_CLASSES: Mapping[str, Callable[..., ServedModule]] = {
    architecture.build.__name__: architecture.build
    for architectures in ARCHITECTURES.values()
    for architecture in architectures.values()
}


@overload
def load_config(path: Path, kind: Literal["llm"]) -> DecoderConfig: ...
@overload
def load_config(path: Path, kind: Literal["embedding", "reranker"]) -> EncoderConfig: ...
def load_config(path: Path, kind: ModelKind) -> ModelConfig:
    """The config of a Hugging Face folder or a .gguf file that is to be served as `kind`.

    Raises `ConfigError` where there is none, and for an architecture or setting that isn't served so.
    """
    if path.suffix == ".gguf":
        from onecard.engines.weights.gguf import transformers_config

        return parse_config(transformers_config(path), kind)
    file = path / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path} is neither a .gguf file nor a folder with a config.json")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    return parse_config(raw, kind)


def parse_config(raw: Mapping[str, Any], kind: ModelKind) -> ModelConfig:
    """The config that the content of a Hugging Face config.json describes. Raises `ConfigError`."""
    served, names = ARCHITECTURES.get(kind, {}), raw.get("architectures") or []
    for name in names:
        if name in served:
            return served[name].parse(raw)
    for name in names:
        for other, architectures in ARCHITECTURES.items():
            if name in architectures:
                raise ConfigError(f"`kind: {kind}` doesn't go with a {name}; write `kind: {other}`")
    found = ", ".join(names) or "not named"
    raise ConfigError(f"the checkpoint's architecture is {found}; served are {', '.join(served) or 'none'}")


def build_model(config: ModelConfig, precision: Precision | None = None) -> ServedModule:
    """The model on torch's meta device: its parameters have shapes and dtypes, and no memory.

    Without a `precision`: float32 on the CPU.
    """
    with torch.device("meta"):
        return _CLASSES[config.architecture](config, precision or precision_for("cpu", torch.float32))
