"""Where the tests run, greedy answers, and when two of them are the same."""

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import torch

from onecard.engines.api import GenerateRequest, SamplingParams

DEVICE = "cuda" if torch.cuda.is_available() else os.environ.get("GPU_TESTS_DEVICE", "")


@dataclass(frozen=True)
class Token:
    """One greedy choice and how far ahead of the second best it was, as log-probabilities."""

    id: int
    lead: float


@dataclass
class Served:
    """Some models on one node; `generate` answers prompts of one of them greedily, all at once."""

    live: Any

    def generate(self, prompts: list[list[int]], new_tokens: int, model: str = "model") -> list[list[Token]]:
        engine = self.live.node.engine(model)

        async def one(prompt: list[int]) -> list[Token]:
            sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, logprobs=2)
            stream = await engine.generate(GenerateRequest("r", tuple(prompt), sampling))
            entries = [entry async for chunk in stream for entry in chunk.logprobs or ()]
            return [Token(e.token_id, e.top[0].logprob - e.top[1].logprob) for e in entries]

        async def all_of_them() -> list[list[Token]]:
            return await asyncio.gather(*(one(prompt) for prompt in prompts))

        return self.live.call(all_of_them())

    def plain_tokens(
        self, prompts: list[list[int]], new_tokens: int, model: str = "model"
    ) -> list[list[int]]:
        """The same without log-probabilities: nothing but the tokens leaves the card."""
        engine = self.live.node.engine(model)
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)

        async def one(prompt: list[int]) -> list[int]:
            stream = await engine.generate(GenerateRequest("r", tuple(prompt), sampling))
            return [token async for chunk in stream for token in chunk.token_ids]

        async def all_of_them() -> list[list[int]]:
            return await asyncio.gather(*(one(prompt) for prompt in prompts))

        return self.live.call(all_of_them())

    @property
    def preemptions(self) -> int:
        return sum(step.preemptions for step in self.live.stats.steps)


def assert_same(got: list[list[Token]], expected: list[list[Token]]) -> None:
    """Equal token for token; where two choices were as good as equal an answer may go another way."""
    ways_parted = 0
    for ours, theirs in zip(got, expected, strict=True):
        assert len(ours) == len(theirs)
        differing = (i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.id != b.id)
        first = next(differing, None)
        if first is not None:
            ways_parted += 1
            assert max(ours[first].lead, theirs[first].lead) < 1e-3
    assert ways_parted <= max(1, len(got) // 16)
