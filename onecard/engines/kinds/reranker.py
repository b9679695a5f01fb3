"""`kind: reranker`: cross-encoders, which read a query and a document together and say how well they go."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onecard.engines.api import InvalidRequestError, RerankRequest, RerankResult, Task
from onecard.engines.kinds.kind import Blueprint
from onecard.engines.lifecycle.attach import Placement
from onecard.engines.lifecycle.card_model import CardModel
from onecard.engines.memory.card_plan import CardFacts, ModelNeeds, PlanError
from onecard.engines.models.registry import load_config
from onecard.engines.oneshot.build import EncoderFiles, build_encoder, encoder_needs, encoder_step_size
from onecard.engines.oneshot.engine import InputTooLongError, OneShotEngine
from onecard.engines.oneshot.heads.classify import classify
from onecard.engines.step.sizes import StepSize
from onecard.engines.text.hf_tokenizer import model_max_length
from onecard.engines.text.service import TextService
from onecard.registry.spec import ModelSpec


class RerankerKind:
    tasks: frozenset[Task] = frozenset({"rerank"})

    def read(self, spec: ModelSpec, path: Path) -> EncoderFiles:
        config = load_config(path, "reranker")
        if config.num_labels != 1:
            raise PlanError(
                f"{spec.name}: a reranker's head has one output, its score; this one has {config.num_labels} "
                f"({', '.join(config.id2label)})"
            )
        return EncoderFiles.of(spec, path, config, model_max_length(path))

    def step_size(self, spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
        return encoder_step_size(spec, device_type, max_model_len)

    def needs(self, spec: ModelSpec, headers: EncoderFiles, size: StepSize, facts: CardFacts) -> ModelNeeds:
        return encoder_needs(spec, headers, size, facts)

    def build(self, blueprint: Blueprint, place: Placement) -> tuple["RerankingEngine", CardModel]:
        spec, files = blueprint.spec, blueprint.headers
        text = TextService(files.tokenizer(spec), place.card.executor)
        core, model = build_encoder(spec, files, blueprint.size, classify, 1, place)
        info = blueprint.info(self.tasks)
        return RerankingEngine(info, core, place.card.loop, text, place.gate, 1), model


class RerankingEngine(OneShotEngine):
    """Implements `api.Reranker`."""

    async def rerank(
        self, request: RerankRequest, on_begun: Callable[[], None] | None = None
    ) -> RerankResult:
        """Raises `InvalidRequestError` before anything has run, `EngineFailedError` if a step fails."""
        arrived = time.monotonic()
        if not request.documents:
            raise InvalidRequestError("`documents` is empty: send at least one.", param="documents")
        limit = self._truncation(request.truncate_prompt_tokens)
        with self.gate.arriving():
            pairs = await self._text.encode_pairs(
                request.query, request.documents, request.max_tokens_per_doc, limit
            )
        longest = self.info.max_model_len
        for index, pair in enumerate(pairs):
            if len(pair.token_ids) > longest:
                what = f"the query and document {index}"
                raise InputTooLongError(longest, len(pair.token_ids), what, "reranking", "documents")
        texts = [pair.token_ids for pair in pairs]
        logits = await self._run(
            texts, request.priority, on_begun, arrived, [pair.type_ids for pair in pairs]
        )
        scores = logits[:, 0] if request.raw_scores else 1.0 / (1.0 + np.exp(-logits[:, 0]))
        return RerankResult(scores, sum(map(len, texts)))
