"""Text generation: a request, its sampling parameters, the chunks of its answers, and who writes them."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from onecard.engines.api.content import ChatPrompt
from onecard.engines.api.model import Tokenizing

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. Names, defaults and meaning are vLLM's; already range-checked by the gateway.

    `max_tokens=None` means: what the model's `default_sampling` says, else up to its context. `logprobs` is
    the number of alternatives to report for each token (None: report none, 0: only the chosen token's).
    `seed=None` draws one.
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
class GenerateRequest:
    """One prompt, `sampling.n` answers. `prompt` is text, token ids, or messages.

    `add_special_tokens=None`: to a text yes, to messages no (templates write their own).
    """

    request_id: str
    prompt: str | tuple[int, ...] | ChatPrompt
    sampling: SamplingParams = SamplingParams()
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    cache_salt: str | None = None
    priority: int = 0
    group: str = ""
    """Requests of one group, as the prompts of one HTTP request, take their turns as one."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token, its log-probability under the raw logits, and the most likely alternatives in its place.

    `rank`: how many tokens are at least as likely there, itself included; 1 is the likeliest.
    """

    token_id: int
    token: str
    logprob: float
    token_bytes: bytes
    top: tuple["TokenLogprob", ...] = ()
    rank: int | None = None


@dataclass(frozen=True, slots=True)
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

    Read it with `take` whenever `on_ready`'s callback was called, or iterate over it; not both at once. All
    of it belongs to the event loop's thread. `abort` may be called at any time, any number of times; it
    frees the request's blocks within one step. Always call it when done early.
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

    @property
    def notice(self) -> str | None: ...

    """Why nothing has come yet, for people ("the model is waking up"); None where there is nothing to say."""

    def take(self) -> list[TokenChunk] | None:
        """All chunks that have come and were not taken yet; None at the end.

        Never waits. Raises `EngineError` if the engine failed, after everything before that was taken.
        """
        ...

    def on_ready(self, callback: Callable[[], None]) -> None:
        """Call `callback`, which must be quick, each time that there is more to take, an end, or a notice.

        There is one callback; it isn't called for what is there already.
        """
        ...

    def __aiter__(self) -> AsyncIterator[TokenChunk]: ...

    def pause(self) -> None:
        """Its reader has enough for now: what comes of steps in flight still comes, then nothing is computed,
        and nothing held for it on the card, before `resume`."""
        ...

    def resume(self) -> None: ...

    def abort(self) -> None: ...


class TextGenerator(Tokenizing, Protocol):
    """What does the task "generate"."""

    async def generate(self, request: GenerateRequest) -> GenerationStream:
        """Tokenise, validate, admit. Raises `EngineError` before anything has run."""
        ...
