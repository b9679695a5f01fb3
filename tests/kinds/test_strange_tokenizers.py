"""Tokenizers, templates and end tokens that don't go with their model, or don't go at all: refused as the
model loads, or one request's error; never the end of anything else."""

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cross_encoders import registry_of, write_xlm_roberta
from tiny_llama import add_token, write_llama
from tokenizers import decoders

from onecard.engines.api import (
    ChatPrompt,
    ContextLengthError,
    EngineFailedError,
    GenerateRequest,
    InvalidRequestError,
    SamplingParams,
)
from onecard.engines.text.generation_config import ModelFileError

OpenNode = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def serve(open_live_node: OpenNode) -> Callable[[Path, str], AbstractContextManager[Any]]:
    def open_node(folder: Path, kind: str = "llm") -> AbstractContextManager[Any]:
        return open_live_node(registry_of(folder, kind), {"judge": folder})

    return open_node


async def answer(engine: Any, prompt: Any, **sampling: Any) -> str:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 4, **sampling})
    stream = await engine.generate(GenerateRequest("r", prompt, params))
    return "".join([chunk.text async for chunk in stream])


def test_a_tokenizer_of_more_tokens_than_the_table_has_rows_is_refused(tmp_path: Path, serve: Any) -> None:
    with (
        pytest.raises(ModelFileError, match=r"judge: the tokenizer has 70 tokens.* table has 64 rows"),
        serve(write_llama(tmp_path, words=70)),
    ):
        pass


def test_a_rerankers_too(tmp_path: Path, serve: Any) -> None:
    write_xlm_roberta(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["model"]["vocab"] += [[f"more{i}", -9.0] for i in range(5)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with (
        pytest.raises(ModelFileError, match=r"tokens, but the model's embedding table"),
        serve(tmp_path, "reranker"),
    ):
        pass


def test_a_tokenizer_that_panics_over_two_texts_is_no_rerankers(tmp_path: Path, serve: Any) -> None:
    write_xlm_roberta(tmp_path)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["post_processor"]["pair"].insert(0, {"SpecialToken": {"id": "[gone]", "type_id": 0}})
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with (
        pytest.raises(ModelFileError, match=f"{tmp_path}: The model's tokenizer can't join two texts"),
        serve(tmp_path, "reranker"),
    ):
        pass


def test_tokens_beyond_the_table_reach_no_model(tmp_path: Path, serve: Any) -> None:
    add_token(write_llama(tmp_path, eos_token_id=[500, 63]), "<extra>")
    with serve(tmp_path) as live:
        engine = live.node.engine("judge")
        for prompt in ("w1 <extra>", (1, 64), ChatPrompt(({"role": "user", "content": "<extra>"},))):
            with pytest.raises(InvalidRequestError, match="64"):
                live.call(answer(engine, prompt))
        for field in ({"stop_token_ids": (64,)}, {"logit_bias": ((64, 1.0),)}):
            with pytest.raises(InvalidRequestError, match=r"64 .* out of vocabulary"):
                live.call(answer(engine, "w1", **field))
        # Of the two end tokens, which must not come yet, there is a row of one only.
        assert live.call(answer(engine, "w1 w2", min_tokens=3))


def test_an_end_token_that_cannot_come_is_refused(tmp_path: Path, serve: Any) -> None:
    with (
        pytest.raises(ModelFileError, match=r"judge: `eos_token_id` is 64,.* 64 rows"),
        serve(write_llama(tmp_path, eos_token_id=64)),
    ):
        pass


def test_a_decoder_that_panics_ends_answers_but_no_engine(tmp_path: Path, serve: Any) -> None:
    with serve(write_llama(tmp_path, decoder=decoders.Strip("w", 0, 999))) as live:
        engine = live.node.engine("judge")
        for _ in range(5):
            with pytest.raises(EngineFailedError, match="can't write the text"):
                live.call(answer(engine, "ww"))
        assert live.call(engine.tokenize("ww www")) == [1, 2]
        with pytest.raises(EngineFailedError, match="can't write the text"):
            live.call(engine.detokenize([1]))
        live.wait_idle()


def test_an_endless_template_is_one_requests_error(tmp_path: Path, serve: Any) -> None:
    rounds = "{% for i in range(99999) %}"
    template = f"{{% if messages[0].content == 'loop' %}}{rounds * 2}{'{% endfor %}' * 2}{{% endif %}}w1"
    config = {"chat_template": template}
    (write_llama(tmp_path) / "tokenizer_config.json").write_text(json.dumps(config))

    def says(content: str) -> ChatPrompt:
        return ChatPrompt(({"role": "user", "content": content},))

    async def both(engine: Any) -> None:
        looping = asyncio.create_task(answer(engine, says("loop")))
        await asyncio.sleep(0.2)
        assert await answer(engine, says("w1"))
        assert not looping.done()
        with pytest.raises(InvalidRequestError, match="took more than 2 s"):
            await looping

    with serve(tmp_path) as live:
        live.call(both(live.node.engine("judge")))


def test_a_text_that_cannot_fit_costs_next_to_nothing(tmp_path: Path, serve: Any) -> None:
    with serve(write_llama(tmp_path)) as live:
        engine = live.node.engine("judge")
        long = "1" * 33_000_000
        began = time.monotonic()
        for prompt in (long, ChatPrompt(({"role": "user", "content": long},)), (1,) * 1_000_000):
            with pytest.raises(ContextLengthError, match="maximum context length is 256 tokens") as refused:
                live.call(answer(engine, prompt))
            assert refused.value.code == "context_length_exceeded"
        with pytest.raises(ContextLengthError, match="33000000 characters"):
            live.call(engine.tokenize(long))
        assert time.monotonic() - began < 5
        stream = live.call(
            engine.generate(
                GenerateRequest("r", "w9 " * 1_000_000 + "w1 w2", truncate_prompt_tokens=3, sampling=ONE)
            )
        )
        assert stream.prompt_token_ids == [9, 1, 2]


ONE = SamplingParams(max_tokens=1)
