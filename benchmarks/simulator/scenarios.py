"""Which models share a card, how its memory is divided, and what they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onecard.engines.memory.page_pool import PagePool
from onecard.engines.memory.page_size import choose_page_bytes
from onecard.engines.oneshot.queue import TokenBudgetQueue
from onecard.engines.paged.scheduler import SchedulerLimits
from simulator.card_loop import simulate
from simulator.cards import BGE_M3, LLAMA_8B, Card
from simulator.engines import Share, SimulatedEncoder, SimulatedEngine, SimulatedLLM
from simulator.results import Served
from simulator.workloads import Arrival, Lengths, bursts, chat, merged, swelling_chat

Split = Literal["elastic", "static"]

BUDGET_SHARE = 0.93
"""Of the card, as kvcached's three instances of 0.31 have it."""
WORKSPACE_BYTES = 3e9
BLOCK_SIZE = 16
LLAMAS = ("llama-1", "llama-2", "llama-3")
FLOOR_SHARE = 0.5
"""Of an even part of the arena: what each model is guaranteed where memory is elastic."""
LIMITS = SchedulerLimits(max_num_seqs=1024, max_num_batched_tokens=8192)


@dataclass(frozen=True)
class Outcome:
    served: list[Served]
    preempted_tokens: int
    seconds: float


def shares(pool: PagePool, engines: int, split: Split) -> Share:
    """The part of each of `engines` equal ones."""
    part = pool.num_pages // engines
    return Share(part, part) if split == "static" else Share(int(FLOOR_SHARE * part), pool.num_pages)


def arena(card: Card, weight_bytes: float) -> PagePool:
    """What is left of the card for KV; the clock of cached pages counts uses."""
    room = int(BUDGET_SHARE * card.memory - weight_bytes - WORKSPACE_BYTES)
    page = choose_page_bytes([BLOCK_SIZE * LLAMA_8B.kv_bytes], room)
    ticks = iter(range(1 << 62))
    return PagePool(room // page, page, clock=lambda: next(ticks))


def language_models(card: Card, pool: PagePool, names: Sequence[str], split: Split) -> list[SimulatedEngine]:
    share, block = shares(pool, len(names), split), BLOCK_SIZE * LLAMA_8B.kv_bytes
    seconds = card.step_seconds(LLAMA_8B)
    return [SimulatedLLM(name, pool, share, block, seconds, LIMITS) for name in names]


def encoder(card: Card, name: str) -> SimulatedEncoder:
    return SimulatedEncoder(name, card.step_seconds(BGE_M3), TokenBudgetQueue(16384, 512))


def run(engines: Sequence[SimulatedEngine], arrivals: Sequence[Arrival], quantum: float | None) -> Outcome:
    seconds = simulate(engines, arrivals, quantum)
    served = [s for engine in engines for s in engine.served]
    return Outcome(served, sum(engine.preempted_tokens for engine in engines), seconds)


def three_llamas(card: Card, split: Split, arrivals: Sequence[Arrival], quantum: float | None) -> Outcome:
    """Three Llama-3.1-8B on one card, as kvcached serves them."""
    pool = arena(card, 3 * LLAMA_8B.weight_bytes)
    return run(language_models(card, pool, LLAMAS, split), arrivals, quantum)


def mixed_arrivals(seconds: float, rate: float, seed: int = 0) -> list[Arrival]:
    """Three chats, one of which swells now and then, an index being built, searches being reranked.

    `rate`: requests a second of the busiest chat, which in its swells has five times as many.
    """
    return merged(
        swelling_chat("assistant", rate, seconds, seed, Lengths(200, 500)),
        chat("drafts", rate / 2, seconds, seed, Lengths(300, 300)),
        chat("coder", rate / 8, seconds, seed, Lengths(2000, 400)),
        bursts("embedder", 10.0, seconds, seed, requests=30, texts=32, text_tokens=300),
        bursts("reranker", 2.0, seconds, seed, requests=1, texts=100, text_tokens=180),
    )


def mixed(card: Card, split: Split, arrivals: Sequence[Arrival], quantum: float | None) -> Outcome:
    """Three language models, an embedding model and a reranker, whatever of it `arrivals` ask for."""
    names = ("assistant", "drafts", "coder")
    pool = arena(card, 3 * LLAMA_8B.weight_bytes + 2 * BGE_M3.weight_bytes)
    engines = language_models(card, pool, names, split)
    return run([*engines, encoder(card, "embedder"), encoder(card, "reranker")], arrivals, quantum)
