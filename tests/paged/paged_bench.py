"""A core on pools of its own that is driven by hand, and a model whose answers depend on all that it reads.

The model is a real one in all that matters here: the next token depends on every token before it, read from
the cache through block tables, so a step that reads what it shouldn't gives a wrong answer.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from recording_stats import RecordingStats

from onecard.engines.api import EngineError, SamplingParams, TokenChunk
from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.memory.block_pool import BlockPool, Requests
from onecard.engines.memory.page_pool import PagePool
from onecard.engines.paged.core import PagedCore
from onecard.engines.paged.request import Request, Sequence
from onecard.engines.paged.rows import RequestRows
from onecard.engines.paged.runner import ModelRunner, StepOutput
from onecard.engines.paged.schedule import Schedule
from onecard.engines.paged.scheduler import SchedulerLimits
from onecard.engines.paged.stream import TokenStream
from onecard.engines.runtime.step_clock import HostStepClock
from onecard.engines.step.core import Step
from onecard.engines.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
VOCABULARY, END = 64, 0
BLOCK_SIZE, BLOCKS_IN_PAGE = 4, 2


def next_token(context: list[int]) -> int:
    state = 1
    for token in context:
        state = (state * 31 + token + 7) % 1_000_003
    return state % VOCABULARY


def lone_answer(prompt: list[int], max_tokens: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < max_tokens and answer[-1:] != [END]:
        answer.append(next_token(prompt + answer))
    return answer


class ReadingModel:
    """Writes token ids into the cache; hidden state of a token: the id that comes next."""

    def __init__(self, kv_cache: torch.Tensor):
        self.cache = kv_cache.view(-1)

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        paged = batch.paged
        self.cache[paged.slot_mapping] = batch.input_ids
        after = []
        starts, tables = paged.cu_seqlens_q.tolist(), paged.block_tables.long()
        for i, seq_len in enumerate(paged.seq_lens.tolist()):
            places = torch.arange(seq_len)
            slots = tables[i, places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE
            context = self.cache[slots].tolist()
            length = starts[i + 1] - starts[i]
            after += [next_token(context[: seq_len - length + j + 1]) for j in range(length)]
        return torch.tensor(after)

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(hidden, VOCABULARY).float()


class LateClock(HostStepClock):
    asynchronous = True


@dataclass
class BrokenMark:
    device_seconds: float = 0.0
    gap_seconds: float = 0.0

    def end(self) -> None: ...

    def wait(self) -> None:
        raise RuntimeError("found out late")


class FaultyRunner(ModelRunner):
    """`fault(schedule)` says what goes wrong with a step: "memory" or "step", "... after" its work is done;
    or "late": it has written nonsense, which is found out when it is collected."""

    fault: Callable[[Schedule], str | None]
    tried: list[int]

    def launch(self, schedule: Schedule) -> StepOutput:
        fault = self.fault(schedule) or ""
        self.tried.append(schedule.num_tokens)
        error = torch.OutOfMemoryError("CUDA out of memory.") if "memory" in fault else RuntimeError("broken")
        if fault in ("memory", "step"):
            raise error
        output = super().launch(schedule)
        if fault.endswith("after"):
            raise error
        if fault == "late":
            for item in schedule.items:
                places = torch.arange(item.start, item.start + item.num_tokens)
                table = torch.tensor(item.sequence.block_table)
                self.kv_cache.view(-1)[table[places // BLOCK_SIZE] * BLOCK_SIZE + places % BLOCK_SIZE] = 63
            output = replace(output, mark=cast(Any, BrokenMark()))
        return output


class Writer:
    def __init__(self, index: int, max_tokens: int):
        self.index, self.left = index, max_tokens

    def append(self, token_id: int, logprob: object) -> TokenChunk:
        self.left -= 1
        reason = "stop" if token_id == END else None if self.left else "length"
        return TokenChunk(self.index, "", (token_id,), None, cast(Any, reason))


class Names:
    """The part of a tokenizer that log-probabilities need."""

    def token_string(self, token_id: int) -> str:
        return f"<{token_id}>"

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_string(token_id).encode()


class Bench:
    """A core on pools of its own, driven by hand as the device loop would."""

    def __init__(self, late: bool, num_pages: int = 100, max_num_seqs: int = 8, budget: int = 16):
        self.pages = PagePool(num_pages, 1024)
        num_blocks = num_pages * BLOCKS_IN_PAGE
        self.rows = RequestRows(max_num_seqs, num_blocks, CPU, mirrored=False)
        cache = torch.zeros(num_blocks, 1, 1, BLOCK_SIZE, 1, 1, dtype=torch.int64)
        clock = LateClock() if late else HostStepClock()
        self.runner = FaultyRunner(cache, self.rows, clock)
        self.runner.fault, self.runner.tried = lambda _: None, []
        self.runner.use(cast(Any, ReadingModel(cache)))
        self.stats = RecordingStats()
        self.core = PagedCore(
            "m",
            1,
            0,
            self.make_blocks,
            SchedulerLimits(max_num_seqs, budget),
            self.runner,
            clock,
            cast(Tokenizer, Names()),
            self.stats,
            self.deliver,
        )
        self.pool = self.core.blocks
        self.pages.add_engine("m", num_pages, num_pages, self.pool)
        self.in_flight: deque[Step[Schedule, StepOutput]] = deque()
        self.most_in_flight = int(late)
        self.requests: list[Request] = []
        self.failures: list[BaseException] = []

    def make_blocks(self, requests: Requests) -> BlockPool:
        return BlockPool(
            "m",
            self.pages,
            lambda p: range(p * BLOCKS_IN_PAGE, (p + 1) * BLOCKS_IN_PAGE),
            requests=requests,
        )

    def ask(
        self, prompt: list[int], max_tokens: int = 8, n: int = 1, priority: int = 0, **params: Any
    ) -> Request:
        number = len(self.requests)
        request = Request(
            f"r{number}",
            prompt,
            SamplingParams(n=n, temperature=0.0, **params),
            max_tokens,
            number,
            TokenStream(prompt, None, n),
            priority=priority,
        )
        request.sequences = [Sequence(request, i, i, list(prompt), Writer(i, max_tokens)) for i in range(n)]
        self.requests.append(request)
        self.core.add(request)
        return request

    def step(self) -> bool:
        """As `DeviceLoop` does; False when there was nothing to do."""
        had_work, launched = self.core.has_work(), False
        if had_work:
            try:
                step = self.core.launch()
                launched = step is not None
                if step is not None:
                    self.in_flight.append(step)
            except Exception as error:
                self.fail(error)
                launched = True
        if self.in_flight and (not launched or len(self.in_flight) > self.most_in_flight):
            self.collect()
            return True
        return had_work

    def collect(self) -> None:
        try:
            self.deliver(self.core.collect(self.in_flight.popleft()))
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self.failures.append(error)
        self.deliver(self.core.fail(error))
        self.check()

    def deliver(self, deliveries: list[Callable[[], None]]) -> None:
        for deliver in deliveries:
            deliver()

    def run(self) -> None:
        for _ in range(5000):
            if not self.step():
                return
        raise AssertionError("it doesn't come to an end")

    def check(self) -> None:
        self.pool.check_integrity()
        self.pages.check_integrity()
        held = [s.row for s in self.core.scheduler.running if s.row >= 0]
        assert sorted([*held, *self.rows._free]) == list(range(self.rows.padding_row))

    def check_all_free(self) -> None:
        assert not self.core.has_work()
        assert not self.in_flight
        self.core.idle()
        self.check()
        self.pool.reset_prefix_cache()
        self.pool.release_idle_pages()
        assert self.pages.free_pages == self.pages.num_pages
        assert len(self.rows._free) == self.rows.padding_row


def outcome(request: Request) -> list[list[int]] | EngineError | None:
    """Each answer's tokens, or the error, or None where neither has come."""
    answers: list[list[int]] = [[] for _ in request.sequences]
    while True:
        try:
            chunks = request.stream.take()
        except EngineError as error:
            return error
        if chunks is None:
            return answers
        if not chunks:
            return None
        for chunk in chunks:
            answers[chunk.index] += chunk.token_ids


def expected(request: Request) -> list[list[int]]:
    return [lone_answer(request.prompt_token_ids, request.max_tokens)] * len(request.sequences)
