"""A paged model's first requests: random tokens, answers that nobody reads (`step.warm_up.Practice`)."""

from collections.abc import Iterator
from dataclasses import dataclass

from onecard.engines.api import SamplingParams, TokenChunk, TokenLogprob
from onecard.engines.paged.request import Request, Sequence
from onecard.engines.paged.scheduler import Scheduler
from onecard.engines.paged.stream import TokenStream
from onecard.engines.step.warm_up import Waves

_SAMPLED = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, seed=0)
_GREEDY = SamplingParams(temperature=0.0)

LONGEST_PROMPT = 64
"""Tokens of a prompt of a brief warm-up."""


@dataclass
class _Discard:
    """The output side of an answer that nobody reads: ends it after `left` tokens."""

    left: int

    def append(self, token_id: int, logprob: TokenLogprob | None) -> TokenChunk:
        self.left -= 1
        return TokenChunk(0, "", (token_id,), None, None if self.left else "length")


class PagedPractice:
    """`brief`: no long prompts, which would keep other engines waiting."""

    def __init__(self, scheduler: Scheduler, vocab_size: int, max_model_len: int, brief: bool = False):
        self._scheduler = scheduler
        self._brief = brief
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._num_requests = 0

    def largest(self) -> Waves:
        """Every sequence has a logits row to sample from."""
        limits, kv = self._scheduler.limits, self._scheduler.kv
        room = kv.pool.max_blocks * kv.block_size
        length = max(1, limits.max_num_batched_tokens // limits.max_num_seqs)
        length = min(length, self._max_model_len - 1)
        taken = kv.blocks_for(length + 1) * kv.block_size
        count = max(1, min(limits.max_num_seqs, room // taken))
        return [[self._request(length, 1, _SAMPLED) for _ in range(count)]]

    def usual(self) -> Iterator[Waves]:
        """One prompt alone, a chunked one, decodes with and without sampling, prompts among decodes."""
        longest = min(self._scheduler.limits.max_num_batched_tokens, self._max_model_len - 4)
        if self._brief:
            longest = min(longest, LONGEST_PROMPT)
        for length in sorted({1, 2, min(33, longest), longest}):
            yield [[self._request(length, 3, _GREEDY)]]
        together = [self._request(5, 6, _SAMPLED), self._request(7, 3, _GREEDY)]
        yield [together, [self._request(40, 3, _GREEDY)]]

    def _request(self, prompt_length: int, num_tokens: int, sampling: SamplingParams) -> Request:
        num_tokens = min(num_tokens, self._max_model_len - 1)
        prompt_length = max(1, min(prompt_length, self._max_model_len - num_tokens))
        # Different tokens for every request, so that none finds another's prefix.
        tokens = (self._num_requests * 7919 + i * 104729 + 1 for i in range(prompt_length))
        prompt = [token % self._vocab_size for token in tokens]
        self._num_requests += 1
        request = Request(
            request_id=f"warm-up-{self._num_requests}",
            prompt_token_ids=prompt,
            sampling=sampling,
            max_tokens=num_tokens,
            arrival_time=float(self._num_requests),
            stream=TokenStream(prompt, None, 1),
        )
        request.sequences = [Sequence(request, 0, self._num_requests, list(prompt), _Discard(num_tokens))]
        return request
