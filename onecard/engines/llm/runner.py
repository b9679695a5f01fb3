"""Runs one step of a decoder model: inputs in, sampled tokens out."""

from dataclasses import dataclass
from typing import Protocol

import torch

from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.llm.batch import StepInputs, build_inputs
from onecard.engines.llm.request import Sequence
from onecard.engines.llm.rows import RequestRows
from onecard.engines.llm.sampler import Logprobs, Sampled, Sampler, compute_logprobs
from onecard.engines.llm.scheduler import Schedule


@dataclass(frozen=True)
class PromptLogprobs:
    """Of the prompt tokens `first .. first + len(logprobs.chosen)` of `sequence`."""

    sequence: Sequence
    first: int
    logprobs: Logprobs


@dataclass(frozen=True)
class StepOutput:
    """Still on the device: reading it waits for the step."""

    sequences: list[Sequence]
    sampled: Sampled | None
    prompt_logprobs: list[PromptLogprobs]


class PagedModel(Protocol):
    """What the runner needs of a model: packed tokens to hidden states `[T, H]`, rows of those to logits `[N,
    V]`."""

    def __call__(self, batch: ForwardBatch) -> torch.Tensor: ...

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class ModelRunner:
    """Runs steps of `model` on `device`; `kv_cache` is the model's view of the arena."""

    def __init__(self, model: PagedModel, kv_cache: torch.Tensor, rows: RequestRows, device: torch.device):
        self.model = model
        self.kv_cache = kv_cache
        self.rows = rows
        self.device = device
        self.block_size = kv_cache.shape[3]
        self.sampler = Sampler(rows, device)

    @torch.inference_mode()
    def run(self, schedule: Schedule) -> StepOutput:
        inputs = build_inputs(schedule, self.rows, self.kv_cache, self.block_size, self.device)
        hidden = self.model(inputs.forward)
        if not len(inputs.forward.logits_rows):
            return StepOutput([], None, [])
        rows = inputs.forward.logits_rows
        logits = self.model.compute_logits(hidden if len(rows) == len(hidden) else hidden[rows])
        prompt_logprobs = [self._prompt_logprobs(logits, *entry) for entry in inputs.prompt_rows]
        sampled = self._sample(logits, inputs)
        return StepOutput(inputs.sampled, sampled, prompt_logprobs)

    def _sample(self, logits: torch.Tensor, inputs: StepInputs) -> Sampled | None:
        if not inputs.sampled:
            return None
        if len(inputs.sample_rows) < len(logits):
            logits = logits[inputs.sample_rows]
        return self.sampler(logits, inputs.sampled)

    def _prompt_logprobs(
        self, logits: torch.Tensor, sequence: Sequence, first: int, row: int, count: int
    ) -> PromptLogprobs:
        targets = sequence.request.prompt_token_ids[first : first + count]
        token_ids = torch.tensor(targets, dtype=torch.int64, device=self.device)
        num_top = sequence.request.sampling.prompt_logprobs or 0
        return PromptLogprobs(
            sequence, first, compute_logprobs(logits[row : row + len(targets)], token_ids, num_top)
        )
