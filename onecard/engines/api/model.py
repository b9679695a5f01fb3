"""What every served model has: a card in `/v1/models`, and a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from onecard.engines.api.content import ChatPrompt

Task = Literal["generate", "embed", "rerank"]
"""What a client may ask of a model; each is a Protocol of this package that its engine implements."""


@dataclass(frozen=True)
class ModelInfo:
    """What `/v1/models` says of a model."""

    name: str
    kind: str
    root: str
    created: int
    max_model_len: int
    tasks: frozenset[Task]
    aliases: tuple[str, ...] = ()
    generation_config: dict[str, Any] = field(default_factory=dict)
    """What the model's files recommend, under the names of `SamplingParams`."""
    default_sampling: dict[str, Any] = field(default_factory=dict)
    """Used where the request is silent: `generation_config`, and above it what the registry says."""


class Tokenizing(Protocol):
    info: ModelInfo

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids, also more than the model can take, up to what could never fit: `ContextLengthError`.

        `add_special_tokens=None`: to a text yes, to messages no (templates write their own).
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]: ...

    def tokenizer_info(self) -> dict[str, Any]:
        """What a `tokenizer_config.json` says: class, special and added tokens, chat template."""
        ...
