"""Steps that fail or find no memory, in any order with steps in flight: survivors' answers are right, the
books add up, and nothing is lost or kept.

The model is a real one in all that matters here: the next token depends on every token before it, read from
the cache through block tables, so a step that reads what it shouldn't gives a wrong answer.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch

from onecard.engines.api import (
    EngineError,
    EngineFailedError,
    RequestStats,
    SamplingParams,
    StepStats,
    TokenChunk,
)
from onecard.engines.layers.forward_batch import ForwardBatch
from onecard.engines.llm.core import LLMCore, Step
from onecard.engines.llm.kv_cache_manager import KVCacheManager
from onecard.engines.llm.request import Request, Sequence
from onecard.engines.llm.rows import RequestRows
from onecard.engines.llm.runner import ModelRunner, StepOutput
from onecard.engines.llm.scheduler import Schedule, Scheduler, SchedulerLimits
from onecard.engines.llm.stream import TokenStream
from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.page_pool import PagePool, PoolIntegrityError
from onecard.engines.runtime.step_clock import HostStepClock
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


@dataclass
class Recorder:
    steps: list[StepStats] = field(default_factory=list)
    requests: list[RequestStats] = field(default_factory=list)

    def record_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def record_request(self, stats: RequestStats) -> None:
        self.requests.append(stats)


class Bench:
    """A core on pools of its own, driven by hand as the device loop would."""

    def __init__(self, late: bool, num_pages: int = 100, max_num_seqs: int = 8, budget: int = 16):
        self.pages = PagePool(num_pages, 1024)
        self.pool = BlockPool("m", self.pages, lambda p: range(p * BLOCKS_IN_PAGE, (p + 1) * BLOCKS_IN_PAGE))
        self.pages.add_engine("m", num_pages, num_pages, self.pool)
        num_blocks = num_pages * BLOCKS_IN_PAGE
        self.rows = RequestRows(max_num_seqs, num_blocks, CPU, mirrored=False)
        cache = torch.zeros(num_blocks, 1, 1, BLOCK_SIZE, 1, 1, dtype=torch.int64)
        clock = LateClock() if late else HostStepClock()
        self.runner = FaultyRunner(cache, self.rows, clock)
        self.runner.fault, self.runner.tried = lambda _: None, []
        self.runner.use(cast(Any, ReadingModel(cache)))
        kv = KVCacheManager(self.pool, BLOCK_SIZE, "m")
        scheduler = Scheduler(kv, SchedulerLimits(max_num_seqs, budget, resume_headroom=BLOCKS_IN_PAGE))
        self.stats = Recorder()
        self.core = LLMCore(
            "m",
            1,
            0,
            scheduler,
            self.runner,
            self.rows,
            clock,
            cast(Tokenizer, None),
            self.stats,
            self.deliver,
        )
        self.pool.waiting_blocks, self.pool.preempt_newest = (
            self.core.waiting_blocks,
            self.core.preempt_newest,
        )
        self.in_flight: deque[Step] = deque()
        self.most_in_flight = int(late)
        self.requests: list[Request] = []
        self.failures: list[BaseException] = []

    def ask(self, prompt: list[int], max_tokens: int = 8, n: int = 1) -> Request:
        number = len(self.requests)
        request = Request(
            f"r{number}",
            prompt,
            SamplingParams(n=n, temperature=0.0),
            max_tokens,
            number,
            TokenStream(prompt, None, n),
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


@pytest.fixture(params=[False, True], ids=["cpu", "late"])
def late(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_without_failures_answers_are_those_of_the_model(late):
    bench = Bench(late)
    for i in range(6):
        bench.ask([i, 2, 3], 10, n=2)
    bench.run()
    assert [outcome(r) for r in bench.requests] == [expected(r) for r in bench.requests]
    bench.check_all_free()


@pytest.mark.parametrize("fault", ["memory", "memory after"])
def test_a_step_without_memory_is_halved_until_it_fits_and_nobody_is_lost(late, fault):
    bench = Bench(late)
    bench.runner.fault = lambda schedule: fault if schedule.num_tokens > 3 else None
    for i in range(8):
        bench.ask(list(range(i, i + 20)), 12)
    bench.run()
    assert [outcome(r) for r in bench.requests] == [expected(r) for r in bench.requests]
    assert not bench.failures
    assert bench.runner.tried[:3] == [16, 8, 4]
    bench.check_all_free()
    assert sum(stats.prompt_tokens for stats in bench.stats.steps) == 8 * 20
    assert sum(stats.prefix_queries for stats in bench.stats.steps) == 8 * 20, "counted once"


def test_when_there_is_memory_again_steps_grow_to_their_old_size(late):
    bench = Bench(late)
    bench.runner.fault = lambda schedule: "memory" if schedule.num_tokens > 2 else None
    bench.ask(list(range(30)), 2)
    bench.run()
    bench.runner.fault, bench.runner.tried = lambda _: None, []
    bench.ask(list(range(40, 240)), 2)
    bench.run()
    assert bench.runner.tried[0] < 6
    assert 16 in bench.runner.tried
    assert bench.core._limit.tokens is None


@pytest.mark.parametrize("fault", ["memory", "memory after"])
def test_a_sequence_that_fits_in_no_step_fails_alone(late, fault):
    bench = Bench(late)
    good = bench.ask([1, 2, 3], 6)
    bench.run()
    big = bench.ask([9] * 10, 6)
    bench.runner.fault = lambda schedule: (
        fault if any(i.sequence.request is big for i in schedule.items) else None
    )
    others = [bench.ask([i, 5, 6], 6) for i in range(3)]
    bench.run()
    assert isinstance(outcome(big), EngineFailedError)
    assert bench.runner.tried.count(1) >= 1
    for request in (good, *others):
        assert outcome(request) == expected(request)
    assert len(bench.failures) == 1
    bench.check_all_free()


def test_a_decode_alone_without_memory_gets_a_second_try(late):
    bench = Bench(late)
    request = bench.ask([1], 6)
    faults = deque([None, None, "memory after", None, "memory"])
    bench.runner.fault = lambda _: faults.popleft() if faults else None
    bench.run()
    assert outcome(request) == expected(request)
    assert not bench.failures


def test_an_undone_step_is_not_tried_again_before_the_one_in_flight_is_read():
    """It has sampled already: the card's rows hold tokens that come later than those it started from."""
    bench = Bench(late=True)
    request = bench.ask([1, 2, 3], 9)
    bench.step()
    bench.runner.fault = lambda _: "memory after"
    assert bench.core.launch() is None
    bench.runner.fault = lambda _: None
    assert bench.core.launch() is None
    assert len(bench.runner.tried) == 2
    bench.run()
    assert outcome(request) == expected(request)


