"""A lean HTTP client: a number of requests over `concurrency` connections, each timed.

Requests are built beforehand and answers only searched for their end, so that the server is what is measured.
"""

import asyncio
import random
import time

import uvloop
from protocol import Answer, Channel, serve

TIMEOUT_SECONDS = 60


async def read_answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise RuntimeError(head.decode(errors="replace"))
    if b"transfer-encoding: chunked" in head:
        while (size := int(await reader.readline(), 16)) != 0:
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))


async def connection(
    port: int, request: bytes, count: int, interval: float, latencies: list[float], draw: random.Random
) -> None:
    """`count` requests: each as soon as the last is answered, or (interval > 0) at random times, that far
    apart on average.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.perf_counter()
    for _ in range(count):
        if interval:
            due += draw.expovariate(1 / interval)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        started = time.perf_counter()
        writer.write(request)
        await read_answer(reader)
        latencies.append(time.perf_counter() - started)
    writer.close()


async def load(command: Answer) -> Answer:
    body = command["body"].encode()
    request = (
        f"POST {command['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    concurrency, latencies, draw = command["concurrency"], [], random.Random(0)
    interval = concurrency / command["rate"] if command["rate"] else 0.0
    started = time.perf_counter()
    share = command["requests"] // concurrency
    async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(connection(command["port"], request, share, interval, latencies, draw))
    return {"seconds": time.perf_counter() - started, "latencies": latencies}


serve(Channel(), {}, lambda command: uvloop.run(load(command)))
