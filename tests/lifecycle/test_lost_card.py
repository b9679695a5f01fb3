"""A card that is lost while weights are on their way ends the process, as it does in a step: no model of it
can be woken up any more, and only a new process helps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from manager_helpers import SmallCard

from onecard.engines.lifecycle.weight_mover import BrokenModelError
from onecard.engines.runtime import inbox

LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Of what the process would have ended."""
    ended: list[BaseException] = []
    monkeypatch.setattr(inbox, "end_process", ended.append)
    return ended


def lose(*_: Any) -> None:
    raise LOST


async def test_under_weights_that_are_read(ended):
    card = SmallCard("a", "b")
    card["b"].weights.load = lose
    with pytest.raises(BrokenModelError):
        await card.manager.wake("b")
    assert ended == [LOST]


async def test_under_weights_that_are_brought_back(ended):
    card = SmallCard("a")
    await card.manager.sleep("a", 1)
    card["a"].weights.restore = lose
    with pytest.raises(BrokenModelError):
        await card.manager.wake("a")
    assert ended == [LOST]


async def test_under_weights_that_are_saved(ended):
    """This is no want of host memory, which asks for another level of sleep."""
    card = SmallCard("a")
    card["a"].weights.save = lose
    await card.manager.sleep("a", 1)
    assert ended == [LOST]


async def test_a_file_that_cannot_be_read_ends_nothing(ended):
    card = SmallCard("a", "b")
    card["b"].weights.load = lambda *_: Path("/no/such/file").read_bytes()
    with pytest.raises(BrokenModelError):
        await card.manager.wake("b")
    assert not ended
