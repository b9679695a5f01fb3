"""All that the gateway may see of the engines: requests, results, Protocols, errors, statistics.

Nothing here imports torch. The gateway talks to a `Node`; a node hands out `TextGenerator`s and
`Embedder`s; both raise subclasses of `EngineError`, whose `status` is the HTTP status to answer with.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

FinishReason = Literal["stop", "length", "abort", "error"]
ModelState = Literal["loading", "ready", "failed"]


# --- errors ----------------------------------------------------------------------------------------


class EngineError(Exception):
    """A request that can't be served. `param` names the field at fault, `code` is OpenAI's error code."""

    status = 500
    type = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class InvalidRequestError(EngineError):
    """The request asks for something that makes no sense or is not offered."""

    status, type = 400, "BadRequestError"


class ContextLengthError(InvalidRequestError):
    """Prompt plus answer are longer than the model's context. Clients match on the message and code."""

    def __init__(self, max_model_len: int, prompt_tokens: int, max_tokens: int = 0):
        asked = f"{max_tokens} in the completion" if max_tokens else "with at least 1 in the completion"
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{prompt_tokens + max(max_tokens, 1)} tokens ({prompt_tokens} in the messages, {asked}). "
            "Please reduce the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )


class ModelNotFoundError(EngineError):
    status, type = 404, "NotFoundError"


class UnsupportedTaskError(EngineError):
    """The model exists but doesn't do that (an embedding asked of a chat model)."""

    status, type = 400, "BadRequestError"


class QueueFullError(EngineError):
    """Too many requests wait; the client should come again in `retry_after` seconds."""

    status, type = 503, "ServiceUnavailableError"
    retry_after = 1


class ShuttingDownError(QueueFullError):
    """The server is draining."""

    retry_after = 5


class EngineFailedError(EngineError):
    """A step raised; the request is lost, the engine goes on."""


# --- text generation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Names, defaults and meaning are vLLM's; already range-checked by the gateway.

    `max_tokens=None` means: up to the model's context. `logprobs` is the number of alternatives to report
    for each token (None: report none, 0: only the chosen token's). `seed=None` draws one.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class ChatPrompt:
    """Messages to be rendered by the model's chat template. Content parts are flattened to text already."""

    messages: tuple[dict[str, Any], ...]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: tuple[dict[str, Any], ...] | None = None
    documents: tuple[dict[str, Any], ...] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerateRequest:
    """One prompt, `sampling.n` answers. `prompt` is text, token ids, or messages."""

    request_id: str
    prompt: str | tuple[int, ...] | ChatPrompt
    sampling: SamplingParams = SamplingParams()
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    cache_salt: str | None = None
    priority: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """One token, its log-probability under the raw logits, and the most likely alternatives in its place."""

    token_id: int
    token: str
    logprob: float
    token_bytes: bytes
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class TokenChunk:
    """What one answer gained since the last chunk. `text` never ends inside a character.

    `finish_reason` is set on an answer's last chunk only; `stop_reason` is the stop string or stop token id
    that ended it (None: the model's own end token, or no stop).
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class GenerationStream(Protocol):
    """The answers of one admitted request, in the order they come; ends when all `n` have finished.

    Iterating raises `EngineError` if the engine fails midway. `abort` may be called at any time, any number
    of times, from the event loop; it frees the request's blocks within one step. Always call it when done
    early.
    """

    prompt_token_ids: Sequence[int]
    prompt_text: str | None
    """The rendered prompt (for `echo`); None when the client sent token ids and did not ask for text."""
    prompt_logprobs: Sequence[TokenLogprob | None] | None
    """Set before the first chunk when `sampling.prompt_logprobs` asked for them; the first entry is None."""

    @property
    def cached_tokens(self) -> int: ...

    """Prompt tokens that came from the prefix cache; known from the first chunk on."""

    @property
    def completion_tokens(self) -> int: ...

    """Tokens of all answers so far."""

    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...

    def ready(self) -> list[TokenChunk]:
        """Chunks that came besides the one just iterated; never waits. For writing several in one go."""
        ...

    def abort(self) -> None: ...


@dataclass(frozen=True)
class ModelInfo:
    """What `/v1/models` says of a model."""

    name: str
    kind: str
    root: str
    created: int
    max_model_len: int
    aliases: tuple[str, ...] = ()
    default_sampling: dict[str, Any] = field(default_factory=dict)
    """From the model's generation_config: used where the request is silent."""


class Tokenizing(Protocol):
    info: ModelInfo

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool = True) -> list[int]: ...

    async def detokenize(self, token_ids: Sequence[int]) -> str: ...

    def token_strings(self, token_ids: Sequence[int]) -> list[str]: ...


