"""The right answers: each question asked once while nothing else runs."""

from dataclasses import dataclass
from random import Random
from typing import Any

from soaking.asking import Asker, BrokenAnswerError
from soaking.questions import KINDS, NEAR_TIE, Question, Reply, draw


@dataclass(frozen=True)
class Known:
    """A question and its lone greedy answer."""

    question: Question
    reply: Reply


async def take(asker: Asker, chat: str, embedder: str, count: int, random: Random) -> list[Known]:
    """`count` questions that have one right answer."""
    known: list[Known] = []
    while len(known) < count:
        question = draw(random, KINDS[len(known) % len(KINDS)])
        model = embedder if question.kind == "embedding" else chat
        outcome = await asker.ask(question, model)
        if outcome.reply is None:
            raise BrokenAnswerError(f"{question} asked alone: {outcome.status} {outcome.message}")
        if question.kind == "embedding" or not await _has_near_tie(asker, question, chat):
            known.append(Known(question, outcome.reply))
    return known


async def _has_near_tie(asker: Asker, question: Question, chat: str) -> bool:
    wanted: dict[str, Any] = {"logprobs": 2}
    if question.kind == "chat":
        wanted = {"logprobs": True, "top_logprobs": 2}
    status, content = await asker.content(question, chat, wanted)
    if status != 200:
        raise BrokenAnswerError(f"{question} asked with logprobs: {status} {content}")
    gaps = []
    for choice in content["choices"]:
        logprobs = choice["logprobs"]
        if question.kind == "chat":
            pairs = [[top["logprob"] for top in entry["top_logprobs"]] for entry in logprobs["content"]]
        else:
            pairs = [list(top.values()) for top in logprobs["top_logprobs"]]
        gaps += [pair[0] - pair[1] for pair in map(_falling, pairs) if len(pair) > 1]
    return bool(gaps) and min(gaps) < NEAR_TIE


def _falling(values: list[float]) -> list[float]:
    return sorted(values, reverse=True)
