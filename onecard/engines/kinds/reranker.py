"""`kind: reranker`: cross-encoders, which read a query and a document together and say how well they go."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onecard.engines.api import EngineFailedError, InvalidRequestError, RerankRequest, RerankResult, Task
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.card_model import CardModel, Placement
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds, PlanError
from onecard.engines.models.registry import load_config
from onecard.engines.oneshot.build import EncoderFiles, build_encoder, encoder_needs, encoder_step_size
from onecard.engines.oneshot.engine import OneShotEngine
from onecard.engines.oneshot.heads.classify import classify
from onecard.engines.step.sizes import StepSize
from onecard.engines.text.fit import Fit
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.hf_tokenizer import model_max_length, tells_token_types
from onecard.engines.text.pairs import Pair, PairTemplate, longest_first
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer import answered
from onecard.registry.spec import ModelSpec
from onecard.registry.units import counted


class RerankerKind:
    tasks: frozenset[Task] = frozenset({"rerank"})

    def read(self, spec: ModelSpec, path: Path) -> EncoderFiles:
        config = load_config(path, "reranker")
        if config.num_labels != 1:
            raise PlanError(
                f"{spec.name}: a reranker's head has one output, its score; this one has {config.num_labels} "
                f"({', '.join(config.id2label)})"
            )
        files = EncoderFiles.of(spec, path, config, model_max_length(path))
        files.check_tokenizer(spec)
        return files

    def step_size(self, spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
        return encoder_step_size(spec, device_type, max_model_len)

    def needs(self, spec: ModelSpec, headers: EncoderFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
        return encoder_needs(spec, headers, size, facts)

    def build(self, blueprint: Blueprint, place: Placement) -> tuple["RerankingEngine", CardModel]:
        spec, files = blueprint.spec, blueprint.headers
        rows = files.config.vocab_size
        text = TextService(files.tokenizer(spec), place.card.executor, num_rows=rows, model=spec.name)
        typed = files.config.type_vocab_size > 1 and tells_token_types(files.path)
        template = _template(text, files, typed)
        core, model = build_encoder(spec, files, blueprint.size, classify, 1, place)
        info = blueprint.info(self.tasks)
        front = (info, core, place.card.loop, text, place.gate, 1)
        return RerankingEngine(*front, template=template, typed=typed), model


def _template(text: TextService, files: EncoderFiles, typed: bool) -> PairTemplate:
    """Raises `ModelFileError` where the tokenizer makes no pairs, or none that the model can read."""
    try:
        with answered("join two texts"):
            template = PairTemplate.of(text.tokenizer.backend)
    except (ModelFileError, EngineFailedError) as error:
        raise ModelFileError(f"{files.path}: {error}") from error
    if typed and template.num_types > files.config.type_vocab_size:
        raise ModelFileError(
            f"{files.path}: the tokenizer tells {template.num_types} types of tokens apart, the model "
            f"{files.config.type_vocab_size}"
        )
    return template


class RerankingEngine(OneShotEngine):
    """Implements `api.Reranker`. Not `typed`: the model isn't told the types of tokens."""

    def __init__(self, *front: Any, template: PairTemplate, typed: bool):
        super().__init__(*front)
        self._template = template
        self._typed = typed

    async def rerank(
        self, request: RerankRequest, on_begun: Callable[[], None] | None = None
    ) -> RerankResult:
        """Raises `InvalidRequestError` before anything has run, `EngineFailedError` if a step fails."""
        arrived = time.monotonic()
        if not request.documents:
            raise InvalidRequestError("`documents` is empty: send at least one.", param="documents")
        room = self._room(request.truncate_prompt_tokens)
        with self.gate.arriving():
            given = [request.query, *request.documents]
            encoded = await self._text.encode_texts(given, False, self._fit(request, room))
            size = sum(len(request.query) + len(document) for document in request.documents)
            most = request.max_tokens_per_doc
            pairs = await self._text.run(size, lambda: self._pairs(encoded, most, room))
        texts = [pair.token_ids for pair in pairs]
        types = [pair.type_ids for pair in pairs]
        logits = (await self._run(texts, request.priority, on_begun, arrived, types))[:, 0]
        return RerankResult(logits if request.raw_scores else sigmoid(logits), sum(map(len, texts)))

    def _fit(self, request: RerankRequest, room: int | None) -> Fit:
        """Of each text by itself; a pair is looked at when it is joined."""
        cuts = room is not None or request.max_tokens_per_doc is not None
        longest = self.info.max_model_len
        return Fit(longest, longest, "first" if cuts else "all", "documents", _name)

    def _room(self, asked: int | None) -> int | None:
        """For a pair's two texts, where the request allows cutting."""
        limit, added = self._truncation(asked), self._template.num_added
        if limit is not None and limit <= added:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' comes to {limit}; a pair has {counted(added, 'token')} of the "
                "model's own beside the query and the document.",
                param="truncate_prompt_tokens",
            )
        return None if limit is None else limit - added

    def _pairs(self, encoded: list[list[int]], most: int | None, room: int | None) -> list[Pair]:
        query, *documents = encoded
        return [self._pair(index, query, document[:most], room) for index, document in enumerate(documents)]

    def _pair(self, index: int, query: list[int], document: list[int], room: int | None) -> Pair:
        """Only what fits is joined: a long query times many documents is more than there is memory for."""
        first, second = len(query), len(document)
        if room is not None:
            first, second = longest_first(first, second, room)
        longest, length = self.info.max_model_len, first + second + self._template.num_added
        if length > longest:
            what = f"the query and document {index} for reranking"
            raise Fit(longest, longest, param="documents", name=lambda _: what).refusal(
                counted(length, "token")
            )
        if length == 0:
            raise InvalidRequestError(f"The query and document {index} are empty.", param="documents")
        return self._template.join(query[:first], document[:second], self._typed)


def _name(index: int) -> str:
    return f"the query and document {max(index - 1, 0)} for reranking"


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Without overflow for logits of any size."""
    return np.exp(-np.logaddexp(np.float32(0), -logits))
