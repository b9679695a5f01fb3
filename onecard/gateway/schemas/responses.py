"""What the routes answer, as a published description: these models write nothing themselves."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from onecard.engines.api import CacheConfig, CardHealth, Task


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


class PromptUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Usage(PromptUsage):
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


class Finished(Answer):
    index: int
    finish_reason: Finish
    stop_reason: int | str | None


class Unfinished(Answer):
    index: int
    finish_reason: Finish | None
    stop_reason: int | str | None = None


class ChatMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Finished):
    message: ChatMessage
    logprobs: ChatLogprobs | None
    token_ids: list[int] | None = None


class ChatAnswer(Identified):
    object: Literal["chat.completion"]
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class ChatDelta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Unfinished):
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    token_ids: list[int] | None = None


class ChatChunk(Identified):
    object: Literal["chat.completion.chunk"]
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | None = None


class CompletionLogprobs(Answer):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Finished):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class CompletionAnswer(Identified):
    object: Literal["text_completion"]
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Unfinished):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


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
    usage: PromptUsage


class TokenizeAnswer(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Answer):
    prompt: str


class AddedTokenInfo(Answer):
    content: str
    lstrip: bool
    normalized: bool
    rstrip: bool
    single_word: bool
    special: bool


class NamedTemplate(Answer):
    name: str
    template: str


class TokenizerInfo(BaseModel):
    """Beside these, each special token under its name (`bos_token`, ...)."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    added_tokens_decoder: dict[str, AddedTokenInfo]
    chat_template: str | list[NamedTemplate] | None


class RootAnswer(Answer):
    name: Literal["onecard"]
    version: str
    base_path: str
    models: str
    description: str
    health: str
    metrics: str


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
    default_sampling: dict[str, float]
    permission: list[ModelPermission]


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class ModelStart(Answer):
    model: str
    stage: str
    progress: float | None


class HealthAnswer(Answer):
    status: str
    models: list[ModelStart] | None = None
    """While the server starts: how far each is."""


class VersionAnswer(Answer):
    version: str


class CardRow(Answer):
    name: str
    device: str
    total_bytes: int
    budget_bytes: int
    arena_bytes: int
    page_bytes: int
    pages_free: int
    pages_total: int
    health: CardHealth | None


class ModelRow(Answer):
    name: str
    kind: str
    card: str
    state: str
    weight_bytes: int
    kv_bytes_used: int
    kv_bytes_owned: int
    floor_bytes: int
    ceiling_bytes: int
    running: int
    waiting: int
    finished: int
    cache: CacheConfig | None


class StatusAnswer(Answer):
    state: str
    cards: list[CardRow]
    models: list[ModelRow]
