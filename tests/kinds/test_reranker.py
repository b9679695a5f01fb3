"""Rerankers on a node of their own: scores as sentence-transformers' CrossEncoder gives them."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cross_encoders import LONGEST, registry_of, write_bert, write_xlm_roberta

from onecard.engines.api import (
    ContextLengthError,
    EngineFailedError,
    InvalidRegistryError,
    InvalidRequestError,
    ReloadReport,
    RerankRequest,
)
from onecard.engines.kinds.reranker import sigmoid
from onecard.engines.memory.card_plan import PlanError
from onecard.engines.models.config import ConfigError
from onecard.engines.node.factory import plan_registry, start_node
from onecard.engines.text.generation_config import ModelFileError
from onecard.gateway.cli import main

QUERY = "the dog runs over what?"
DOCUMENTS = (
    "the dog runs over the cat.",
    "",
    "a cat",
    "walking, the cat and the dog are going over the same thing, again and again",
    "a cat",
    "日本語 x",
    "z",
)
LONG = "the cat runs, and the dog runs over the cat " * 40


@pytest.fixture(scope="module", params=["bert", "xlm_roberta", "reranker"])
def judge(request: pytest.FixtureRequest, open_judge: Any) -> Iterator[Any]:
    """Two random ones and one that was trained."""
    with open_judge(request.getfixturevalue(f"{request.param}_path")) as judge:
        yield judge


class Reference:
    """A folder in sentence-transformers' hands, each pair by itself, so that nothing is padded."""

    def __init__(self, folder: Path, longest: int | None = None):
        from sentence_transformers import CrossEncoder

        self.model = CrossEncoder(str(folder), device="cpu", max_length=longest)

    def __call__(self, query: str, *documents: str, raw: bool = False) -> np.ndarray:
        activation = torch.nn.Identity() if raw else torch.nn.Sigmoid()
        pairs = [[(query, document)] for document in documents]
        return np.concatenate([self.model.predict(pair, activation_fn=activation) for pair in pairs])


@pytest.fixture(scope="module")
def reference(judge: Any) -> Reference:
    return Reference(judge.folder)


pytestmark = pytest.mark.weights
"""Those of the demo's encoder: its tokenizer is the random BERT's."""


# --- scores --------------------------------------------------------------------------------------------


def test_scores_are_cross_encoders_alone_and_in_company(judge: Any, reference: Reference) -> None:
    expected = reference(QUERY, *DOCUMENTS)
    assert np.ptp(expected) > 0.05, "the documents differ"
    alone = [judge.rerank(QUERY, document).scores[0] for document in DOCUMENTS]
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    other = "what is over the dog"
    together, turned, others = judge.all_at_once(
        (QUERY, DOCUMENTS), (QUERY, DOCUMENTS[::-1]), (other, DOCUMENTS)
    )
    np.testing.assert_allclose(together.scores, expected, atol=1e-5)
    np.testing.assert_allclose(turned.scores[::-1], expected, atol=1e-5)
    np.testing.assert_allclose(others.scores, reference(other, *DOCUMENTS), atol=1e-5)
    assert together.scores.dtype == np.float32
    assert together.scores.shape == (len(DOCUMENTS),)


def test_raw_scores_are_the_heads_own(judge: Any, reference: Reference) -> None:
    raw = judge.rerank(QUERY, *DOCUMENTS, raw_scores=True).scores
    np.testing.assert_allclose(raw, reference(QUERY, *DOCUMENTS, raw=True), atol=3e-5)
    np.testing.assert_allclose(judge.rerank(QUERY, *DOCUMENTS).scores, 1 / (1 + np.exp(-raw)), atol=1e-6)


def test_long_texts_are_cut_as_cross_encoder_cuts_them(judge: Any, reference: Reference) -> None:
    longest = judge.engine.info.max_model_len
    for query, documents in ((QUERY, (LONG, "a cat")), (LONG, ("a cat", LONG, "")), (LONG[:300], (LONG,))):
        result = judge.rerank(query, *documents, truncate_prompt_tokens=-1)
        np.testing.assert_allclose(result.scores, reference(query, *documents), atol=1e-5)
        assert result.prompt_tokens <= longest * len(documents)
    assert judge.rerank(LONG, LONG, truncate_prompt_tokens=-1).prompt_tokens == longest
    shorter = Reference(judge.folder, 21)
    result = judge.rerank(QUERY, *DOCUMENTS, LONG, truncate_prompt_tokens=21)
    np.testing.assert_allclose(result.scores, shorter(QUERY, *DOCUMENTS, LONG), atol=1e-5)


