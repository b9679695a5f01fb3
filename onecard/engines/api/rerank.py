"""Reranking: a query, documents, and how well each answers it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onecard.engines.api.model import Tokenizing


@dataclass(frozen=True)
class RerankRequest:
    """Each document is read together with the query: that is what has to fit the model.

    `max_tokens_per_doc` cuts documents, `truncate_prompt_tokens` whatever is longer of a pair (-1: at the
    model's own maximum). `raw_scores`: as the model's head gives them, of any size.
    """

    request_id: str
    query: str
    documents: tuple[str, ...]
    max_tokens_per_doc: int | None = None
    truncate_prompt_tokens: int | None = None
    raw_scores: bool = False
    priority: int = 0


@dataclass(frozen=True)
class RerankResult:
    """`scores`: float32 `[len(documents)]`, in their order; 0 to 1 unless they are raw."""

    scores: np.ndarray
    prompt_tokens: int


class Reranker(Tokenizing, Protocol):
    """What does the task "rerank"."""

    async def rerank(
        self, request: RerankRequest, on_begun: Callable[[], None] | None = None
    ) -> RerankResult:
        """See `Embedder.embed` for what cancelling does, and for `on_begun`."""
        ...
