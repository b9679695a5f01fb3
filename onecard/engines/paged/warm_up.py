"""Runs a language model's steps before it serves: kernels get compiled, libraries take their memory, and the
largest step shows what it needs."""

from collections.abc import Iterator
from dataclasses import dataclass

from onecard.engines.api import SamplingParams, TokenChunk, TokenLogprob
from onecard.engines.paged.core import PagedCore, Step
from onecard.engines.paged.request import Request, Sequence
from onecard.engines.paged.stream import TokenStream
from onecard.engines.runtime.step_budget import BRIEF_STEP_SECONDS

_SAMPLED = SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, seed=0)
_GREEDY = SamplingParams(temperature=0.0)

LONGEST_PROMPT = 64
"""Tokens of a prompt of a brief warm-up."""

MOST_TRIES = 20
"""Of a step: one that finds no memory is half as large the next time, one that finds no pages is none."""


class NoRoomError(Exception):
    """Others hold the pages that a first request needs."""


@dataclass
class _Discard:
    """The output side of an answer that nobody reads: ends it after `left` tokens."""

    left: int

    def append(self, token_id: int, logprob: TokenLogprob | None) -> TokenChunk:
        self.left -= 1
        return TokenChunk(0, "", (token_id,), None, None if self.left else "length")


class WarmUp:
    """Drives a core between its loop's steps, with requests of random tokens. Leaves nothing behind.

    `brief` on a CPU, where nothing is compiled, and long prompts would only keep others waiting. Steps raise
    `NoRoomError` where the cache has no pages for them now.
    """

    def __init__(self, core: PagedCore, vocab_size: int, max_model_len: int, brief: bool = False):
        self._core = core
        self._brief = brief
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._num_requests = 0

    def largest_step(self) -> None:
        """All tokens and all sequences that a step may have, every sequence with a logits row to sample from;
        as far as the cache holds them."""
        limits, kv = self._core.scheduler.limits, self._core.scheduler.kv
        room = kv.pool.max_blocks * kv.block_size
        length = max(1, limits.max_num_batched_tokens // limits.max_num_seqs)
        length = min(length, self._max_model_len - 1)
        taken = kv.blocks_for(length + 1) * kv.block_size
        count = max(1, min(limits.max_num_seqs, room // taken))
        for _ in self._run([self._request(length, 1, _SAMPLED) for _ in range(count)]):
            pass

    def usual_steps(self) -> Iterator[None]:
        """One prompt alone, a chunked one, decodes with and without sampling, prompts among decodes: one step
        at a time, so that other engines' may run between them."""
        longest = min(self._core.scheduler.limits.max_num_batched_tokens, self._max_model_len - 4)
        if self._brief:
            longest = min(longest, LONGEST_PROMPT)
        for length in sorted({1, 2, min(33, longest), longest}):
            yield from self._run([self._request(length, 3, _GREEDY)])
        yield from self._run(
            [self._request(5, 6, _SAMPLED), self._request(7, 3, _GREEDY)], self._request(40, 3, _GREEDY)
        )

    def leave(self) -> None:
        """Forget what these steps left: cached prefixes, pages."""
        pool = self._core.scheduler.kv.pool
        pool.reset_prefix_cache()
        pool.release_idle_pages()
        pool.check_integrity()

    def _run(self, requests: list[Request], later: Request | None = None) -> Iterator[None]:
        core, finished = self._core, self._core.num_finished
        core.warming = True
        for request in requests:
            core.add(request)
        try:
            while core.scheduler.has_work():
                core.collect(self._step())
                if later is not None:
                    core.add(later)
                    requests = [*requests, later]
                    later = None
                yield
        except (NoRoomError, GeneratorExit):
            for request in requests:
                core.abort(request)
            raise
        finally:
            core.num_finished = finished
            core.warming = False

    def _step(self) -> Step:
        for _ in range(MOST_TRIES):
            step = self._core.launch(BRIEF_STEP_SECONDS if self._brief else None)
            if step is not None:
                return step
        raise NoRoomError(f"{self._core.name} finds no room for its first steps")

    def _request(self, prompt_length: int, num_tokens: int, sampling: SamplingParams) -> Request:
        prompt_length = max(1, min(prompt_length, self._max_model_len - num_tokens))
        prompt = list(self._tokens(prompt_length))
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

    def _tokens(self, count: int) -> Iterator[int]:
        """Different ones for every request, so that none finds another's prefix."""
        return ((self._num_requests * 7919 + i * 104729 + 1) % self._vocab_size for i in range(count))
