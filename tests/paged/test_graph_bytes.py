from dataclasses import replace

import pytest
import torch

from onecard.engines.models.config import DecoderConfig
from onecard.engines.models.registry import load_config
from onecard.engines.paged.decode_graphs import DecodeGraphs, default_sizes, graph_bytes, static_bytes
from onecard.engines.paged.rows import RequestRows


@pytest.fixture
def config(smollm2_path) -> DecoderConfig:
    config = load_config(smollm2_path, "llm")
    assert isinstance(config, DecoderConfig)
    return config


def test_default_sizes_are_dense_where_padding_would_cost_and_end_at_the_largest_batch():
    assert default_sizes(1) == [1]
    assert default_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert default_sizes(300)[-4:] == [256, 272, 288, 300]


@pytest.mark.parametrize(("size", "longest"), [(1, 64), (8, 2048), (64, 131072)])
def test_the_static_buffers_take_what_was_planned(size, longest, config):
    rows = RequestRows(size, -(-longest // 16), torch.device("cpu"), mirrored=False)
    kv_cache = torch.empty(4, 1, 2, 16, 1, 8)
    graphs = DecodeGraphs(kv_cache, rows, config.vocab_size, longest, [size], backend=None)
    buffers = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(graphs)}
    planned = static_bytes(size, config.vocab_size, longest, 16)
    assert sum(buffers.values()) <= planned + 1024
    assert planned <= 1.01 * sum(buffers.values()) + 256 * size


def tensors(graphs: DecodeGraphs) -> list[torch.Tensor]:
    return [
        value
        for name, value in vars(graphs).items()
        if isinstance(value, torch.Tensor) and name != "_kv_cache"
    ]


def test_more_sequences_longer_contexts_and_more_graphs_take_more(config):
    base = graph_bytes([1, 2, 4], config, torch.bfloat16, 2048, 16)
    assert graph_bytes([], config, torch.bfloat16, 2048, 16) == 0
    assert graph_bytes([1, 2, 4, 8], config, torch.bfloat16, 2048, 16) > base
    assert graph_bytes([1, 2, 4], config, torch.bfloat16, 65536, 16) > base
    assert graph_bytes([1, 2, 4], replace(config, vocab_size=99999), torch.bfloat16, 2048, 16) > base
