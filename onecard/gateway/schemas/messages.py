"""Chat messages: roles, and contents whose parts are kept, since only the model knows which it takes."""

from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from onecard.engines.api import (
    AudioPart,
    ChatPrompt,
    ImagePart,
    InvalidRequestError,
    Part,
    TextPart,
    VideoPart,
)
from onecard.gateway.schemas.base import Refusal, RequestModel
from onecard.gateway.schemas.bounded_json import check_bounds

TEXT_PARTS = dict.fromkeys(("text", "input_text", "output_text"), "text")
TEXT_PARTS |= {name: name for name in ("refusal", "thinking")}
MEDIA_PARTS: dict[str, tuple[str, str, type[ImagePart | AudioPart | VideoPart]]] = {
    "image_url": ("image_url", "url", ImagePart),
    "input_image": ("image_url", "url", ImagePart),
    "image": ("image", "url", ImagePart),
    "input_audio": ("input_audio", "data", AudioPart),
    "audio_url": ("audio_url", "url", AudioPart),
    "video_url": ("video_url", "url", VideoPart),
}
"""By a part's type: the field that holds it, what must be in there, and what it becomes."""
MAX_MESSAGES = 2048
"""OpenAI's."""
MAX_PARTS = 1 << 14
"""In all messages together: they are joined on the event loop."""
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
"""A list with very many mistakes is as good as one with one, and sooner refused."""
RESERVED_TEMPLATE_KWARGS = frozenset(
    {"chat_template", "tokenize", "messages", "conversation", "tools", "documents", "add_generation_prompt"}
)


def _content(value: Any) -> str | tuple[Part, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    if len(value) > MAX_PARTS:
        raise ValueError(f"at most {MAX_PARTS} parts are taken")
    return tuple(map(_part, value))


def _part(part: Any) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if not isinstance(part, dict):
        raise ValueError('a part must be an object such as {"type": "text", "text": "..."}')
    kind = part.get("type", "text" if "text" in part else None)
    if isinstance(kind, str) and kind in TEXT_PARTS:
        text = part.get(TEXT_PARTS[kind])
        if isinstance(text, str):
            return TextPart(text, kind)
        raise ValueError(f"a part of type {kind} needs a string `{TEXT_PARTS[kind]}`")
    if isinstance(kind, str) and kind in MEDIA_PARTS:
        return _media(part, kind)
    raise ValueError(f"there are no parts of type {str(kind)[:40]!r}")


def _media(part: dict[str, Any], kind: str) -> Part:
    """From `{"image_url": {"url": ..., "detail": ...}}`, or with the URL there and the rest beside it."""
    key, needed, made = MEDIA_PARTS[kind]
    given = part.get(key)
    holder = given if isinstance(given, dict) else {**part, "url": given}
    names = [field.name for field in fields(made) if field.name != "type"]
    values = {name: holder[name] for name in names if holder.get(name) is not None}
    if needed not in values or any(not isinstance(value, str) for value in values.values()):
        raise ValueError(f"a part of type {kind} needs `{key}` with a string `{needed}`")
    return made(**values, type=kind)


_STRING = {"type": "string"}
_PART = {
    "type": "object",
    "properties": {"type": {"enum": sorted({*TEXT_PARTS, *MEDIA_PARTS})}, "text": {"type": "string"}},
    "required": ["type"],
}
Content = Annotated[
    Any,  # str | tuple[Part, ...]
    PlainValidator(_content),
    WithJsonSchema(
        {"anyOf": [_STRING, {"type": "array", "items": {"anyOf": [_STRING, _PART]}, "maxItems": MAX_PARTS}]}
    ),
]


class Message(RequestModel):
    """One message of a conversation. A model that reads text joins text parts with line ends."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Objects | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role} needs `content`")
        return self

    @property
    def text(self) -> str:
        """The content, its texts joined as a model that takes text only reads them."""
        if isinstance(self.content, tuple):
            return "\n".join(part.text for part in self.content if isinstance(part, TextPart))
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """The dict that chat templates read. They know no developer role: it is the system's newer name."""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content or "",
        }
        for name in ("name", "tool_call_id"):
            if getattr(self, name) is not None:
                message[name] = getattr(self, name)
        thoughts = self.reasoning if self.reasoning is not None else self.reasoning_content
        if thoughts is not None:
            message["reasoning"] = message["reasoning_content"] = thoughts
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return message


class Conversation(RequestModel):
    """Messages and how they are to be rendered."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    add_generation_prompt: bool | None = Field(
        None, description="Default: true, unless continue_final_message."
    )
    continue_final_message: bool = False
    documents: Objects | None = None
    chat_template: Annotated[
        Any, Refusal((), "is not taken from requests; set `engine.chat_template` in the registry")
    ] = None
    media_io_kwargs: Annotated[Any, Refusal(({},))] = None
    mm_processor_kwargs: Annotated[Any, Refusal(({},))] = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rendering_rules(self) -> "Conversation":
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidRequestError(
                "`continue_final_message` and `add_generation_prompt` exclude each other.",
                param="continue_final_message",
            )
        if reserved := sorted(RESERVED_TEMPLATE_KWARGS & self.chat_template_kwargs.keys()):
            raise InvalidRequestError(
                f"`chat_template_kwargs` must not set {', '.join(reserved)}.", param="chat_template_kwargs"
            )
        self._check_parts()
        self._parse_arguments()
        return self

    def _check_parts(self) -> None:
        contents = (message.content for message in self.messages)
        if (count := sum(len(content) for content in contents if isinstance(content, tuple))) > MAX_PARTS:
            raise InvalidRequestError(
                f"The messages have {count} parts; at most {MAX_PARTS} are taken.", param="messages"
            )

    def _parse_arguments(self) -> None:
        # Clients send a call's arguments as a JSON string, templates iterate over them as an object.
        functions = [
            function
            for message in self.messages
            for call in message.tool_calls or ()
            if isinstance(function := call.get("function"), dict)
            and isinstance(function.get("arguments"), str)
        ]
        texts = [function["arguments"].encode("utf-8", "surrogatepass") for function in functions]
        check_bounds(texts, "messages")
        for function, text in zip(functions, texts):
            with suppress(orjson.JSONDecodeError):  # the template may take it as it is
                function["arguments"] = orjson.loads(text or b"{}")

    def chat_prompt(self, tools: list[dict[str, Any]] | None) -> ChatPrompt:
        """What the engine renders."""
        generation_prompt = self.add_generation_prompt
        return ChatPrompt(
            messages=tuple(message.for_template() for message in self.messages),
            add_generation_prompt=not self.continue_final_message
            if generation_prompt is None
            else generation_prompt,
            continue_final_message=self.continue_final_message,
            tools=tuple(tools) if tools else None,
            documents=tuple(self.documents) if self.documents else None,
            chat_template_kwargs=self.chat_template_kwargs,
        )
