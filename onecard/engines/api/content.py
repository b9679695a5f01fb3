"""What a conversation is made of: messages, and the parts of their contents.

Parts stay as the client sent them until the model is known; its engine reads them, or refuses those that it
doesn't take. `type` is the client's word for a part, for sentences.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TextPart:
    text: str
    type: str = "text"


@dataclass(frozen=True)
class ImagePart:
    """`url` may be a `data:` URL; `detail` is OpenAI's low, high or auto."""

    url: str
    detail: str | None = None
    type: str = "image_url"


@dataclass(frozen=True)
class AudioPart:
    """Either `data`, which is base64, with its `format` (wav, mp3), or a `url`."""

    data: str | None = None
    url: str | None = None
    format: str | None = None
    type: str = "input_audio"


@dataclass(frozen=True)
class VideoPart:
    url: str
    type: str = "video_url"


Part = TextPart | ImagePart | AudioPart | VideoPart


@dataclass(frozen=True)
class ChatPrompt:
    """Messages to be rendered by the model's chat template.

    The `content` of each is a text or a tuple of `Part`s.
    """

    messages: tuple[dict[str, Any], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: tuple[dict[str, Any], ...] | None = None
    documents: tuple[dict[str, Any], ...] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    reasoning_effort: str | None = None
    """How much the model shall think, in OpenAI's words; given to the template."""
