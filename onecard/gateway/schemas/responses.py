"""What the routes answer, as a published description: these models write nothing themselves."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from onecard.engines.api import CardStatus, ModelStatus, Task


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Identified(Answer):
    id: str
    created: int
    model: str


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    error: ErrorDetail


class PromptTokensDetails(Answer):
    cached_tokens: int


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Usage(EmbeddingUsage):
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails


class Alternative(Answer):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(Answer):
    content: list[ChatTokenLogprob]
    refusal: None


class PromptLogprob(Answer):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
Finish = Literal["stop", "length"]


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    stop_reason: int | str | None


class ChatAnswer(Identified):
    object: Literal["chat.completion"]
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None


class ChatDelta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    stop_reason: int | str | None = None


class ChatChunk(Identified):
    object: Literal["chat.completion.chunk"]
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Answer):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None


class CompletionAnswer(Identified):
    object: Literal["text_completion"]
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None
    stop_reason: int | str | None = None


class CompletionChunk(Identified):
    object: Literal["text_completion"]
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class EmbeddingItem(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """A string is base64 of little-endian float32."""


class EmbeddingAnswer(Identified):
    object: Literal["list"]
    data: list[EmbeddingItem]
    usage: EmbeddingUsage


class TokenizeAnswer(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Answer):
    prompt: str


class ModelPermission(Answer):
    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: str | None
    is_blocking: bool


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    kind: str
    tasks: list[Task]
    aliases: list[str]
    permission: list[ModelPermission]


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class HealthAnswer(Answer):
    status: str


class VersionAnswer(Answer):
    version: str


class StatusAnswer(Answer):
    state: str
    cards: list[CardStatus]
    models: list[ModelStatus]