def test_a_launch_that_fails_takes_no_answer_from_the_step_in_flight():
    bench = Bench(late=True)
    ends = bench.ask([1, 2, 3], 1)
    goes_on = bench.ask([4, 5, 6], 9)
    bench.step()
    late_one = bench.ask([7, 8, 9], 4)
    bench.runner.fault = lambda _: "step after"
    bench.step()
    bench.runner.fault = lambda _: None
    bench.run()
    assert outcome(ends) == expected(ends)
    assert isinstance(outcome(goes_on), EngineFailedError)
    assert isinstance(outcome(late_one), EngineFailedError)
    bench.check_all_free()


def test_what_was_launched_on_top_of_a_broken_step_fails_with_it():
    """The second request finds its prefix in blocks that the broken step was to fill."""
    bench = Bench(late=True, budget=12)
    prompt = list(range(1, 21))
    first = bench.ask(prompt, 9)
    bench.step()  # 12 tokens
    bench.runner.fault = lambda _: "late"
    bench.step()  # the other 8, then the first 12 are read: 5 blocks are offered
    bench.runner.fault = lambda _: None
    second = bench.ask([*prompt, 50, 51], 3)
    third = bench.ask([60, 61], 3)
    bench.step()
    assert second.sequences[0].num_cached_tokens == 20
    bench.run()
    assert isinstance(outcome(first), EngineFailedError)
    assert isinstance(outcome(second), EngineFailedError)
    fourth = bench.ask([*prompt, 50, 51], 3)
    bench.run()
    assert outcome(fourth) == expected(fourth)
    assert outcome(third) is not None
    bench.check_all_free()


