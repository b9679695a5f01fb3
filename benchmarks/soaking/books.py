"""Nothing runs: is every page where it belongs?"""

import asyncio
import time

from soaking.asking import Asker, BrokenAnswerError
from soaking.tally import Tally

PATIENCE_SECONDS = 60.0
AT_REST = ("ready", "asleep", "unloaded")


async def check_books(asker: Asker, tally: Tally) -> None:
    """Waits until the server says that nothing runs and nobody moves, then adds up its pages."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    wrong = ["nobody has looked"]
    while wrong and time.monotonic() < deadline:
        try:
            wrong = await _wrong(asker)
        except BrokenAnswerError as error:
            wrong = [str(error)]
        await asyncio.sleep(0.1)
    for sentence in wrong:
        tally.problem(f"{PATIENCE_SECONDS:.0f} s after the last request: {sentence}")


async def _wrong(asker: Asker) -> list[str]:
    """A look may fall between two steps of a sleep or a wake: what is wrong must stay so to count."""
    status = await asker.look("/admin/status")
    wrong = [
        f"{model['name']} has {model['running']} running and {model['waiting']} waiting"
        for model in status["models"]
        if model["running"] or model["waiting"]
    ]
    for card in (await asker.look("/admin/pool"))["cards"]:
        models = card["models"]
        homes = sum(model["home_pages"] for model in models if model["state"] == "ready")
        owned = sum(model["owned_pages"] for model in models)
        if card["free_pages"] + homes + owned != card["num_pages"]:
            wrong.append(
                f"{card['num_pages']} pages, but {card['free_pages']} are free, {homes} homes, {owned} owned"
            )
        for model in models:
            if model["active_pages"]:
                wrong.append(f"{model['name']} has {model['active_pages']} active pages")
            if model["owned_pages"] != model["active_pages"] + model["cached_pages"] + model["idle_pages"]:
                wrong.append(f"{model['name']}'s pages don't add up: {model}")
            if model["state"] not in AT_REST:
                wrong.append(f"{model['name']} is {model['state']}")
    return wrong


async def count_moves(asker: Asker, tally: Tally) -> None:
    """How often memory has changed hands since the server began."""
    for card in (await asker.look("/admin/pool"))["cards"]:
        tally.counts["pages recalled"] += sum(card["recalls"].values())
        for cause, times in card["preemptions"].items():
            tally.counts[f"preemptions: {cause}"] += times
