"""Every size of step once: oneDNN compiles a kernel for each number of rows that it meets, and keeps it.

That memory has a bound, but a load as mixed as the soak's takes a quarter of an hour to reach it, and a leak
of that pace would look the same. So the sizes come first, and what grows afterwards is nobody's cache.
"""

from collections.abc import Mapping
from typing import Any

from soaking.asking import Asker, BrokenAnswerError
from soaking.questions import Question

from onecard.engines.layers.linear_methods import padded_rows

WORD_TOKEN = 1200
"""And those after it: ordinary words in both vocabularies."""

MOST_TEXT_TOKENS = 250


async def visit_chat(asker: Asker, model: str, limits: Mapping[str, Any]) -> None:
    """Steps of as many tokens, and decodes of as many sequences, as `limits` allow. Nothing else may run."""
    for rows in sizes(limits["max_num_batched_tokens"]):
        prompt = [WORD_TOKEN + rows] * rows  # another beginning each time: nothing of it is cached
        await _ask(asker, Question("completion", {"prompt": prompt, "max_tokens": 1}), model)
    for seqs in range(1, limits["max_num_seqs"] + 1):
        body = {"prompt": [WORD_TOKEN - seqs] * 4, "max_tokens": 4, "n": seqs, "temperature": 1.0}
        await _ask(asker, Question("completion", body), model)


async def visit_embedder(asker: Asker, model: str, limits: Mapping[str, Any]) -> None:
    """Steps of as many tokens as `limits` allow: many texts come in one request. Nothing else may run."""
    for rows in sizes(limits["max_num_batched_tokens"]):
        await _ask(asker, Question("embedding", {"input": _texts(rows)}), model)


def sizes(most_rows: int) -> list[int]:
    """The numbers of rows that any step of up to `most_rows` is padded to."""
    return sorted({min(padded_rows(rows), most_rows) for rows in range(1, most_rows + 1)})


def _texts(tokens: int) -> list[list[int]]:
    full, rest = divmod(tokens, MOST_TEXT_TOKENS)
    return [[WORD_TOKEN] * n for n in [*[MOST_TEXT_TOKENS] * full, rest] if n]


async def _ask(asker: Asker, question: Question, model: str) -> None:
    status, content = await asker.content(question, model, {})
    if status != 200:
        raise BrokenAnswerError(f"{question} of {model}: {status} {content}")
