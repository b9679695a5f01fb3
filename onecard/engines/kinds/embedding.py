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
from onecard.engines.oneshot.engine import InputTooLongError, OneShotEngine
from onecard.engines.oneshot.heads.pool import cut_dimensions
from onecard.engines.oneshot.sentence_config import SentenceConfig, load_sentence_config
from onecard.engines.step.sizes import StepSize
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


class EmbeddingKind:
    tasks: frozenset[Task] = frozenset({"embed"})

    def read(self, spec: ModelSpec, path: Path) -> EmbeddingFiles:
        sentences = load_sentence_config(path)
        folder = sentences.transformer_path
        config = load_config(folder, "embedding")
        encoder = EncoderFiles.of(spec, folder, config, sentences.max_seq_length, sentences.do_lower_case)
        return EmbeddingFiles(encoder, sentences)

    def step_size(self, spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
        return encoder_step_size(spec, device_type, max_model_len)

    def needs(self, spec: ModelSpec, headers: EmbeddingFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
        return encoder_needs(spec, headers.encoder, size, facts)

    def build(self, blueprint: Blueprint, place: Placement) -> tuple["EmbeddingEngine", CardModel]:
        spec, files = blueprint.spec, blueprint.headers
        sentences, dimensions = files.sentences, files.encoder.config.hidden_size
        text = TextService(files.encoder.tokenizer(spec), place.card.executor)
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
        with self.gate.arriving():
            texts = self._fitted(await self._token_ids(request), limit)
        vectors = await self._run(texts, request.priority, on_begun, arrived)
        own = self._sentences.pooling.normalize
        normalize = own if request.normalize is None else request.normalize
        vectors = await self._text.run(
            vectors.size // NUMBERS_A_CHARACTER,
            lambda: cut_dimensions(vectors, asked or self._width, normalize),
        )
        return EmbedResult(vectors, sum(map(len, texts)))

    async def _token_ids(self, request: EmbedRequest) -> list[list[int]]:
        if not request.inputs:
            raise InvalidRequestError("The input is empty: send at least one text.", param="input")
        texts = [text for text in request.inputs if isinstance(text, str)]
        encoded = iter(await self._text.encode_texts(texts, request.add_special_tokens) if texts else [])
        token_ids = []
        for given in request.inputs:
            if isinstance(given, str):
                token_ids.append(next(encoded))
            else:
                self._check_taken()
                self._text.check_token_ids(given, param="input")
                token_ids.append(list(given))
        return token_ids

    def _check_taken(self) -> None:
        if not self._takes_ids:
            raise InvalidRequestError(
                f"Model {self.info.name!r} takes texts only, not token ids (`accept_token_ids: false` in the "
                "registry): send strings. LangChain does so with "
                "OpenAIEmbeddings(check_embedding_ctx_length=False).",
                param="input",
            )

    def _fitted(self, texts: list[list[int]], truncate_to: int | None) -> list[list[int]]:
        longest = self.info.max_model_len
        for index, token_ids in enumerate(texts):
            if truncate_to is not None and len(token_ids) > truncate_to:
                texts[index] = token_ids = self._text.tokenizer.truncate(token_ids, truncate_to)
            if not token_ids:
                raise InvalidRequestError(
                    f"Input {index} is empty: send at least one token of text.", param="input"
                )
            if len(token_ids) > longest:
                raise InputTooLongError(
                    longest, len(token_ids), f"input {index}", "embedding generation", "input"
                )
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
