"""Which class runs which architecture, under which of the registry's kinds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch

from onecard.engines.layers.precision import Precision, precision_for
from onecard.engines.models import bert, llama, mistral, qwen2, qwen3, xlm_roberta
from onecard.engines.models.config import ConfigError, DecoderConfig, EncoderConfig, ModelConfig
from onecard.engines.models.served_module import ServedModule
from onecard.registry.plain_files import FileRefusedError, is_there, read_json
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

        return _parse(path, transformers_config(path), kind)
    file = path / "config.json"
    if not is_there(file):
        raise ConfigError(f"{path} is neither a .gguf file nor a folder with a config.json")
    try:
        raw = read_json(file)
    except FileRefusedError as error:
        raise ConfigError(str(error)) from error
    return _parse(file, raw, kind)


def _parse(file: Path, raw: Any, kind: ModelKind) -> ModelConfig:
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} should hold a JSON object")
    try:
        return parse_config(raw, kind)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"{file} says what makes no sense: {type(error).__name__}: {error}") from error


def parse_config(raw: Mapping[str, Any], kind: ModelKind) -> ModelConfig:
    """The config that the content of a Hugging Face config.json describes. Raises `ConfigError`."""
    served, names = ARCHITECTURES.get(kind, {}), raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("architectures should be a list of names")
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
