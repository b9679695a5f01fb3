"""Runs one step of a decoder model, inputs in, sampled tokens out: each sequence with its own edits, its own
random stream, and log-probabilities if asked."""

from dataclasses import dataclass

import numpy as np
import torch

from onecard.engines.paged.decode_graphs import DecodeGraphs, PagedModel
from onecard.engines.paged.logits import Logprobs, compute_logprobs
from onecard.engines.paged.request import Sequence
from onecard.engines.paged.rows import PromptRows, RequestRows, StepInputs, build_inputs
from onecard.engines.paged.schedule import Schedule, ScheduledSequence
from onecard.engines.runtime.staging import Staging, to_host
from onecard.engines.runtime.step_clock import StepClock, StepMark
from onecard.kernels.sampling import sample


@dataclass(frozen=True)
class Sampled:
    """`token_ids [S]` int64; `logprobs` of the sequences at `logprob_rows` of them."""

    token_ids: torch.Tensor
    logprobs: Logprobs | None
    logprob_rows: list[int]


class Sampler:
    """The card's rows are told each token, for a step that is launched before the token is read."""

    def __init__(self, rows: RequestRows, staging: Staging):
        self._rows = rows
        self._staging = staging

    def __call__(self, logits: torch.Tensor, items: list[ScheduledSequence]) -> Sampled:
        """`logits [S, V]` float32, one row a sequence; edited in place."""
        wanted = [i for i, item in enumerate(items) if item.sequence.request.sampling.logprobs is not None]
        raw = logits[wanted].clone() if wanted else None
        for i, item in enumerate(items):
            if item.sequence.processor is not None:
                item.sequence.processor.apply(logits[i])
        token_ids = self._sample(logits, items)
        if raw is None:
            return Sampled(token_ids, None, [])
        num_top = max(items[i].sequence.request.sampling.logprobs or 0 for i in wanted)
        return Sampled(token_ids, compute_logprobs(raw, token_ids[wanted], num_top), wanted)

    def _sample(self, logits: torch.Tensor, items: list[ScheduledSequence]) -> torch.Tensor:
        rows, row_ids = self._rows, np.array([item.sequence.row for item in items], dtype=np.int64)
        arrays: list[np.ndarray] = [row_ids]
        greedy = not rows.temperature[row_ids].any()
        if not greedy:
            steps = np.array([item.output_index for item in items], dtype=np.int64)
            params = (rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seed)
            arrays += [*(param[row_ids] for param in params), steps]
        on_card, *sampling = self._staging.to_device(arrays)
        token_ids = logits.argmax(dim=-1) if greedy else sample(logits, *sampling)
        rows.last_token.index_copy_(0, on_card, token_ids)
        return token_ids


@dataclass(frozen=True)
class PromptLogprobs:
    """Of the prompt tokens `first .. first + len(logprobs.chosen)` of `sequence`."""

    sequence: Sequence
    first: int
    logprobs: Logprobs


@dataclass(frozen=True)
class StepOutput:
    """A launched step. `token_ids` `[len(sampled)]` int64, on the host, holds its tokens once `mark.wait` has
    returned; log-probabilities are still on the card."""

    mark: StepMark
    sampled: list[ScheduledSequence]
    token_ids: torch.Tensor | None
    logprobs: Logprobs | None
    logprob_rows: list[int]
    prompt_logprobs: list[PromptLogprobs]


