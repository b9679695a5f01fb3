"""`POST /v1/chat/completions`."""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from onecard.engines.api import ChatPrompt, GenerateRequest, InvalidRequestError, ModelInfo
from onecard.gateway.schemas.known import KnownInChat
from onecard.gateway.schemas.messages import Conversation, Objects
from onecard.gateway.schemas.sampling import MAX_LOGPROBS, Count, SamplingRequest

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(Conversation, SamplingRequest, KnownInChat):
    """A conversation to be continued."""

    max_tokens: Count | None = Field(None, description="The older name of max_completion_tokens.")
    max_completion_tokens: Count | None = Field(
        None, description="Default: the registry's `sampling.max_tokens`, else what the context leaves."
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    tools: Objects | None = Field(None, description="Given to the chat template.")
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none or auto; the rest is not offered yet."
    )
    parallel_tool_calls: bool = True
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: ReasoningEffort | None = Field(None, description="Given to the chat template.")
    echo: bool = Field(False, description="Begin with the last message where it is the answer's role's.")
    return_prompt_text: bool = Field(False, description="Also answer what the chat template wrote.")
    add_special_tokens: bool = Field(False, description="On top of those that the chat template writes.")

    @model_validator(mode="after")
    def _chat_rules(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
        for i, tool in enumerate(self.tools or ()):
            if not isinstance(tool.get("function"), dict) or not isinstance(
                tool["function"].get("name"), str
            ):
                raise InvalidRequestError("A tool needs a `function` with a `name`.", param=f"tools[{i}]")
        self._check_tool_choice()
        if self.tools and self.tool_choice != "none" and not self.parallel_tool_calls:
            raise InvalidRequestError(
                "`parallel_tool_calls: false` is not offered yet; leave it out.", param="parallel_tool_calls"
            )
        return self

    def _check_tool_choice(self) -> None:
        if self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequestError(
                "`tool_choice` that forces a call is not offered yet: send none, or (to a model whose chat "
                "template knows tools) auto.",
                param="tool_choice",
            )
        if self.tool_choice == "auto" and self.tools is None:
            raise InvalidRequestError(
                "`tool_choice: auto` needs `tools`; without them leave it out.", param="tool_choice"
            )

    def prompt(self) -> ChatPrompt:
        """The conversation; tools are shown to the model unless the client said none."""
        prompt = self.chat_prompt(None if self.tool_choice == "none" else self.tools)
        return replace(prompt, reasoning_effort=self.reasoning_effort)

    @property
    def echoed(self) -> str:
        """What the answer begins with: with `echo` the last message, where its role is the answer's.

        That is the assistant's role; without a generation prompt, as in vLLM, whatever role speaks last.
        """
        last, prompt = self.messages[-1], self.chat_prompt(None)
        if not self.echo or (prompt.add_generation_prompt and last.role != "assistant"):
            return ""
        return last.text

    def to_engine(self, request_id: str, info: ModelInfo) -> GenerateRequest:
        """The engine's request for this one."""
        limit = self.max_completion_tokens or self.max_tokens
        sampling = self.sampling(
            info, n=self.n, max_tokens=limit, logprobs=self.top_logprobs if self.logprobs else None
        )
        return GenerateRequest(
            request_id=request_id,
            prompt=self.prompt(),
            sampling=sampling,
            add_special_tokens=self.add_special_tokens,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            cache_salt=self.cache_salt,
            priority=self.priority,
        )
