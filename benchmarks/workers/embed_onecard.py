"""onecard, in process, through `Embedder.embed`: the texts in one request, or a request each, all at once."""

import asyncio
import sys
import time
from pathlib import Path

import numpy as np
from onecard_node import run_with_loop
from protocol import Answer, Channel, package_version, serve

from onecard.engines.api import Embedder, EmbedRequest

channel = Channel()
loop, node = run_with_loop(Path(sys.argv[1]), "embedding", "auto")
engine: Embedder = node.engine("model")  # type: ignore[assignment]


async def embed(texts: list[str], separately: bool) -> tuple[float, np.ndarray]:
    groups = [(text,) for text in texts] if separately else [tuple(texts)]
    started = time.perf_counter()
    results = await asyncio.gather(*(engine.embed(EmbedRequest(str(i), g)) for i, g in enumerate(groups)))
    return time.perf_counter() - started, np.concatenate([result.vectors for result in results])


def handle(command: Answer) -> Answer:
    seconds, vectors = loop.run_until_complete(embed(command["texts"], command["separately"]))
    return {"seconds": seconds, "vectors": vectors.tolist()}


serve(channel, {"version": package_version("onecard"), "dtype": "auto (float32)"}, handle)
loop.run_until_complete(node.stop())
