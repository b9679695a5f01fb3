"""`POST /v1/chat/completions`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from onecard.engines.api import ChatPrompt, GenerateRequest, InvalidRequestError, ModelInfo
from onecard.gateway.schemas.base import NotOffered
from onecard.gateway.schemas.messages import Conversation, Objects
from onecard.gateway.schemas.sampling import MAX_LOGPROBS, Count, SamplingRequest


class ChatRequest(Conversation, SamplingRequest):
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
    functions: NotOffered = None
    function_call: NotOffered = None
    modalities: list[Literal["text"]] | None = None
    audio: NotOffered = None
    web_search_options: NotOffered = None
    add_special_tokens: bool = Field(False, description="On top of those that the chat template writes.")

    @model_validator(mode="after")
    def _chat_rules(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError("`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
        if self.tools is not None and not self.tools:
            raise InvalidRequestError("`tools` must not be an empty list; leave it out.", param="tools")
        for i, tool in enumerate(self.tools or ()):
            if not isinstance(tool.get("function"), dict) or not isinstance(
                tool["function"].get("name"), str
            ):
                raise InvalidRequestError("A tool needs a `function` with a `name`.", param=f"tools[{i}]")
        self._check_tool_choice()
        return self

    def _check_tool_choice(self) -> None:
        choice = self.tool_choice
        if choice is None or choice == "none":
            return
        if self.tools is None:
            raise InvalidRequestError("`tool_choice` needs `tools`.", param="tool_choice")
        if choice == "auto":
            return
        if choice == "required":
            raise InvalidRequestError(
                "`tool_choice: required` is not offered yet; use auto or none.", param="tool_choice"
            )
        function = choice.get("function") if isinstance(choice, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                "`tool_choice` must be none, auto, required, or name a function.", param="tool_choice"
            )
        if all(tool["function"]["name"] != function["name"] for tool in self.tools):
            raise InvalidRequestError(
                "`tool_choice` names a tool that is not in `tools`.", param="tool_choice"
            )
        raise InvalidRequestError(
            "`tool_choice` with a named function is not offered yet; use auto or none.", param="tool_choice"
        )

    def prompt(self) -> ChatPrompt:
        """The conversation; tools are shown to the model unless the client said none."""
        return self.chat_prompt(None if self.tool_choice == "none" else self.tools)

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
