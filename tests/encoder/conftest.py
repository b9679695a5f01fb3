"""A device loop driven by hand, and an encoder whose vectors can be foretold."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from onecard.engines.api import ModelInfo, RequestStats, StepStats
from onecard.engines.encoder.core import EncoderCore
from onecard.engines.encoder.engine import EncoderEngine
from onecard.engines.encoder.queue import TokenBudgetQueue
from onecard.engines.encoder.sentence_config import SentenceConfig
from onecard.engines.layers.forward_batch import EncodeBatch
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.service import TextService
from onecard.engines.text.special_tokens import SpecialTokens
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
        self.core: EncoderCore | None = None
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
        for deliver in deliveries:
            deliver()
        return True

    def run(self) -> int:
        """Until nothing is left; the number of steps."""
        steps = 0
        while self.step():
            steps += 1
        return steps


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
    ):
        self.model, self.loop = TellingModel(), HandDrivenLoop()
        self.stats = self.loop.stats
        config = config or SentenceConfig(Path())
        queue = TokenBudgetQueue(max_tokens, max_seqs)
        self.core = EncoderCore("bert", self.model, config.pooling, queue, CPU, self.stats)
        self.loop.core = self.core
        info = ModelInfo("bert", "embedding", "root", 0, max_model_len)
        text = TextService(word_tokenizer(), ThreadPoolExecutor(1))
        self.engine = EncoderEngine(
            info, self.core, self.loop, text, config, TellingModel.dimensions, self.stats
        )


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