class TextGenerator(Tokenizing, Protocol):
    async def generate(self, request: GenerateRequest) -> GenerationStream:
        """Tokenise, validate, admit. Raises `EngineError` before anything has run."""
        ...


# --- embeddings ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbedRequest:
    """Texts or token-id lists to embed. `truncate_prompt_tokens=-1` cuts at the model's own maximum."""

    request_id: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool = True
    priority: int = 0


@dataclass(frozen=True)
class EmbedResult:
    """`vectors`: float32 `[len(inputs), dim]`, row i for input i."""

    vectors: np.ndarray
    prompt_tokens: int


class Embedder(Tokenizing, Protocol):
    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Cancelling the awaiting task drops what has not run yet."""
        ...


# --- the node ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelStatus:
    """One row of `onecard ps`. Bytes are from the ledger."""

    name: str
    kind: str
    card: str
    state: ModelState
    weight_bytes: int
    kv_bytes_used: int
    kv_bytes_owned: int
    floor_bytes: int
    ceiling_bytes: int
    running: int
    waiting: int
    finished: int


@dataclass(frozen=True)
class CardStatus:
    name: str
    device: str
    total_bytes: int
    budget_bytes: int
    arena_bytes: int
    page_bytes: int
    pages_free: int
    pages_total: int


@dataclass(frozen=True)
class NodeStatus:
    state: Literal["starting", "ready", "draining", "failed"]
    cards: tuple[CardStatus, ...]
    models: tuple[ModelStatus, ...]


class Node(Protocol):
    """Everything that is being served. Built by `engines.factory`, started and stopped by the gateway."""

    def models(self) -> Sequence[ModelInfo]: ...

    def engine(self, name: str) -> TextGenerator | Embedder:
        """By name or alias. Raises `ModelNotFoundError`."""
        ...

    def status(self) -> NodeStatus: ...

    def begin_drain(self) -> None:
        """From now on new requests raise `ShuttingDownError`; running ones finish."""
        ...

    async def drained(self) -> None:
        """Returns when nothing runs or waits."""
        ...

    async def stop(self) -> None: ...


# --- statistics ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepStats:
    """What one step of one engine did. Times in seconds."""

    model: str
    num_running: int
    num_waiting: int
    kv_usage: float
    """Fraction of the blocks this model could hold that are in use by requests, 0..1."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache by requests first scheduled in this step."""
    prefix_hits: int = 0
    preemptions: int = 0
    host_seconds: float = 0.0
    device_seconds: float = 0.0
    gap_seconds: float = 0.0
    """Between the end of the device's previous step and the start of this one, while there was work."""
    first_token_seconds: tuple[float, ...] = ()
    """Time to first token of requests that got theirs in this step."""
    inter_token_seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class RequestStats:
    """One finished request (for n > 1: one answer). Times in seconds, None where it never got that far."""

    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    generation_tokens: int
    cached_tokens: int
    preemptions: int
    n: int
    max_tokens: int | None
    e2e_seconds: float
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None


class LoadProgress(Protocol):
    """Told of every model's weights as they load, from a worker thread."""

    def __call__(self, model: str, done_bytes: int, total_bytes: int) -> None: ...


class StatsSink(Protocol):
    """Where engines report to; called on the event loop's thread, once a step."""

    def record_step(self, stats: StepStats) -> None: ...

    def record_request(self, stats: RequestStats) -> None: ...
