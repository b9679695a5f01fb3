"""`kind: llm`: decoder-only language models, from Hugging Face folders and GGUF files."""

from pathlib import Path

from onecard.engines.api import Task
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.models.registry import load_config
from onecard.engines.paged.build import DecoderFiles, build_decoder, decoder_needs
from onecard.engines.paged.engine import GenerationEngine
from onecard.engines.step.sizes import ON_CPU, StepSize, step_size
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import load_generation_defaults
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import load_tokenizer
from onecard.engines.text.tokenizer_files import check_tokenizer, tokenizer_folder
from onecard.registry.spec import ModelSpec

ON_GPU = (8192, 256)


class LanguageModelKind:
    tasks: frozenset[Task] = frozenset({"generate"})

    def read(self, spec: ModelSpec, path: Path) -> DecoderFiles:
        source, template = _text_files(spec, path)
        if template is not None:
            ChatTemplates.read(template)
        files = DecoderFiles.of(spec, path, load_config(path, "llm"))
        check_tokenizer(source, chat_templates=template is None)
        load_generation_defaults(path)
        return files

    def step_size(self, spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
        return step_size(spec.engine, ON_CPU if device_type == "cpu" else ON_GPU)

    def needs(self, spec: ModelSpec, headers: DecoderFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
        return decoder_needs(spec, headers, size, facts)

    def build(self, blueprint: Blueprint, place: Placement) -> tuple[GenerationEngine, CardModel]:
        spec, path = blueprint.spec, blueprint.path
        tokenizer = load_tokenizer(*_text_files(spec, path))
        defaults = load_generation_defaults(path)
        core, model = build_decoder(spec, blueprint.headers, blueprint.size, tokenizer, place)
        rows = blueprint.headers.config.vocab_size
        text = TextService(tokenizer, place.card.executor, num_rows=rows, model=spec.name)
        engine = GenerationEngine(
            info=blueprint.info(self.tasks, defaults.sampling),
            core=core,
            loop=place.card.loop,
            text=text,
            gate=place.gate,
            vocab_size=rows,
            eos_token_ids=(*tokenizer.eos_token_ids, *defaults.eos_token_ids),
            device=place.card.device,
            seed=spec.engine.seed,
        )
        return engine, model


def _text_files(spec: ModelSpec, path: Path) -> tuple[Path, Path | None]:
    """Whose tokenizer it is, and the file of the template that replaces its own."""
    engine = spec.engine
    template = Path(engine.chat_template) if engine.chat_template else None
    return tokenizer_folder(engine.tokenizer) if engine.tokenizer else path, template
