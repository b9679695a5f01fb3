"""The size of a step, as asked or by kind and device; the longest text."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.kinds import KINDS
from onecard.engines.memory.card_plan import PlanError
from onecard.engines.models.registry import parse_config
from onecard.engines.oneshot.build import EncoderFiles
from onecard.engines.paged.build import DecoderFiles
from onecard.engines.step.sizes import StepSize, longest_text
from onecard.registry.spec import EngineSpec, ModelKind, ModelSpec


def size(
    kind: ModelKind, device: str, longest: int = 512, tokens: int | None = None, seqs: int | None = None
) -> StepSize:
    engine = EngineSpec(max_num_batched_tokens=tokens, max_num_seqs=seqs)
    spec = ModelSpec(name="m", kind=kind, source="hf:o/n", engine=engine)
    return KINDS[kind].step_size(spec, device, longest)


@pytest.mark.parametrize(
    ("kind", "device", "expected"),
    [
        ("llm", "cpu", StepSize(2048, 64)),
        ("embedding", "cpu", StepSize(2048, 64)),
        ("llm", "cuda", StepSize(8192, 256)),
        ("embedding", "cuda", StepSize(16384, 512)),
    ],
)
def test_by_kind_and_device(kind: ModelKind, device: str, expected: StepSize) -> None:
    assert size(kind, device) == expected


def test_an_encoders_step_holds_its_longest_text_and_a_prompt_takes_several_steps() -> None:
    assert size("embedding", "cpu", longest=8192) == StepSize(8192, 64)
    assert size("embedding", "cuda", longest=32768) == StepSize(32768, 512)
    assert size("llm", "cpu", longest=131072) == StepSize(2048, 64)


def test_what_is_asked_is_what_counts() -> None:
    assert size("embedding", "cuda", 8192, tokens=1000, seqs=7) == StepSize(1000, 7)


@given(
    kind=st.sampled_from(["llm", "embedding"]),
    device=st.sampled_from(["cpu", "cuda"]),
    longest=st.integers(1, 1 << 18),
    tokens=st.none() | st.integers(1, 1 << 18),
    seqs=st.none() | st.integers(1, 1 << 18),
)
def test_what_is_left_open_fits_what_is_asked(
    kind: ModelKind, device: str, longest: int, tokens: int | None, seqs: int | None
) -> None:
    got = size(kind, device, longest, tokens, seqs)
    assert tokens is None or got.max_num_batched_tokens == tokens
    assert seqs is None or got.max_num_seqs == seqs
    assert None not in (tokens, seqs) or got.max_num_batched_tokens >= got.max_num_seqs >= 1
    assert kind == "llm" or tokens is not None or got.max_num_batched_tokens >= longest


SIZES = {
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 512,
}


def with_len(asked: int | None) -> ModelSpec:
    return ModelSpec(name="m", source="hf:o/n", engine=EngineSpec(max_model_len=asked))


@pytest.mark.parametrize(
    ("stretched", "most"), [({}, 512), ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 2048)]
)
def test_a_language_model_serves_no_more_than_its_positions_can_be_stretched_to(
    stretched: dict[str, object], most: int
) -> None:
    config = parse_config({"architectures": ["LlamaForCausalLM"], **SIZES, **stretched}, "llm")
    for asked, got in ((None, 512), (100, 100), (most, most)):
        assert DecoderFiles.of(with_len(asked), Path(), config).max_model_len == got
    with pytest.raises(PlanError, match=rf"m: `max_model_len: {most + 1}` is above the model's own {most}"):
        DecoderFiles.of(with_len(most + 1), Path(), config)


def test_an_encoder_serves_no_more_than_its_makers_advise() -> None:
    raw = {"architectures": ["BertModel"], **SIZES, "type_vocab_size": 2}
    config = parse_config(raw, "embedding")
    for advised, most in ((None, 512), (256, 256), (8192, 512)):
        assert EncoderFiles.of(with_len(None), Path(), config, advised).max_model_len == most
        assert EncoderFiles.of(with_len(100), Path(), config, advised).max_model_len == 100
        with pytest.raises(PlanError, match=rf"to at most {most}, or leave it out"):
            EncoderFiles.of(with_len(most + 1), Path(), config, advised)


@pytest.mark.parametrize(
    ("asked", "said"),
    [(1, "leaves room for no text: it is 2 at least"), (10**30, "is above the model's own 512")],
)
def test_a_longest_text_of_no_use_is_refused(asked: int, said: str) -> None:
    spec = ModelSpec("m", engine=EngineSpec(max_model_len=asked))
    with pytest.raises(PlanError, match=f"m: `max_model_len: {asked}` {said}"):
        longest_text(spec, 512)
    assert longest_text(replace(spec, engine=EngineSpec(max_model_len=2)), 512) == 2
