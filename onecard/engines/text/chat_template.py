"""Chat templates: messages to prompt text, as `transformers` renders them.

Whoever wrote them, a model's makers or a client, they are strangers' programs, so they run in processes of
their own, with limits (`template_process`).
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jinja2

from onecard.engines.api import ChatPrompt, InvalidRequestError, Part, TextPart
from onecard.engines.text.generation_config import ModelFileError, read_text
from onecard.engines.text.template_environment import check_syntax, variables_of
from onecard.engines.text.template_process import (
    OWN_SOURCE_BYTES,
    ProcessEndedError,
    TemplateLimits,
    TemplateProcesses,
)

log = logging.getLogger(__name__)

SHORT_CHARS = 100_000
_RESERVED = ("messages", "tools", "documents")
_CONTINUE_MARK = "\ue0c0continue\ue0c1 "
"""Marks where the final message ends; its trailing space tells whether the template trims content."""


def text_only(prompt: ChatPrompt) -> ChatPrompt:
    """`prompt` with each content as one text: its parts, joined with line ends.

    For a model that reads nothing but text. Raises `InvalidRequestError` for a part that is no text.
    """
    messages = (
        {**message, "content": _joined(content, f"messages[{i}].content")}
        if isinstance(content := message.get("content"), tuple)
        else message
        for i, message in enumerate(prompt.messages)
    )
    return replace(prompt, messages=tuple(messages))


def _joined(parts: tuple[Part, ...], field: str) -> str:
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    if len(texts) < len(parts):
        other = next(part for part in parts if not isinstance(part, TextPart))
        raise InvalidRequestError(
            f"`{field}`: this model takes text only, not parts of type {other.type!r}", param=field
        )
    return "\n".join(texts)


class ChatTemplates:
    """A model's templates by name; `default` is the one used unless there are tools and a `tool_use`. Raises
    `ModelFileError` where one doesn't parse; `origin`: whose they are, in words."""

    def __init__(
        self,
        sources: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
        origin: str = "the model",
    ):
        self.sources = dict(sources or {})
        self._origin = origin
        self._limits = limits or TemplateLimits()
        self._processes = TemplateProcesses(self._limits)
        for source in self.sources.values():
            _check_own(source, origin)
        self._reads = {
            source: variables_of(source) | ({"tools"} if name == "tool_use" else set())
            for name, source in self.sources.items()
        }

    @classmethod
    def read(cls, file: Path) -> "ChatTemplates":
        """The one in `file`, for all messages."""
        return cls({"default": read_text(file)}, origin=str(file))

    def __bool__(self) -> bool:
        return bool(self.sources)

    def source_for(self, prompt: ChatPrompt) -> str:
        """The template that `prompt` asks for. Raises `InvalidRequestError` where there is none."""
        if prompt.chat_template is not None:
            return prompt.chat_template
        if prompt.tools and "tool_use" in self.sources:
            return self.sources["tool_use"]
        if "default" in self.sources:
            return self.sources["default"]
        if self.sources:
            names = ", ".join(sorted(self.sources))
            raise InvalidRequestError(
                f"The model has several chat templates ({names}) and none is its default: "
                "set `engine.chat_template` in the registry.",
                param="messages",
            )
        raise InvalidRequestError(
            "The model has no chat template: send a `prompt` instead of messages (to /v1/completions instead "
            "of /v1/chat/completions), or set `engine.chat_template` in the registry.",
            param="messages",
        )

    async def render(self, prompt: ChatPrompt, special_tokens: Mapping[str, str]) -> str:
        """The prompt text. Raises `InvalidRequestError` with the template's own message where it refuses,
        saying which limit it breaks, or for what it would leave out."""
        source = self.source_for(prompt)
        own = source in self.sources.values()
        if own:
            _check_read(prompt, self._reads[source])
        else:
            self._check_length(source)

        def question() -> bytes:
            variables = _variables(prompt, special_tokens)
            if prompt.continue_final_message:
                variables["messages"] = _with_continue_mark(variables["messages"], prompt)
            return _as_json({"source": source, "variables": variables, "limits": asdict(self._limits)})

        asked = question() if _is_short(prompt) else await asyncio.to_thread(question)
        whose, param = ("The", "messages") if own else ("The request's", "chat_template")
        text = await self._answer(asked, f"{whose} chat template", self._name(source), param)
        return _cut_at_mark(text) if prompt.continue_final_message else text

    def _check_length(self, source: str) -> None:
        if len(source.encode("utf-8", "surrogatepass")) > self._limits.source_bytes:
            raise InvalidRequestError(
                f"The request's chat template is longer than {self._limits.source_bytes} bytes.",
                param="chat_template",
            )

    async def _answer(self, question: bytes, whose: str, name: str, param: str) -> str:
        limits = self._limits
        if len(question) > limits.input_bytes:
            raise InvalidRequestError(
                f"The messages and tools come to {len(question)} bytes; a chat template takes "
                f"{limits.input_bytes}.",
                param="messages",
            )
        try:
            answer = await self._processes.ask(question)
        except ProcessEndedError:
            used = f"{limits.cpu_seconds} s or {limits.memory_bytes >> 20} MiB"
            answer = f"Frendering it took more than {used}".encode()
        letter, text = answer[:1], answer[1:].decode()
        if letter == b"T":
            return text
        if letter == b"R":
            raise InvalidRequestError(f"{whose} refused the messages: {text}", param=param)
        log.warning("A chat template of %s broke a limit: %s", self._origin, text)
        raise InvalidRequestError(f"{whose} ({name}) can't be used: {text}", param=param)

    def _name(self, source: str) -> str:
        return next((name for name, own in self.sources.items() if own == source), "from the request")


