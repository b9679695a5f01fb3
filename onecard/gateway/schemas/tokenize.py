"""`POST /tokenize` and `POST /detokenize`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from onecard.engines.api import ChatPrompt, InvalidRequestError
from onecard.gateway.schemas.base import ModelRequest, token_ids
from onecard.gateway.schemas.messages import MAX_MESSAGES, Conversation, Message, Objects


def _token_list(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of token ids")
    return token_ids(value) if value else ()


TokenList = Annotated[
    tuple[int, ...],
    BeforeValidator(_token_list),
    WithJsonSchema({"type": "array", "items": {"type": "integer", "minimum": 0}}),
]


class TokenizeRequest(Conversation, ModelRequest):
    """A `prompt`, or `messages` to be rendered first: exactly one of them."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["prompt"]}, {"required": ["messages"]}]}
    )

    prompt: str | None = None
    messages: list[Message] = Field(default_factory=list, max_length=MAX_MESSAGES)
    tools: Objects | None = None
    add_special_tokens: bool | None = Field(
        None, description="Default: true for a prompt, false for messages."
    )
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> "TokenizeRequest":
        if (self.prompt is None) == (not self.messages):
            raise InvalidRequestError("Give either `prompt` or `messages`.", param="prompt")
        return self

    def to_engine(self) -> tuple[str | ChatPrompt, bool]:
        """What to tokenise, and whether with special tokens."""
        if self.prompt is not None:
            return self.prompt, self.add_special_tokens is not False
        return self.chat_prompt(self.tools), bool(self.add_special_tokens)


class DetokenizeRequest(ModelRequest):
    tokens: TokenList
