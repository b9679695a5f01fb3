"""Embeddings: a request, its vectors, and who makes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onecard.engines.api.model import Tokenizing


@dataclass(frozen=True)
class EmbedRequest:
    """Texts or token-id lists to embed. `truncate_prompt_tokens=-1` cuts at the model's own maximum.

    `normalize`: vectors of length 1, or as long as they come; None: as the model's own files say.
    """

    request_id: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool = True
    normalize: bool | None = None
    priority: int = 0


@dataclass(frozen=True)
class EmbedResult:
    """`vectors`: float32 `[len(inputs), dim]`, row i for input i."""

    vectors: np.ndarray
    prompt_tokens: int


class Embedder(Tokenizing, Protocol):
    """What does the task "embed"."""

    async def embed(self, request: EmbedRequest, on_begun: Callable[[], None] | None = None) -> EmbedResult:
        """Cancelling the awaiting task drops what has not run yet.

        `on_begun` is called on the event loop's thread when the last of the texts runs, so that none waits
        any more, maybe only after the end of a request that is cancelled just then.
        """
        ...
