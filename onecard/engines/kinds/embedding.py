"""`kind: embedding`: texts to vectors, as a sentence-transformers folder says."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onecard.engines.api import EmbedRequest, EmbedResult, InvalidRequestError, Task
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.models.registry import load_config
from onecard.engines.oneshot.build import EncoderFiles, build_encoder, encoder_needs, encoder_step_size
from onecard.engines.oneshot.engine import OneShotEngine
from onecard.engines.oneshot.heads.pool import cut_dimensions
from onecard.engines.oneshot.sentence_config import SentenceConfig, load_sentence_config
from onecard.engines.step.sizes import StepSize
from onecard.engines.text.fit import Fit
from onecard.engines.text.service import TextService
from onecard.registry.spec import ModelSpec

NUMBERS_A_CHARACTER = 250
"""How many numbers are finished in the time in which a character is encoded, for `TextService.run`."""


@dataclass(frozen=True)
class EmbeddingFiles:
    encoder: EncoderFiles
    sentences: SentenceConfig

    @property
    def max_model_len(self) -> int:
        return self.encoder.max_model_len


FOREIGN_IDS = (
    " Are these another model's tokens? LangChain's OpenAIEmbeddings sends OpenAI's: give it "
    "check_embedding_ctx_length=False, so that it sends text."
)


class EmbeddingKind:
    tasks: frozenset[Task] = frozenset({"embed"})

    def read(self, spec: ModelSpec, path: Path) -> EmbeddingFiles:
        sentences = load_sentence_config(path)
        folder = sentences.transformer_path
        config = load_config(folder, "embedding")
        encoder = EncoderFiles.of(spec, folder, config, sentences.max_seq_length, sentences.do_lower_case)
        encoder.check_tokenizer(spec)
        return EmbeddingFiles(encoder, sentences)

    def step_size(self, spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
        return encoder_step_size(spec, device_type, max_model_len)

    def needs(self, spec: ModelSpec, headers: EmbeddingFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
        return encoder_needs(spec, headers.encoder, size, facts)

    def build(self, blueprint: Blueprint, place: Placement) -> tuple["EmbeddingEngine", CardModel]:
        spec, files = blueprint.spec, blueprint.headers
        sentences, dimensions = files.sentences, files.encoder.config.hidden_size
        rows = files.encoder.config.vocab_size
        text = TextService(files.encoder.tokenizer(spec), place.card.executor, num_rows=rows, model=spec.name)
        pooling = replace(sentences.pooling, normalize=False)  # a request may want them as long as they come
        core, model = build_encoder(spec, files.encoder, blueprint.size, pooling, dimensions, place)
        info = blueprint.info(self.tasks)
        front = info, core, place.card.loop, text, place.gate, dimensions
        return EmbeddingEngine(*front, sentences=sentences, takes_ids=spec.accept_token_ids), model


class EmbeddingEngine(OneShotEngine):
    """Implements `api.Embedder`. `width`: dimensions of the model's own vectors; `takes_ids`: texts may be
    given as token ids."""

    def __init__(self, *front: Any, sentences: SentenceConfig, takes_ids: bool = True):
        super().__init__(*front)
        self._sentences = sentences
        self._takes_ids = takes_ids

    async def embed(self, request: EmbedRequest, on_begun: Callable[[], None] | None = None) -> EmbedResult:
        """Raises `InvalidRequestError` before anything has run, `EngineFailedError` if a step fails."""
        arrived, asked = time.monotonic(), request.dimensions
        self._check_dimensions(asked)
        limit = self._truncation(request.truncate_prompt_tokens)
        longest = self.info.max_model_len
        fit = Fit(longest, limit or longest, "first" if limit else "all", "input", _name)
        with self.gate.arriving():
            texts = self._fitted(await self._token_ids(request, fit), fit)
        vectors = await self._run(texts, request.priority, on_begun, arrived)
        own = self._sentences.pooling.normalize
        normalize = own if request.normalize is None else request.normalize
        vectors = await self._text.run(
            vectors.size // NUMBERS_A_CHARACTER,
            lambda: cut_dimensions(vectors, asked or self._width, normalize),
        )
        return EmbedResult(vectors, sum(map(len, texts)))

    async def _token_ids(self, request: EmbedRequest, fit: Fit) -> list[list[int]]:
        """Each input's: texts go through the tokenizer together, ids are checked."""
        if not request.inputs:
            raise InvalidRequestError("The input is empty: send at least one text.", param="input")
        places = [i for i, given in enumerate(request.inputs) if isinstance(given, str)]
        if len(places) < len(request.inputs):
            self._check_taken()
        texts = [given for given in request.inputs if isinstance(given, str)]
        of_texts = replace(fit, name=lambda index: _name(places[index]))
        encoded = iter(await self._text.encode_texts(texts, request.add_special_tokens, of_texts))
        return [
            next(encoded) if isinstance(given, str) else self._text.given_ids(given, fit, i, FOREIGN_IDS)
            for i, given in enumerate(request.inputs)
        ]

    def _check_taken(self) -> None:
        if not self._takes_ids:
            raise InvalidRequestError(
                f"Model {self.info.name!r} takes texts only, not token ids (`accept_token_ids: false` in the "
                "registry): send strings. LangChain does so with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False).",
                param="input",
            )

    def _fitted(self, texts: list[list[int]], fit: Fit) -> list[list[int]]:
        for index, token_ids in enumerate(texts):
            if fit.cuts and len(token_ids) > fit.tokens:
                texts[index] = token_ids = self._text.tokenizer.truncate(token_ids, fit.tokens)
            if not token_ids:
                raise InvalidRequestError(
                    f"Input {index} is empty: send at least one token of text.", param="input"
                )
            fit.check_tokens(len(token_ids), index)
        return texts

    def _check_dimensions(self, asked: int | None) -> None:
        if asked is None or asked == self._width:
            return
        known = self._sentences.matryoshka_dimensions
        if not self._sentences.is_matryoshka:
            reason = (
                f"Model {self.info.name!r} does not support Matryoshka representation: its vectors have "
                f"{self._width} dimensions and would lose their meaning if cut."
            )
        elif known and asked not in known:
            reason = (
                f"Model {self.info.name!r} can give {', '.join(map(str, known))} dimensions, not {asked}."
            )
        elif not 1 <= asked <= self._width:
            reason = f"Model {self.info.name!r} can give 1 to {self._width} dimensions, not {asked}."
        else:
            return
        raise InvalidRequestError(reason, param="dimensions")


def _name(index: int) -> str:
    return f"input {index} for embedding generation"