def _is_short(prompt: ChatPrompt) -> bool:
    """Whether to write it as JSON is a matter of microseconds: a few messages, with nothing but texts."""
    if prompt.tools or prompt.documents or prompt.chat_template_kwargs or len(prompt.messages) > 100:
        return False
    texts = [text for message in prompt.messages for text in message.values()]
    return all(text is None or isinstance(text, str) for text in texts) and (
        sum(len(text) for text in texts if text) < SHORT_CHARS
    )


def _check_own(source: str, origin: str) -> None:
    if not isinstance(source, str) or len(source) > OWN_SOURCE_BYTES:
        raise ModelFileError(
            f"the chat template of {origin} is no text of up to {OWN_SOURCE_BYTES} characters: set "
            "`engine.chat_template` to another file"
        )
    try:
        check_syntax(source)
    except jinja2.TemplateSyntaxError as error:
        raise ModelFileError(
            f"the chat template of {origin} doesn't parse: {error.message} in line {error.lineno}; "
            "correct it, or set `engine.chat_template` to another file"
        ) from error


def _as_json(question: dict[str, Any]) -> bytes:
    try:
        return json.dumps(question).encode()
    except (RecursionError, ValueError, TypeError):
        raise InvalidRequestError(
            "The messages or tools are nested too deeply for a chat template.", param="messages"
        ) from None


def _check_read(prompt: ChatPrompt, reads: frozenset[str]) -> None:
    """What the template doesn't read, the model would never see."""
    effort = prompt.reasoning_effort
    unread = {
        "tools": bool(prompt.tools) and "tools" not in reads,
        "documents": bool(prompt.documents) and "documents" not in reads,
        "reasoning_effort": effort not in (None, "none")
        and not reads & {"reasoning_effort", "enable_thinking"},
    }
    for field, is_unread in unread.items():
        if is_unread:
            raise InvalidRequestError(
                f"The model's chat template has no place for `{field}`, so the model would never see what it "
                "says. Leave it out, or ask a model that was made for it.",
                param=field,
            )


def _variables(prompt: ChatPrompt, special_tokens: Mapping[str, str]) -> dict[str, Any]:
    for name in _RESERVED:
        if name in prompt.chat_template_kwargs:
            raise InvalidRequestError(
                f"'{name}' is a field of the request and can't be given in 'chat_template_kwargs'.",
                param="chat_template_kwargs",
            )
    return {
        **special_tokens,
        "add_generation_prompt": prompt.add_generation_prompt,
        **prompt.chat_template_kwargs,
        **_effort(prompt),
        "messages": [_with_parsed_arguments(message) for message in prompt.messages],
        "tools": list(prompt.tools) if prompt.tools else None,
        "documents": list(prompt.documents) if prompt.documents else None,
    }


def _effort(prompt: ChatPrompt) -> dict[str, Any]:
    """`reasoning_effort` as templates know it: by that name, or as a switch, as in vLLM."""
    if prompt.reasoning_effort is None:
        return {}
    thinks = {"enable_thinking": prompt.reasoning_effort != "none"}
    switch = {} if "enable_thinking" in prompt.chat_template_kwargs else thinks
    return {**switch, "reasoning_effort": prompt.reasoning_effort}


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates iterate over a tool call's arguments; clients send them as the JSON text they received."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return dict(message)
    return {**message, "tool_calls": [_parse_call(call) for call in calls]}


def _parse_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(arguments) if arguments else {}}}
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(
            f"The arguments of a tool call are not valid JSON: {error}", param="messages"
        ) from error


def _with_continue_mark(messages: list[dict[str, Any]], prompt: ChatPrompt) -> list[dict[str, Any]]:
    if prompt.add_generation_prompt:
        raise InvalidRequestError(
            "'continue_final_message' and 'add_generation_prompt' can't both be true.",
            param="continue_final_message",
        )
    content = messages[-1].get("content") if messages else None
    if not isinstance(content, str):
        raise InvalidRequestError(
            "'continue_final_message' needs a last message with text content to continue.", param="messages"
        )
    return [*messages[:-1], {**messages[-1], "content": content + _CONTINUE_MARK}]


def _cut_at_mark(text: str) -> str:
    """The text up to the final message's end; its trailing space stays if the template keeps such."""
    end = text.rfind(_CONTINUE_MARK.rstrip())
    if end < 0:
        raise InvalidRequestError(
            "'continue_final_message' is set, but the chat template leaves the final message out.",
            param="messages",
        )
    kept = text.startswith(_CONTINUE_MARK, end)
    return text[:end] if kept else text[:end].rstrip()
