"""Which class runs which architecture."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onecard.engines.layers.precision import Precision, precision_for
from onecard.engines.models import bert, llama, mistral, qwen2, qwen3, xlm_roberta
from onecard.engines.models.config import ConfigError, ModelConfig


@dataclass(frozen=True)
class Architecture:
    """How to read an architecture's config, and what to build from it."""

    parse: Callable[[Mapping[str, Any]], ModelConfig]
    build: Callable[..., nn.Module]


ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": Architecture(llama.parse, llama.LlamaForCausalLM),
    "MistralForCausalLM": Architecture(mistral.parse, mistral.MistralForCausalLM),
    "Qwen2ForCausalLM": Architecture(qwen2.parse, qwen2.Qwen2ForCausalLM),
    "Qwen3ForCausalLM": Architecture(qwen3.parse, qwen3.Qwen3ForCausalLM),
    "BertModel": Architecture(bert.parse, bert.BertModel),
    "XLMRobertaModel": Architecture(xlm_roberta.parse, xlm_roberta.XLMRobertaModel),
}

SERVED_AS = {
    "BertForMaskedLM": "BertModel",
    "BertForPreTraining": "BertModel",
    "BertForSequenceClassification": "BertModel",
    "RobertaModel": "XLMRobertaModel",
    "CamembertModel": "XLMRobertaModel",
    "XLMRobertaForMaskedLM": "XLMRobertaModel",
    "RobertaForMaskedLM": "XLMRobertaModel",
    "CamembertForMaskedLM": "XLMRobertaModel",
    "XLMRobertaForSequenceClassification": "XLMRobertaModel",
    "RobertaForSequenceClassification": "XLMRobertaModel",
    "CamembertForSequenceClassification": "XLMRobertaModel",
}
"""Encoders of the same shape under another name, and those below a head that isn't used."""


def load_config(path: Path) -> ModelConfig:
    """The config of a Hugging Face folder or a .gguf file.

    Raises `ConfigError` where there is none, and for an architecture or setting that isn't served.
    """
    if path.suffix == ".gguf":
        from onecard.engines.weights.gguf_config import transformers_config

        return parse_config(transformers_config(path))
    file = path / "config.json"
    if not file.is_file():
        raise ConfigError(f"{path} is neither a .gguf file nor a folder with a config.json")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    return parse_config(raw)


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The config that the content of a Hugging Face config.json describes. Raises `ConfigError`."""
    names = raw.get("architectures") or []
    for name in names:
        architecture = ARCHITECTURES.get(SERVED_AS.get(name, name))
        if architecture is not None:
            return architecture.parse(raw)
    found, served = ", ".join(names) or "not named", ", ".join([*ARCHITECTURES, *SERVED_AS])
    raise ConfigError(f"the checkpoint's architecture is {found}; served are {served}")


def build_model(config: ModelConfig, precision: Precision | None = None) -> nn.Module:
    """The model on torch's meta device: its parameters have shapes and dtypes, and no memory.

    Without a `precision`: float32 on the CPU.
    """
    with torch.device("meta"):
        return ARCHITECTURES[config.architecture].build(
            config, precision or precision_for("cpu", torch.float32)
        )
