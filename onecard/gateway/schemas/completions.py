"""`POST /v1/completions`."""

from dataclasses import replace

from pydantic import Field, model_validator

from onecard.engines.api import GenerateRequest, InvalidRequestError, ModelInfo
from onecard.gateway.schemas.base import MAX_INT32, Inputs, NotOffered
from onecard.gateway.schemas.sampling import MAX_LOGPROBS, MAX_N, SamplingRequest


class CompletionRequest(SamplingRequest):
    """Prompts to be continued, each `n` times."""

    prompt: Inputs
    max_tokens: int = Field(16, ge=0, le=MAX_INT32, description="0 only with echo: the prompt alone.")
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=MAX_N, description="Draw this many, answer the n most likely.")
    add_special_tokens: bool = True
    suffix: NotOffered = None
    prompt_embeds: NotOffered = None

    @model_validator(mode="after")
    def _completion_rules(self) -> "CompletionRequest":
        if not self.max_tokens and not self.echo:
            raise InvalidRequestError(
                "`max_tokens` must be at least 1, or 0 with `echo`.", param="max_tokens"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise InvalidRequestError("`best_of` must not be less than `n`.", param="best_of")
        if self.stream and self.draws > self.n:
            raise InvalidRequestError("`best_of` can't be streamed.", param="best_of")
        return self

    @property
    def draws(self) -> int:
        """Answers that are generated for each prompt; `n` of them are sent."""
        return self.best_of or self.n

    def to_engine(self, request_id: str, info: ModelInfo) -> list[GenerateRequest]:
        """One engine request a prompt. Ids are `request_id-i` where there are several."""
        # best_of ranks by log-probability.
        wanted = 0 if self.logprobs is None and self.draws > self.n else self.logprobs
        sampling = self.sampling(info, n=self.draws, max_tokens=self.max_tokens, logprobs=wanted)
        if self.echo and self.logprobs is not None:
            sampling = replace(sampling, prompt_logprobs=max(self.logprobs, self.prompt_logprobs or 0))
        several = len(self.prompt) > 1
        return [
            GenerateRequest(
                request_id=f"{request_id}-{i}" if several else request_id,
                prompt=prompt,
                sampling=sampling,
                add_special_tokens=self.add_special_tokens,
                truncate_prompt_tokens=self.truncate_prompt_tokens,
                cache_salt=self.cache_salt,
                priority=self.priority,
                group=request_id,
            )
            for i, prompt in enumerate(self.prompt)
        ]
