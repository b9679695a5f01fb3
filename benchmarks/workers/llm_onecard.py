"""onecard, in process, through `TextGenerator.generate`: one stream a request, all submitted at once."""

import asyncio
import sys
import time
from importlib.metadata import version
from itertools import count
from pathlib import Path

from onecard_node import run_with_loop
from protocol import Answer, Channel, serve

from onecard.engines.api import GenerateRequest, SamplingParams, TextGenerator

channel = Channel()
path, dtype = Path(sys.argv[1]), sys.argv[2]
loop, node = run_with_loop(path, "llm", dtype)
engine = node.engine("model")
request_ids = map(str, count())


async def generate_one(prompt: list[int], new_tokens: int, started: float) -> tuple[list[float], list[int]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
    generator: TextGenerator = engine  # type: ignore[assignment]
    stream = await generator.generate(GenerateRequest(next(request_ids), tuple(prompt), sampling))
    times: list[float] = []
    tokens: list[int] = []
    async for chunk in stream:
        times += [time.perf_counter() - started] * len(chunk.token_ids)
        tokens += chunk.token_ids
    assert stream.cached_tokens == 0, "prompts are meant to be fresh"
    return times, tokens


async def generate(prompts: list[list[int]], new_tokens: int) -> Answer:
    started = time.perf_counter()
    results = await asyncio.gather(*(generate_one(prompt, new_tokens, started) for prompt in prompts))
    return {"times": [times for times, _ in results], "tokens": [tokens for _, tokens in results]}


def handle(command: Answer) -> Answer:
    return loop.run_until_complete(generate(command["prompts"], command["new_tokens"]))


serve(channel, {"version": version("onecard"), "dtype": dtype}, handle)
loop.run_until_complete(node.stop())
