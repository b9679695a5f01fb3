"""The fields that chat and completions share, and how they become `SamplingParams`."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from onecard.engines.api import InvalidRequestError, ModelInfo, SamplingParams
from onecard.gateway.schemas.base import MAX_INT32, Harmless, ModelRequest, RequestModel, Truncation
from onecard.gateway.schemas.known import KnownInGeneration

MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP_STRINGS, MAX_STOP_CHARS = 256, 8192
MAX_STOP_TOKENS, MAX_BIASES = 1024, 4096
"""Each is looked at with every token of an answer."""
GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy, as in vLLM: dividing by them overflows."""

# Where neither the request, nor the registry, nor the model's own generation config says anything.
OPENAI_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def _stop_strings(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or any(not isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOP_STRINGS or sum(map(len, stops)) > MAX_STOP_CHARS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings of {MAX_STOP_CHARS} characters together")
    return tuple(filter(None, stops))  # an empty one stops nothing, as at OpenAI


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        raise ValueError("must be an object that maps token ids to biases")
    if len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} token ids can have biases")
    return tuple(_bias(token, bias) for token, bias in value.items())


def _bias(token: Any, bias: Any) -> tuple[int, float]:
    if not (str(token).isascii() and str(token).isdigit() and len(str(token)) < 11):
        raise ValueError("keys must be token ids")
    if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
        raise ValueError("biases must be numbers from -100 to 100")
    return int(token), float(bias)


StopStrings = Annotated[
    tuple[str, ...],
    BeforeValidator(_stop_strings),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOP_STRINGS},
            ]
        }
    ),
]
LogitBias = Annotated[
    tuple[tuple[int, float], ...],
    BeforeValidator(_logit_bias),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": MAX_BIASES,
        }
    ),
]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
Count = Annotated[int, Field(ge=1, le=MAX_INT32)]


class StreamOptions(RequestModel):
    include_usage: bool = Field(False, description="One more chunk at the end, with the usage.")
    continuous_usage_stats: bool = Field(False, description="The usage so far on every chunk.")
    include_obfuscation: Harmless = None


class SamplingRequest(ModelRequest, KnownInGeneration):
    """How tokens are chosen and sent. What is left out is as the registry's `sampling` says, else the model's
    generation config, else OpenAI's default."""

    n: int = Field(1, ge=1, le=MAX_N)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1, description="0: the likeliest token alone.")
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32, description="0 or -1: off.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: StopStrings = ()
    stop_token_ids: tuple[TokenId, ...] = Field((), max_length=MAX_STOP_TOKENS)
    include_stop_str_in_output: bool = False
    min_tokens: int = Field(0, ge=0, le=MAX_INT32)
    ignore_eos: bool = False
    logit_bias: LogitBias = ()
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    skip_special_tokens: bool = True
    truncate_prompt_tokens: Truncation | None = None
    cache_salt: str | None = Field(None, min_length=1, max_length=128, pattern=r"^[^@/\\\x00]+$")
    response_format: dict[str, Any] | None = Field(None, description='Only {"type": "text"} is offered.')
    return_tokens_as_token_ids: bool = Field(
        False, description="Tokens in log-probabilities as `token_id:N`."
    )
    return_token_ids: bool = Field(False, description="Also answer the ids of prompt and answers.")

    @model_validator(mode="after")
    def _shared_rules(self) -> "SamplingRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError("`stream_options` needs `stream: true`.", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError("`prompt_logprobs` can't be streamed.", param="prompt_logprobs")
        self._check_response_format()
        return self

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_running_usage(self) -> bool:
        return self.wants_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling(
        self, info: ModelInfo, *, n: int, max_tokens: int | None, logprobs: int | None
    ) -> SamplingParams:
        """What the engine is asked for: the request, else the model's own defaults, else OpenAI's."""
        chosen = {name: self._choose(name, info) for name in OPENAI_DEFAULTS}
        if chosen["temperature"] < GREEDY_BELOW:
            chosen["temperature"] = 0.0
        if chosen["top_p"] == 0:  # what a nucleus of no mass leaves
            chosen |= {"top_p": 1.0, "top_k": 1}
        return SamplingParams(
            **{**chosen, "top_k": max(int(chosen["top_k"]), 0)},
            n=n,
            seed=None if self.seed == -1 else self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            max_tokens=max_tokens,
            min_tokens=self._checked_min_tokens(max_tokens),
            ignore_eos=self.ignore_eos,
            logit_bias=self.logit_bias,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens,
        )

    def _choose(self, name: str, info: ModelInfo) -> Any:
        asked = getattr(self, name)
        return info.default_sampling.get(name, OPENAI_DEFAULTS[name]) if asked is None else asked

    def _checked_min_tokens(self, max_tokens: int | None) -> int:
        if max_tokens is not None and self.min_tokens > max_tokens:
            raise InvalidRequestError(
                f"`min_tokens` ({self.min_tokens}) is more than `max_tokens` ({max_tokens}).",
                param="min_tokens",
            )
        return self.min_tokens

    def _check_response_format(self) -> None:
        if self.response_format is None or self.response_format.get("type") == "text":
            return
        kind = self.response_format.get("type")
        asked = f" of type {kind}" if kind in ("json_object", "json_schema", "structural_tag") else ""
        raise InvalidRequestError(
            f'`response_format`{asked} is not offered yet; leave it out, or ask for {{"type": "text"}}.',
            param="response_format",
        )
