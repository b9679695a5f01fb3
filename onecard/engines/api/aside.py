"""Work that takes long, on a thread of its own, beside an event loop: for both sides of this package."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T], name: str = "aside") -> T:
    """The result of `work`, run on a thread that ends with it.

    Work can't be stopped: cancelling leaves it to itself, and so does the end of the process, which waits for
    no such thread.
    """
    result: Future[T] = Future()

    def run() -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            value = work()
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(value)

    Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(result)