def test_an_answer_that_had_ended_is_not_failed_by_a_step_that_was_ahead_of_it():
    bench = Bench(late=True)
    prompt = next(p for i in range(9999) if len(lone_answer(p := [i, 3, 5, 9], 6)) == 2)
    request = bench.ask(prompt, 6)
    while not request.finished:
        bench.runner.fault = lambda _: "late" if request.sequences[0].num_launched_outputs > 2 else None
        bench.step()
    assert bench.in_flight
    bench.run()
    assert len(bench.failures) == 1
    assert outcome(request) == expected(request)


def test_books_that_do_not_add_up_are_no_reason_to_leave_a_client_waiting(late):
    bench = Bench(late)
    requests = [bench.ask([i] * 9, 8, n=2) for i in range(4)]
    for _ in range(3):
        bench.step()
    bench.pool._book.refs.pop(bench.core.scheduler.running[0].block_table[0])
    bench.runner.fault = lambda _: "step"
    with pytest.raises(PoolIntegrityError):
        bench.run()
    bench.deliver(bench.core.give_up(RuntimeError("beyond help")))
    for request in requests:
        assert isinstance(outcome(request), EngineFailedError)
        assert request.finished
    while bench.in_flight:
        bench.collect()
    assert bench.pages.free_pages == bench.pages.num_pages
    bench.runner.fault = lambda _: None
    again = bench.ask([1, 2, 3])
    bench.run()
    assert outcome(again) == expected(again), "it can be put back to work"
    bench.check_all_free()


def test_giving_up_fails_everyone_and_takes_late_ones_too(late):
    bench = Bench(late, num_pages=8)
    for i in range(20):
        bench.ask([i] * 5, 9)
    for _ in range(6):
        bench.step()
    bench.deliver(bench.core.give_up(RuntimeError("beyond help")))
    late_one = bench.ask([1])
    bench.deliver(bench.core.give_up(RuntimeError("beyond help")))
    while bench.in_flight:
        bench.collect()
    assert {type(outcome(r)) for r in bench.requests} <= {list, EngineFailedError}
    assert isinstance(outcome(late_one), EngineFailedError)
    assert len(bench.stats.requests) == len(bench.requests) == bench.core.num_finished
    for request in bench.requests:
        assert not bench.core.abort(request)
    bench.check_all_free()


@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_failures_arrivals_and_departures(seed):
    rng = random.Random(seed)
    bench = Bench(late=bool(seed % 4), num_pages=rng.choice([14, 20, 60]), budget=rng.choice([6, 16, 40]))
    kinds = ["memory", "memory after", "step", "step after", "late"]
    bench.runner.fault = lambda _: rng.choice(kinds) if rng.random() < 0.12 else None
    aborted: set[str] = set()
    for _ in range(250):
        if rng.random() < 0.5:
            prompt = [rng.randrange(2) for _ in range(rng.randint(1, 24))]
            bench.ask(prompt, rng.randint(1, 16), n=rng.choice([1, 1, 1, 2]))
        for _ in range(rng.randint(0, 3)):
            bench.step()
        chance = rng.random()
        if chance < 0.04 and bench.requests:
            gone = rng.choice(bench.requests)
            aborted.add(gone.request_id)
            gone.stream.on_abort(lambda gone=gone: bench.deliver(bench.core.abort(gone)))
            gone.stream.abort()
        elif chance < 0.08:
            bench.core.preempt_newest()
        elif chance < 0.085:
            bench.deliver(bench.core.give_up(RuntimeError("for once")))
        bench.check()
    bench.run()
    survivors = 0
    for request in bench.requests:
        if request.request_id in aborted:
            continue
        result = outcome(request)
        assert result is not None, "nobody waits for ever"
        if isinstance(result, list):
            survivors += 1
            assert result == expected(request)
    assert survivors > 10
    assert bench.failures
    bench.check_all_free()
    finished = sum(len(request.sequences) for request in bench.requests)
    assert bench.core.num_finished == len(bench.stats.requests) == finished
