"""The tokens of a vocabulary that have a role."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SpecialTokens:
    """By id, and by text for chat templates: `names` maps a role (`bos_token`, ...) to the token."""

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    """Ids that end an answer, the tokenizer's own first."""
    pad_token_id: int | None = None
    names: dict[str, str] = field(default_factory=dict)
