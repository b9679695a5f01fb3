"""One-shot encoders: what they need of a card, and their device-loop side; weights come later."""

from dataclasses import dataclass
from pathlib import Path

from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.models.config import EncoderConfig
from onecard.engines.oneshot.core import Head, OneShotCore
from onecard.engines.oneshot.practice import OneShotPractice
from onecard.engines.oneshot.queue import TokenBudgetQueue
from onecard.engines.step.hooks import EngineHooks
from onecard.engines.step.sizes import ON_CPU, StepSize, longest_text, model_needs, step_size
from onecard.engines.step.warm_up import WarmUp
from onecard.engines.text.tokenizer import Tokenizer, load_tokenizer
from onecard.engines.text.tokenizer_files import check_tokenizer, tokenizer_folder
from onecard.engines.weights.loader import activation_dtype, load_model, weight_needs
from onecard.registry.spec import ModelSpec

ON_GPU = (16384, 512)


@dataclass(frozen=True)
class EncoderFiles:
    """A checkpoint at `path`, and what its texts may be."""

    path: Path
    config: EncoderConfig
    max_model_len: int
    lowercase: bool = False

    @classmethod
    def of(
        cls, spec: ModelSpec, path: Path, config: EncoderConfig, advised: int | None, lowercase: bool = False
    ) -> "EncoderFiles":
        """The model's own longest text is what its makers have `advised`, if its positions allow that."""
        own = min(advised or config.max_text_len, config.max_text_len)
        return cls(path, config, longest_text(spec, own), lowercase)

    def check_tokenizer(self, spec: ModelSpec) -> None:
        """Raises `ModelFileError` where there is none."""
        check_tokenizer(self._tokenizer_path(spec))

    def tokenizer(self, spec: ModelSpec) -> Tokenizer:
        return load_tokenizer(self._tokenizer_path(spec), lowercase=self.lowercase)

    def _tokenizer_path(self, spec: ModelSpec) -> Path:
        return tokenizer_folder(spec.engine.tokenizer) if spec.engine.tokenizer else self.path


def encoder_step_size(spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
    """A text isn't cut: a step holds the longest one."""
    return step_size(spec.engine, ON_CPU if device_type == "cpu" else ON_GPU, max_model_len)


def encoder_needs(spec: ModelSpec, files: EncoderFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
    device_type, config = facts.device.split(":")[0], files.config
    dtype = activation_dtype(files.path, spec.engine.dtype, device_type)
    tokens = max(size.max_num_batched_tokens, files.max_model_len)
    workspace = tokens * (8 * config.hidden_size + 2 * config.intermediate_size) * dtype.itemsize
    weights = weight_needs(files.path, config, spec.engine.dtype, device_type)
    return model_needs(spec, facts, weights, workspace, files.max_model_len)


def build_encoder(
    spec: ModelSpec, files: EncoderFiles, size: StepSize, head: Head, width: int, place: Placement
) -> tuple[OneShotCore, CardModel]:
    """The core, not yet known to its card, and the model that brings in its weights. `head` makes `width`
    numbers of a text."""
    card, config = place.card, files.config
    core = OneShotCore(
        spec.name,
        spec.weight,
        spec.priority,
        head,
        TokenBudgetQueue(size.max_num_batched_tokens, size.max_num_seqs),
        files.max_model_len,
        card.device,
        card.clock,
        card.stats,
        card.loop.deliver,
    )
    practice = OneShotPractice(core, size, config.vocab_size, files.max_model_len, width)
    warm_up = WarmUp(core, practice, card.device.type == "cpu") if place.warm_up else None
    hooks = EngineHooks(core, card.device, place.share.workspace_bytes, warm_up, place.on_capture)
    return core, place.card_model(
        spec,
        lambda memory, progress: load_model(
            files.path, config, card.device, spec.engine.dtype, memory, progress
        ),
        core,
        hooks,
    )
