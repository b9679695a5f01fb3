"""onecard, in process, through `TextGenerator.generate`: one stream a request, all submitted at once.

Arguments: model, dtype, and for a card a JSON object of engine settings, `memory` (a fraction) among them.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from itertools import count
from pathlib import Path

from onecard_node import SummedStats, run_with_loop
from protocol import Answer, Channel, package_version, serve

from onecard.engines.api import GenerateRequest, SamplingParams, TextGenerator
from onecard.registry.spec import MemoryAmount

channel = Channel()
path, dtype = Path(sys.argv[1]), sys.argv[2]
settings = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
share = settings.pop("memory", None)
memory = None if share is None else MemoryAmount(fraction=share)
sums = SummedStats()
loop, node = run_with_loop(path, "llm", dtype, sums, memory, **settings)
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


async def generate(prompts: list[list[int]], new_tokens: int | list[int]) -> Answer:
    """`new_tokens`: of every answer, or of each."""
    lengths = new_tokens if isinstance(new_tokens, list) else [new_tokens] * len(prompts)
    sums.reset()
    started = time.perf_counter()
    jobs = (generate_one(prompt, length, started) for prompt, length in zip(prompts, lengths, strict=True))
    results = await asyncio.gather(*jobs)
    return {
        "times": [times for times, _ in results],
        "tokens": [tokens for _, tokens in results],
        "steps": asdict(sums),
    }


def handle(command: Answer) -> Answer:
    return loop.run_until_complete(generate(command["prompts"], command["new_tokens"]))


serve(channel, {"version": package_version("onecard"), "dtype": dtype}, handle)
loop.run_until_complete(node.stop())
