"""What tests ask of a node, and how its models are."""

from typing import Any

from onecard.engines.api import EmbedRequest, GenerateRequest, SamplingParams

PROMPT = "The capital of France is"


async def ask(node: Any, name: str, prompt: str = PROMPT, tokens: int = 12) -> str:
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens)
    stream = await node.engine(name).generate(GenerateRequest("r", prompt, sampling))
    return "".join([chunk.text async for chunk in stream])


async def embed(node: Any, text: str = "a cat") -> list[float]:
    result = await node.engine("minilm").embed(EmbedRequest("e", (text,)))
    return result.vectors[0].tolist()


def states(live: Any) -> dict[str, str]:
    return {model.name: model.state for model in live.node.status().models}
