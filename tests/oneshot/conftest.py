"""A device loop driven by hand, and an encoder whose vectors can be foretold."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from onecard.engines.api import ModelInfo, RequestStats, StepStats
from onecard.engines.kinds.embedding import EmbeddingEngine
from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.oneshot.core import OneShotCore
from onecard.engines.oneshot.heads.pool import Pooling
from onecard.engines.oneshot.queue import TokenBudgetQueue
from onecard.engines.oneshot.sentence_config import SentenceConfig
from onecard.engines.runtime.gate import Gate
from onecard.engines.runtime.step_clock import HostStepClock
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.service import TextService
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
WORDS = ["[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(97))]


class RecordedStats:
    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.requests: list[RequestStats] = []

    def record_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def record_request(self, stats: RequestStats) -> None:
        self.requests.append(stats)


class HandDrivenLoop:
    """What `runtime.DeviceLoop` does, one step at a time and on the caller's thread."""

    def __init__(self) -> None:
        self.core: OneShotCore | None = None
        self.calls: list[Callable[[], None]] = []
        self.stats = RecordedStats()

    def post(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def step(self) -> bool:
        """Run what was posted and one step. False when there was nothing to run."""
        assert self.core is not None
        calls, self.calls = self.calls, []
        for call in calls:
            call()
        if not self.core.has_work():
            self.core.idle()
            return False
        try:
            step = self.core.launch()
            deliveries = self.core.collect(step) if step is not None else []
        except Exception as error:
            deliveries = self.core.fail(error)
        self.hand_out(deliveries)
        return True

    def deliver(self, deliveries: list[Callable[[], None]]) -> None:
        self.hand_out(deliveries)

    def hand_out(self, deliveries: list[Callable[[], None]]) -> None:
        for deliver in deliveries:
            deliver()

    def run(self) -> int:
        """Until nothing is left; the number of steps."""
        steps = 0
        while self.step():
            steps += 1
        return steps


class OverlappingLoop(HandDrivenLoop):
    """As a card's loop: it launches a step before it collects the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: deque[object] = deque()

    def step(self) -> bool:
        assert self.core is not None
        calls, self.calls = self.calls, []
        for call in calls:
            call()
        launched = self.core.has_work() and self.launch()
        if self.in_flight and (not launched or len(self.in_flight) > 1):
            self.collect()
        elif not launched:
            self.core.idle()
            return False
        return True

    def launch(self) -> bool:
        assert self.core is not None
        try:
            step = self.core.launch()
        except Exception as error:
            self.hand_out(self.core.fail(error))
            return True
        if step is not None:
            self.in_flight.append(step)
        return step is not None

    def collect(self) -> None:
        assert self.core is not None
        try:
            deliveries = self.core.collect(self.in_flight.popleft())
        except Exception as error:
            deliveries = self.core.fail(error)
        self.hand_out(deliveries)


class LateDevice:
    """A device that computes a step no sooner than somebody waits for it, and its own `StepClock`.

    It pools, too: the vectors of a step are NaN until then. A step with the token `poison` raises then.
    """

    asynchronous = True

    def __init__(self, pooling: Pooling, poison: int = -1):
        self.pooling, self.poison = pooling, poison
        self.enqueued: deque[Callable[[], None]] = deque()
        self.num_computed = 0

    def __call__(self, hidden: torch.Tensor, cu_seqlens: torch.Tensor, model: object) -> torch.Tensor:
        vectors = self.pooling(hidden, cu_seqlens)
        late = torch.full_like(vectors, float("nan"))
        poisoned = bool((hidden[:, 0] == self.poison).any())

        def compute() -> None:
            if poisoned:
                raise RuntimeError("found out late")
            late.numpy()[:] = vectors.numpy()

        self.enqueued.append(compute)
        return late

    def begin(self) -> "LateMark":
        return LateMark(self)

    def rest(self) -> None: ...

    def run_until(self, step: int) -> None:
        while self.num_computed < step:
            self.num_computed += 1
            self.enqueued.popleft()()


@dataclass
class LateMark:
    device: LateDevice
    step: int = 0
    device_seconds: float = 3.0
    gap_seconds: float = 0.25

    def end(self) -> None:
        self.step = self.device.num_computed + len(self.device.enqueued)

    def wait(self) -> None:
        self.device.run_until(self.step)


class TellingModel:
    """Hidden state of a token: (its id, its position, 1, 0). Raises on a step that holds `poison`."""

    dimensions = 4

    def __init__(self) -> None:
        self.batches: list[EncodeBatch] = []
        self.poison = -1

    def __call__(self, batch: EncodeBatch) -> torch.Tensor:
        self.batches.append(batch)
        if bool((batch.input_ids == self.poison).any()):
            raise RuntimeError("poisoned")
        ones = torch.ones(len(batch.input_ids))
        return torch.stack([batch.input_ids.float(), batch.positions.float(), ones, 0 * ones], dim=1)


class Bench:
    """An engine with everything around it within reach."""

    def __init__(
        self,
        max_tokens: int = 32,
        max_seqs: int = 8,
        max_model_len: int = 16,
        config: SentenceConfig | None = None,
        late: bool = False,
        takes_ids: bool = True,
    ):
        """`late`: on a device that computes later, with a loop that overlaps steps."""
        self.model = TellingModel()
        self.loop = OverlappingLoop() if late else HandDrivenLoop()
        self.stats = self.loop.stats
        config = config or SentenceConfig(Path())
        queue = TokenBudgetQueue(max_tokens, max_seqs)
        head = replace(config.pooling, normalize=False)  # as `EmbeddingKind.build` has it
        self.device = LateDevice(head)
        pooling, clock = (self.device, self.device) if late else (head, HostStepClock())
        self.core = OneShotCore(
            "bert", 1.0, 0, pooling, queue, max_model_len, CPU, clock, self.stats, self.loop.hand_out
        )
        self.core.use(self.model)
        self.loop.core = self.core
        info = ModelInfo("bert", "embedding", "root", 0, max_model_len, frozenset({"embed"}))
        text = TextService(word_tokenizer(), ThreadPoolExecutor(1))
        front = info, self.core, self.loop, text, Gate("bert"), TellingModel.dimensions
        self.engine = EmbeddingEngine(*front, sentences=config, takes_ids=takes_ids)


def word_tokenizer() -> Tokenizer:
    """One token a word, between [CLS] and [SEP]."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return Tokenizer(backend, SpecialTokens(), ChatTemplates())


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def make_bench() -> type[Bench]:
    return Bench


@pytest.fixture(scope="module")
def hand_driven_loop() -> HandDrivenLoop:
    """Give it its `core`; its `stats` are for the engine."""
    return HandDrivenLoop()
