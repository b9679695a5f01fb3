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
    default_sampling: dict[str, Any] = field(default_factory=dict)
    """From the model's generation_config: used where the request is silent."""


class Tokenizing(Protocol):
    info: ModelInfo

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids. `add_special_tokens=None`: to a text yes, to messages no (templates write their own)."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    def token_strings(self, token_ids: Sequence[int]) -> list[str]: ...

    def tokenizer_info(self) -> dict[str, Any]:
        """What a `tokenizer_config.json` says: class, special and added tokens, chat template."""
        ...
