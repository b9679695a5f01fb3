"""Work for other threads than the event loop's, awaited there.

A thread beside a card's steps ends with its work: one that lives on with a team of OpenMP workers makes every
parallel region of a CPU's device loop wait in the kernel instead of spinning (docs/performance.md, Threads).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from onecard.engines.runtime.failures import classify, end_process
from onecard.engines.runtime.inbox import Call

T = TypeVar("T")


class Poster(Protocol):
    """The part of a device loop that is needed here."""

    def post(self, call: Call) -> None: ...


async def run_on(loop: Poster, call: Callable[[], T]) -> T:
    """The result of `call`, run on a device loop's thread between two steps, also once nobody waits any more.
    An error that is fatal for the card ends the loop as well."""
    result: Future[T] = Future()

    def run() -> None:
        awaited = result.set_running_or_notify_cancel()
        try:
            value = call()
        except BaseException as error:
            if awaited:
                result.set_exception(error)
            if classify(error) == "fatal" or not awaited:
                raise
        else:
            if awaited:
                result.set_result(value)

    loop.post(run)
    return await asyncio.wrap_future(result)


async def run_aside(work: Callable[[], T]) -> T:
    """The result of `work`, run on a thread of its own. Cancelling waits for it: it can't be stopped. An
    error that is fatal for a card ends the process, as it would on the card's loop."""

    def run() -> T:
        try:
            return work()
        except Exception as error:
            if classify(error) == "fatal":
                end_process(error)
            raise

    executor = ThreadPoolExecutor(1, thread_name_prefix="aside")
    try:
        running = asyncio.get_running_loop().run_in_executor(executor, run)
        return await asyncio.shield(running)
    finally:
        executor.shutdown(wait=False)
