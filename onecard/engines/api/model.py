"""What every served model has: a card in `/v1/models`, and a tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from onecard.engines.api.generation import ChatPrompt


@dataclass(frozen=True)
class ModelInfo:
    """What `/v1/models` says of a model."""

    name: str
    kind: str
    root: str
    created: int
    max_model_len: int
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
