"""A tiny paged engine for the tests of model files: it packs steps, owns a cache, and runs the model."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from onecard.engines.layers.forward_batch import EncodeBatch, ForwardBatch
from onecard.engines.models.config import DecoderConfig
from onecard.engines.models.decoder import DecoderForCausalLM
from onecard.engines.models.registry import load_config
from onecard.engines.weights.loader import load_model
from onecard.kernels.paged_attention import PagedBatch


@dataclass
class _Sequence:
    tokens: list[int]
    blocks: list[int]
    computed: int = 0


@dataclass
class PagedRunner:
    """Runs steps of several sequences over a cache that starts out as NaN, in blocks handed out at random."""

    model: DecoderForCausalLM
    config: DecoderConfig
    num_blocks: int = 96
    block_size: int = 4
    device: str = "cpu"
    sequences: dict[str, _Sequence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        shape = (config.num_hidden_layers, 2, self.block_size, config.num_key_value_heads, config.head_dim)
        dtype = self.model.embed_tokens.compute
        self.kv_cache = torch.full((self.num_blocks, *shape), float("nan"), dtype=dtype, device=self.device)
        self.free = random.Random(7).sample(range(self.num_blocks), self.num_blocks)

    def add(self, name: str, tokens: Sequence[int]) -> None:
        self.sequences[name] = _Sequence(list(tokens), [])

    @torch.inference_mode()
    def step(self, plan: dict[str, int]) -> dict[str, torch.Tensor]:
        """Compute the next `plan[name]` tokens of each sequence named; logits of each, `[n, vocab]`."""
        order = sorted(plan, key=lambda name: plan[name] != 1)
        batch = self._pack(order, plan)
        logits = self.model.compute_logits(self.model.forward(batch)[batch.logits_rows])
        return dict(zip(order, logits.split([plan[name] for name in order])))

    def _pack(self, order: list[str], plan: dict[str, int]) -> ForwardBatch:
        input_ids, positions, slots, starts = [], [], [], [0]
        for name in order:
            sequence, count = self.sequences[name], plan[name]
            places = range(sequence.computed, sequence.computed + count)
            while len(sequence.blocks) * self.block_size < places.stop:
                sequence.blocks.append(self.free.pop())
            input_ids += sequence.tokens[places.start : places.stop]
            positions += places
            slots += [
                sequence.blocks[p // self.block_size] * self.block_size + p % self.block_size for p in places
            ]
            starts.append(starts[-1] + count)
            sequence.computed = places.stop
        running = [self.sequences[name] for name in order]
        width = max(len(sequence.blocks) for sequence in running)
        lengths = [sequence.computed for sequence in running]
        paged = PagedBatch(
            cu_seqlens_q=self._tensor(starts, torch.int32),
            seq_lens=self._tensor(lengths, torch.int32),
            block_tables=self._tensor(
                [s.blocks + [self.num_blocks * 9] * (width - len(s.blocks)) for s in running], torch.int32
            ),
            slot_mapping=self._tensor(slots),
            max_seqlen_q=max(plan.values()),
            max_seqlen_k=max(lengths),
            num_decodes=sum(plan[name] == 1 for name in order),
        )
        rows = torch.arange(len(input_ids), device=self.device)
        return ForwardBatch(self._tensor(input_ids), self._tensor([positions]), paged, self.kv_cache, rows)

    def _tensor(self, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where a test runs: on the CPU, and again on the card where there is one."""
    return request.param


@pytest.fixture
def paged_runner() -> Callable[..., PagedRunner]:
    """`paged_runner(path, dtype="auto", device="cpu", **sizes)`: the checkpoint's model on a fresh cache."""

    def make(path: Path, dtype: str = "auto", device: str = "cpu", **sizes: int) -> PagedRunner:
        config = load_config(path, "llm")
        assert isinstance(config, DecoderConfig)
        model = load_model(path, config, torch.device(device), dtype).model
        assert isinstance(model, DecoderForCausalLM)
        return PagedRunner(model, config, device=device, **sizes)

    return make


@pytest.fixture
def encode_batch() -> Callable[..., EncodeBatch]:
    """`encode_batch(texts, device="cpu")`: texts as token ids, packed."""

    def pack(texts: list[list[int]], device: str = "cpu") -> EncodeBatch:
        lengths = torch.tensor([0, *map(len, texts)])
        return EncodeBatch(
            input_ids=torch.tensor([token for text in texts for token in text], device=device),
            positions=torch.cat([torch.arange(len(text), device=device) for text in texts]),
            cu_seqlens=lengths.cumsum(0).to(device, torch.int32),
            max_seqlen=int(lengths.max()),
        )

    return pack
