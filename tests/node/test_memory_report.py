"""What the log says of a card's memory, and who hears of kernels that are compiled late."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from onecard.engines.memory.card_plan import CardFacts, ModelNeeds
from onecard.engines.memory.plan import plan_card
from onecard.engines.node import factory
from onecard.engines.node.memory_report import memory_report

MIB = 1 << 20


def needs(name: str, block_bytes: int | None, **more: int) -> ModelNeeds:
    return ModelNeeds(
        name=name,
        kind="llm" if block_bytes else "embedding",
        home_bytes=20 * MIB,
        packed_bytes=0,
        workspace_bytes=4 * MIB,
        block_bytes=block_bytes,
        block_size=16,
        max_model_len=256,
        floor=30 * MIB,
        ceiling=60 * MIB,
        **more,
    )


def served(name: str, weights: int, peak: int | None, graphs: int | None) -> Any:
    hooks = SimpleNamespace(peak_bytes=peak, graph_bytes=graphs)
    card_model = SimpleNamespace(weights=SimpleNamespace(weight_bytes=weights), hooks=hooks)
    return SimpleNamespace(info=SimpleNamespace(name=name), card_model=card_model)


def test_every_term_stands_beside_what_was_measured():
    facts = CardFacts("card0", "cuda:0", 256 * MIB, 200 * MIB, 128 * MIB)
    plan = plan_card(facts, [needs("chat", 64 << 10, graph_bytes=2 * MIB), needs("embed", None)], MIB)
    models = [served("chat", 19 * MIB, 3 * MIB, MIB), served("embed", 0, 2 * MIB, None)]
    line = memory_report(SimpleNamespace(plan=plan), models)
    assert line.startswith("card0: 256MiB in all; other processes 56MiB; ")
    assert "home of chat 20MiB (weights 19MiB)" in line
    assert "home of embed 20MiB (not loaded)" in line
    assert "workspace 4MiB planned, 3MiB measured" in line
    assert "graphs 2MiB planned, 1MiB measured" in line
    assert "arena 120MiB, 120 pages of 1MiB" in line
    assert "KV of chat 2560 to 10240 tokens (guaranteed, at most)" in line
    assert "KV of embed" not in line


def test_nothing_is_said_to_be_measured_that_was_not():
    facts = CardFacts("card0", "cpu", 256 * MIB, 200 * MIB, 128 * MIB)
    plan = plan_card(facts, [needs("chat", 64 << 10)], MIB)
    line = memory_report(SimpleNamespace(plan=plan), [served("chat", 19 * MIB, None, None)])
    assert "measured" not in line


@dataclass
class Watch:
    callback: Any
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("device", "watched"), [("cuda", True), ("cpu", False)])
def test_late_compilations_are_watched_on_a_cuda_card_until_the_end(
    device: str, watched: bool, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Watch] = []

    def watch(callback: Any) -> Watch:
        opened.append(Watch(callback))
        return opened[-1]

    monkeypatch.setattr("onecard.kernels.compile_watch.watch_compilations", watch)
    card = SimpleNamespace(handle=SimpleNamespace(device=SimpleNamespace(type=device)))
    heard: list[str] = []
    end = factory._watch_compilations([card], heard.append)
    assert (end is not None, len(opened)) == (watched, int(watched))
    if end is not None:
        opened[0].callback("kernel")
        assert heard == ["kernel"]
        end()
        assert opened[0].closed
