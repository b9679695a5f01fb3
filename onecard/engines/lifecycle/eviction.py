"""Who has to sleep so that a model can be awake: pure, over a card's models as they are at the moment."""

from collections.abc import Collection, Iterable

from onecard.engines.memory.homes import Resident, can_be_awake, overlaps, promised_pages
from onecard.registry.units import counted


class PinnedInTheWayError(Exception):
    """The model can't be awake beside those that never sleep."""


def make_room(models: Collection[Resident], wanted: str, num_pages: int) -> list[str]:
    """Who sleeps so that `wanted`'s home is free, all floors hold, and whoever is awake then has room for its
    longest request.

    First whoever's home lies in the way; then, until the rest fits, the idle ones before the busy ones, the
    least recently used first. Raises `PinnedInTheWayError`.
    """
    newcomer = next(model for model in models if model.name == wanted)
    awake = [model for model in models if model.awake and model is not newcomer]
    in_the_way = [model for model in awake if overlaps(model.home, newcomer.home)]
    if stuck := [model.name for model in in_the_way if model.pinned]:
        raise PinnedInTheWayError(
            f"the weights of {', '.join(stuck)}, which never sleep, lie where {wanted}'s belong"
        )
    staying = [model for model in awake if model not in in_the_way]
    sleepers = _in_order(in_the_way)
    candidates = _in_order(model for model in staying if not model.pinned)
    while not can_be_awake(together := [newcomer, *staying], num_pages):
        if not candidates:
            raise PinnedInTheWayError(
                f"{wanted} and the models that never sleep are promised "
                f"{counted(promised_pages(together), 'page')} of {num_pages}"
            )
        sleepers.append(candidates.pop(0))
        staying.remove(sleepers[-1])
    return [model.name for model in sleepers]


def _in_order(models: Iterable[Resident]) -> list[Resident]:
    return sorted(models, key=lambda model: (not model.idle, model.last_used, model.name))