class ModelRunner:
    """Runs steps of a model; `kv_cache` is its view of the arena, on the card that `clock` is of.

    `graphs`, once captured, run the steps that fit them.
    """

    def __init__(
        self, kv_cache: torch.Tensor, rows: RequestRows, clock: StepClock, graphs: DecodeGraphs | None = None
    ):
        self.kv_cache = kv_cache
        self.rows = rows
        self.graphs = graphs
        self.block_size = kv_cache.shape[3]
        self._model: PagedModel | None = None
        self._clock = clock
        self._staging = Staging(kv_cache.device)
        self._sampler = Sampler(rows, self._staging)

    def use(self, model: PagedModel | None) -> None:
        """Steps run on `model` from now on; None: there are none until the next call.

        Graphs were captured over the addresses of a model's weights: the next one must have the same.
        """
        self._model = model
        if self.graphs is not None:
            self.graphs.model = model

    @torch.inference_mode()
    def launch(self, schedule: Schedule) -> StepOutput:
        """Enqueue a step. On a CPU it is computed when this returns."""
        for item in schedule.items:
            self.rows.update_blocks(item.sequence)
        self.rows.send(self._staging)  # also before steps that don't read them: what is new mustn't pile up
        graphs = self.graphs
        if graphs is None or not graphs.fits(schedule):
            inputs = build_inputs(schedule, self.rows, self.kv_cache, self.block_size, self._staging)
            mark = self._clock.begin()
            sampled, prompt_logprobs = self._run(inputs)
            return self._end(mark, inputs.sampled, sampled, prompt_logprobs)
        mark = self._clock.begin()
        token_ids = graphs.run(schedule, self._staging)
        result = Sampled(token_ids, None, [])
        if any(_needs_logits(item) for item in schedule.items):
            result = self._sampler(graphs.logits[: len(schedule.items)], schedule.items)
        return self._end(mark, schedule.items, result, [])

    @torch.inference_mode()
    def move_blocks(self, moves: dict[int, int]) -> None:
        """Copy the K and V of whole blocks, old id -> new id; no new one is an old one."""
        pairs = [np.array(list(blocks), dtype=np.int64) for blocks in (moves, moves.values())]
        old, new = self._staging.to_device(pairs)
        self.kv_cache.index_copy_(0, new, self.kv_cache.index_select(0, old))

    def _run(self, inputs: StepInputs) -> tuple[Sampled | None, list[PromptLogprobs]]:
        model = self._model
        assert model is not None, "the model is asleep"
        hidden = model(inputs.forward)
        rows = inputs.forward.logits_rows
        if not len(rows):
            return None, []
        logits = model.compute_logits(hidden if len(rows) == len(hidden) else hidden[rows])
        prompt_logprobs = [self._prompt_logprobs(logits, entry) for entry in inputs.prompt_rows]
        if not inputs.sampled:
            return None, prompt_logprobs
        if len(inputs.sample_rows) < len(logits):
            logits = logits[inputs.sample_rows]
        return self._sampler(logits, inputs.sampled), prompt_logprobs

    def _end(
        self,
        mark: StepMark,
        items: list[ScheduledSequence],
        sampled: Sampled | None,
        prompt_logprobs: list[PromptLogprobs],
    ) -> StepOutput:
        shared = self.graphs is not None  # the next replay writes to the same memory
        token_ids = None if sampled is None else to_host(sampled.token_ids, shared)
        mark.end()
        logprobs, rows = (None, []) if sampled is None else (sampled.logprobs, sampled.logprob_rows)
        return StepOutput(mark, items, token_ids, logprobs, rows, prompt_logprobs)

    def _prompt_logprobs(self, logits: torch.Tensor, wanted: PromptRows) -> PromptLogprobs:
        sequence = wanted.sequence
        targets = sequence.request.prompt_token_ids[wanted.first : wanted.first + wanted.count]
        token_ids = torch.tensor(targets, dtype=torch.int64, device=logits.device)
        num_top = sequence.request.sampling.prompt_logprobs or 0
        rows = logits[wanted.row : wanted.row + len(targets)]
        return PromptLogprobs(sequence, wanted.first, compute_logprobs(rows, token_ids, num_top))


def _needs_logits(item: ScheduledSequence) -> bool:
    """Whether the request edits its logits, or wants to see them."""
    return item.sequence.processor is not None or item.sequence.request.sampling.logprobs is not None
