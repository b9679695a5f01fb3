"""Errors of work that is done for somebody who waits: his to handle, but for those that end everything."""

import asyncio
from collections.abc import Callable

import pytest
import torch

from onecard.engines.runtime import inbox
from onecard.engines.runtime.inbox import run_aside, run_on

LOST = "CUDA error: an illegal memory access was encountered"
OWN_TROUBLE = [ValueError("no such file"), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]


class Loop:
    """What its calls raise ends it, as a device loop does after a fatal error."""

    def __init__(self) -> None:
        self.raised: list[BaseException] = []

    def post(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.raised.append(error)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Of what the process would have ended."""
    ended: list[BaseException] = []
    monkeypatch.setattr(inbox, "end_process", ended.append)
    return ended


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


async def test_results_come_back():
    assert await run_on(Loop(), lambda: 7) == 7
    assert await run_aside(lambda: 8) == 8


@pytest.mark.parametrize("error", OWN_TROUBLE, ids=repr)
async def test_whoever_waits_gets_the_error_and_nobody_else(error, ended):
    loop = Loop()
    with pytest.raises(type(error)):
        await run_on(loop, raising(error))
    with pytest.raises(type(error)):
        await run_aside(raising(error))
    assert (loop.raised, ended) == ([], [])


async def test_a_lost_card_is_the_loop_s_concern_too(ended):
    """Else every wake of a model would find out anew, and nobody would start the process again."""
    loop, error = Loop(), torch.AcceleratorError(LOST)
    with pytest.raises(torch.AcceleratorError):
        await run_on(loop, raising(error))
    assert loop.raised == [error]
    with pytest.raises(torch.AcceleratorError):
        await run_aside(raising(error))
    assert ended == [error]


class SlowLoop(Loop):
    """Runs its calls when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []

    def post(self, call: Callable[[], None]) -> None:
        self.calls.append(call)

    def run(self) -> None:
        for call in self.calls:
            super().post(call)


async def test_a_call_is_run_for_one_who_has_left_and_its_error_is_the_loop_s_to_log():
    loop, done = SlowLoop(), []
    error = ValueError("nobody hears it")
    for call in (lambda: done.append(1), raising(error)):
        waiting = asyncio.create_task(run_on(loop, call))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    loop.run()
    assert (done, loop.raised) == ([1], [error])
