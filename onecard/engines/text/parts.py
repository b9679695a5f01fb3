"""The parts of messages, for a model that reads nothing but text."""

from dataclasses import replace

from onecard.engines.api import ChatPrompt, InvalidRequestError, Part, TextPart


def text_only(prompt: ChatPrompt) -> ChatPrompt:
    """`prompt` with each content as one text: its parts, joined with line ends.

    Raises `InvalidRequestError` for a part that is no text.
    """
    if not any(isinstance(message.get("content"), tuple) for message in prompt.messages):
        return prompt
    messages = [
        {**message, "content": _joined(message["content"], f"messages[{i}].content")}
        if isinstance(message.get("content"), tuple)
        else message
        for i, message in enumerate(prompt.messages)
    ]
    return replace(prompt, messages=tuple(messages))


def _joined(parts: tuple[Part, ...], field: str) -> str:
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) < len(parts):
        other = next(part for part in parts if not isinstance(part, TextPart))
        raise InvalidRequestError(
            f"`{field}`: this model takes text only, not parts of type {other.type!r}", param=field
        )
    return "\n".join(texts)