def test_a_cut_document_scores_as_one_that_is_so_short(judge: Any) -> None:
    cut = judge.rerank(QUERY, "a cat runs", "a", max_tokens_per_doc=2)
    whole = judge.rerank(QUERY, "a cat", "a")
    if "cat" in judge.live.call(
        judge.engine.token_strings(judge.live.call(judge.engine.tokenize("a cat", False)))
    ):
        np.testing.assert_allclose(cut.scores, whole.scores, atol=1e-6)
        assert cut.prompt_tokens == whole.prompt_tokens
    assert judge.rerank(QUERY, LONG, max_tokens_per_doc=9).prompt_tokens <= LONGEST


def test_what_is_too_long_is_refused_with_its_numbers(judge: Any) -> None:
    longest = judge.engine.info.max_model_len
    with pytest.raises(ContextLengthError) as refused:
        judge.rerank(QUERY, "a cat", LONG * 10)
    assert refused.value.param == "documents"
    for said in (f"{longest} tokens", "the query and document 1", "truncate_prompt_tokens"):
        assert said in refused.value.message
    with pytest.raises(ContextLengthError, match="document 0"):
        judge.rerank(LONG * 10, "a cat", max_tokens_per_doc=1)


@pytest.mark.parametrize(
    ("query", "documents", "fields", "said"),
    [
        (QUERY, (), {}, "send at least one"),
        (QUERY, ("fine", "\ud83d"), {}, "lone surrogate"),
        ("\udc00", ("fine",), {}, "lone surrogate"),
        (QUERY, ("a",), {"truncate_prompt_tokens": 0}, "may be 1 to"),
        (QUERY, ("a",), {"truncate_prompt_tokens": 100_000}, "may be 1 to"),
        (QUERY, ("a",), {"truncate_prompt_tokens": 3}, "tokens of the model's own beside"),
    ],
)
def test_bad_requests_are_refused_and_harm_nobody(
    judge: Any, query: str, documents: tuple[str, ...], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        judge.rerank(query, *documents, **fields)
    assert not judge.engine.core.has_requests()
    assert judge.rerank(QUERY, "a").scores.shape == (1,)


def test_a_room_of_one_token_is_still_a_pair(judge: Any) -> None:
    added = judge.engine._template.num_added
    with pytest.raises(InvalidRequestError, match=f"comes to {added}; a pair has {added}"):
        judge.rerank(QUERY, LONG, truncate_prompt_tokens=added)
    small = Reference(judge.folder, added + 1)
    result = judge.rerank(QUERY, LONG, "a", truncate_prompt_tokens=added + 1)
    np.testing.assert_allclose(result.scores, small(QUERY, LONG, "a"), atol=1e-5)
    assert result.prompt_tokens == 2 * (added + 1)


def test_much_of_both_is_cut_within_a_moment(judge: Any) -> None:
    """A long query joined with many long documents would be more than there is memory for."""
    documents = (LONG * 20,) * 64
    result = judge.rerank(LONG * 20, *documents, truncate_prompt_tokens=-1)
    assert result.prompt_tokens == 64 * judge.engine.info.max_model_len
    with pytest.raises(ContextLengthError):
        judge.rerank(LONG * 500, *[""] * 2048)


def test_a_model_of_few_positions(minilm_path: Path, tmp_path: Path, open_judge: Any) -> None:
    """Fewer than the texts have that fill a step up."""
    write_bert(tmp_path, minilm_path, max_position_embeddings=20)
    with open_judge(tmp_path, max_num_batched_tokens=4096) as judge:
        scores = judge.rerank(QUERY, *["a cat"] * 150).scores
    np.testing.assert_allclose(scores, [Reference(tmp_path)(QUERY, "a cat")[0]] * 150, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_logits_of_any_size_have_a_score() -> None:
    logits = np.array([-1000, -90, -20, 0, 20, 90, 1000], dtype=np.float32)
    scores = sigmoid(logits)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, torch.sigmoid(torch.from_numpy(logits)), rtol=1e-5, atol=1e-37)


def test_berts_types_matter_to_its_scores(bert_path: Path, open_judge: Any) -> None:
    reference = Reference(bert_path)
    with open_judge(bert_path) as judge:
        typed = judge.rerank(QUERY, *DOCUMENTS, raw_scores=True).scores
        judge.engine._typed = False
        untyped = judge.rerank(QUERY, *DOCUMENTS, raw_scores=True).scores
    assert "token_type_ids" in reference.model.tokenizer.model_input_names
    assert np.abs(typed - untyped).min() > 0.01
    np.testing.assert_allclose(typed, reference(QUERY, *DOCUMENTS, raw=True), atol=3e-5)


def test_a_model_whose_tokenizer_tells_no_types_gets_none(
    bert_path: Path, minilm_path: Path, tmp_path: Path, open_judge: Any
) -> None:
    write_bert(tmp_path, minilm_path)
    file = tmp_path / "tokenizer_config.json"
    names = ["input_ids", "attention_mask"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    expected = Reference(tmp_path)(QUERY, *DOCUMENTS)
    assert np.abs(expected - Reference(bert_path)(QUERY, *DOCUMENTS)).max() > 0.01
    with open_judge(tmp_path) as judge:
        np.testing.assert_allclose(judge.rerank(QUERY, *DOCUMENTS).scores, expected, atol=1e-5)


def test_a_model_of_one_type_is_told_none(tmp_path: Path, xlm_roberta_path: Path, open_judge: Any) -> None:
    """Its tokenizer may name two all the same: a type beyond the model's would end the whole card."""
    write_xlm_roberta(tmp_path, "<s> $A </s> </s>:1 $B:1 </s>:1")
    expected = Reference(xlm_roberta_path)(QUERY, *DOCUMENTS)
    with open_judge(tmp_path) as judge:
        np.testing.assert_allclose(judge.rerank(QUERY, *DOCUMENTS).scores, expected, atol=1e-5)


def test_an_empty_pair_is_refused_where_the_tokenizer_adds_nothing(tmp_path: Path, open_judge: Any) -> None:
    write_xlm_roberta(tmp_path, "$A $B")
    with open_judge(tmp_path) as judge:
        good, bad = judge.all_at_once((QUERY, ("a", "")), ("", ("a", "")))
        assert isinstance(bad, InvalidRequestError)
        assert bad.message == "The query and document 1 are empty."
        np.testing.assert_allclose(good.scores, Reference(tmp_path)(QUERY, "a", ""), atol=1e-5)


# --- what is served as what ----------------------------------------------------------------------------


def plan(folder: Path, kind: str) -> Any:
    return plan_registry(registry_of(folder, kind), {"judge": folder})


def test_a_cross_encoder_is_no_embedding_model_and_no_language_model(xlm_roberta_path: Path) -> None:
    for kind in ("embedding", "llm"):
        with pytest.raises(
            ConfigError, match=f"`kind: {kind}` doesn't go with a XLMRoberta.*`kind: reranker`"
        ):
            plan(xlm_roberta_path, kind)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("BertModel", "`kind: reranker` doesn't go with a BertModel; write `kind: embedding`"),
        ("LlamaForCausalLM", "`kind: reranker` doesn't go with a LlamaForCausalLM; write `kind: llm`"),
        ("OddModel", "the checkpoint's architecture is OddModel; served are BertForSequenceClassification, "),
    ],
)
def test_no_other_model_is_a_reranker(
    architecture: str, said: str, xlm_roberta_path: Path, tmp_path: Path
) -> None:
    config = json.loads((xlm_roberta_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    with pytest.raises(ConfigError, match=said):
        plan(tmp_path, "reranker")


def test_real_models_of_other_kinds_are_no_rerankers(minilm_path: Path, smollm2_path: Path) -> None:
    for folder, kind in ((minilm_path, "embedding"), (smollm2_path, "llm")):
        with pytest.raises(ConfigError, match=f"`kind: reranker` doesn't go with .*; write `kind: {kind}`"):
            plan(folder, "reranker")


def test_a_head_of_several_labels_is_a_classifiers(tmp_path: Path) -> None:
    write_xlm_roberta(tmp_path, num_labels=2)
    with pytest.raises(PlanError) as refused:
        plan(tmp_path, "reranker")
    assert str(refused.value) == (
        "judge: a reranker's head has one output, its score; this one has 2 (LABEL_0, LABEL_1)"
    )


async def test_a_tokenizer_that_the_model_cannot_read_is_refused(minilm_path: Path, tmp_path: Path) -> None:
    write_bert(tmp_path, minilm_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"]["pair"][-1]["SpecialToken"]["type_id"] = 2
    file.write_text(json.dumps(content))
    with pytest.raises(ModelFileError, match="tells 3 types of tokens apart, the model 2"):
        await start_node(registry_of(tmp_path), {"judge": tmp_path}, Any)


def test_the_plan_names_it(
    xlm_roberta_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = tmp_path / "registry.yaml"
    registry.write_text(
        "cards: [{name: card0, device: cpu, memory: 256MiB}]\n"
        f"models: [{{name: judge, kind: reranker, source: {xlm_roberta_path}}}]\n"
    )
    assert main(["check", str(registry)]) == 0
    assert "judge (reranker)" in capsys.readouterr().out
    assert main(["plan", str(registry)]) == 0
    said = capsys.readouterr().out
    assert "judge: weights" in said
    assert "judge: KV" not in said
    assert main(["plan", str(registry), "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    (model,) = card["models"]
    assert (model["name"], model["weight_bytes"] > 0) == ("judge", True)


# --- its life on a card --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alive(bert_path: Path, open_judge: Any) -> Iterator[Any]:
    """With its first steps behind it."""
    with open_judge(bert_path, warm_up=True, max_num_seqs=4) as judge:
        judge.scores = judge.rerank(QUERY, *DOCUMENTS).scores
        yield judge


@pytest.mark.parametrize("level", [1, 2])
def test_it_wakes_up_with_the_same_scores(alive: Any, level: int) -> None:
    alive.live.call(alive.node.sleep("judge", level))
    assert alive.node.status().models[0].state == ("asleep" if level == 1 else "unloaded")
    np.testing.assert_array_equal(alive.rerank(QUERY, *DOCUMENTS).scores, alive.scores)
    assert alive.node.status().models[0].state == "ready"


def test_it_is_replaced_by_another_while_it_is_asked(alive: Any, xlm_roberta_path: Path) -> None:
    registry = alive.node._registry
    source = replace(registry.models[0], source=str(xlm_roberta_path))
    wanted = replace(registry, models=(source,))

    async def during() -> tuple[list[Any], ReloadReport]:
        request = RerankRequest("r", QUERY, DOCUMENTS)
        running = [asyncio.create_task(alive.engine.rerank(request)) for _ in range(20)]
        await asyncio.sleep(0)
        report = await alive.node.apply(wanted, {"judge": xlm_roberta_path})
        return await asyncio.gather(*running), report

    results, report = alive.live.call(during())
    assert report == ReloadReport(changed=("judge",))
    for result in results:
        np.testing.assert_allclose(result.scores, alive.scores, atol=1e-6)
    expected = Reference(xlm_roberta_path)(QUERY, *DOCUMENTS)
    np.testing.assert_allclose(alive.rerank(QUERY, *DOCUMENTS).scores, expected, atol=1e-5)
    with pytest.raises(InvalidRegistryError, match="write `kind: reranker`"):
        alive.live.call(
            alive.node.apply(
                replace(wanted, models=(replace(source, kind="embedding"),)), {"judge": xlm_roberta_path}
            )
        )
    alive.live.call(alive.node.apply(registry, {"judge": alive.folder}))
    np.testing.assert_array_equal(alive.rerank(QUERY, *DOCUMENTS).scores, alive.scores)


def heads(alive: Any, monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> list[int]:
    """Calls `before(texts)` ahead of each step's head; the texts of each step."""
    steps: list[int] = []
    core = alive.engine.core
    head = core._head

    def counting(hidden: torch.Tensor, cu_seqlens: torch.Tensor, model: Any) -> torch.Tensor:
        steps.append(len(cu_seqlens) - 1)
        before(steps[-1])
        return head(hidden, cu_seqlens, model)

    monkeypatch.setattr(core, "_head", counting)
    return steps


def test_a_step_without_memory_is_tried_again_smaller(alive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(texts: int) -> None:
        if texts > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    steps = heads(alive, monkeypatch, scarce)
    first, second = alive.all_at_once((QUERY, DOCUMENTS), (QUERY, DOCUMENTS[::-1]))
    np.testing.assert_allclose(first.scores, alive.scores, atol=1e-6)
    np.testing.assert_allclose(second.scores[::-1], alive.scores, atol=1e-6)
    assert max(steps) > 1


def test_a_step_that_fails_loses_its_own_requests_only(alive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [ValueError("injected")]

    def broken(_: int) -> None:
        if faults:
            raise faults.pop()

    heads(alive, monkeypatch, broken)
    with pytest.raises(EngineFailedError, match="injected"):
        alive.rerank(QUERY, *DOCUMENTS)
    np.testing.assert_allclose(alive.rerank(QUERY, *DOCUMENTS).scores, alive.scores, atol=1e-6)


def test_who_cancels_leaves_nothing_behind(alive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running, go_on = threading.Event(), threading.Event()

    def wait(_: int) -> None:
        running.set()
        assert go_on.wait(20)

    steps = heads(alive, monkeypatch, wait)

    async def during() -> Any:
        begun: list[str] = []
        gone = asyncio.create_task(
            alive.engine.rerank(RerankRequest("r", QUERY, DOCUMENTS * 20), lambda: begun.append("gone"))
        )
        await asyncio.to_thread(running.wait, 20)
        stays = asyncio.create_task(alive.engine.rerank(RerankRequest("s", QUERY, DOCUMENTS)))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        go_on.set()
        result = await stays
        assert begun == [], "its last pair never ran"
        return result

    result = alive.live.call(during())
    np.testing.assert_allclose(result.scores, alive.scores, atol=1e-6)
    assert sum(steps) <= 4 + len(DOCUMENTS) + 4
    alive.live.wait_idle()
    assert not alive.engine.core.has_requests()


def test_its_requests_are_counted(alive: Any) -> None:
    alive.live.stats.requests.clear()
    result = alive.rerank(QUERY, *DOCUMENTS)
    (stats,) = alive.live.stats.requests
    assert (stats.finish_reason, stats.prompt_tokens) == ("stop", result.prompt_tokens)
