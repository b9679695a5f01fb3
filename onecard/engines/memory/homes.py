"""Where the weights of each model lie in a card's arena: pure arithmetic on pages, no torch.

A *home* is a run of consecutive pages at a fixed place. An awake model's home is its own; a sleeping model's
pages are lent like any others. So homes of models that needn't be awake together may overlap, and a card
serves more models than it holds:

    pages   0                                                         num_pages
            | pinned | awake at start |      (KV)      |   sleeping   |
                     |       sleeping, too large elsewhere      |
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onecard.engines.memory.card_plan import ModelPlan, PlanError
from onecard.registry.units import counted

ALIGNMENT = 256
"""Every weight begins at a multiple of so many bytes: what kernels' vector loads and libraries ask for."""


@dataclass(frozen=True)
class Resident:
    """A model as the arithmetic on a card's pages, and the decisions over them, see it.

    `home`: where its weights lie; of a model that has no place yet only the length counts. `awake`: the home
    is its own, now or when serving begins; it has its place for as long, whatever else it does. A `pinned`
    model never sleeps.
    """

    name: str
    home: range
    awake: bool = True
    pinned: bool = False
    floor_pages: int = 0
    """Of KV, guaranteed while it is awake."""
    longest_pages: int = 0
    """Of KV, what its longest request takes."""
    idle: bool = True
    """Nothing of it runs, waits, or is on its way, as far as can be seen from outside."""
    quiet: bool = True
    """The card's loop has said that nothing of it runs or waits, and nobody has been let in since."""
    last_used: float = 0.0
    """Seconds; larger is later."""
    failed: bool = False
    """It serves nobody any more; its place is its own until it is cleared away."""


def pages_for(nbytes: int, page_bytes: int) -> int:
    """Pages of a home for weights of `nbytes`, wherever in the arena it begins."""
    misaligned = ALIGNMENT - 1 if nbytes and page_bytes % ALIGNMENT else 0
    return -(-(nbytes + misaligned) // page_bytes)


def place_homes(wanted: Sequence[Resident], num_pages: int) -> dict[str, range]:
    """A home for each model, in an arena of `num_pages`.

    Pinned models come first, from page 0 up, then those that are awake at start: none of these overlap. The
    others, largest first, follow while there is room. What is left over takes the place where it
    displaces least: never a pinned home; else where the fewest models that are awake at start have theirs,
    then the fewest models at all, then the fewest of their pages, then the lowest place. Those are the
    models that must sleep so that this one can be awake.

    Raises `PlanError` where a model fits nowhere.
    """
    first = [model for model in wanted if model.pinned or model.awake]
    homes: dict[str, range] = {}
    end = 0
    for model in sorted(first, key=lambda model: not model.pinned):
        homes[model.name] = range(end, end + len(model.home))
        end += len(model.home)
    if end > num_pages:
        raise PlanError(f"the homes of {', '.join(homes)} take {counted(end, 'page')} of {num_pages}")
    pinned = sum(len(model.home) for model in wanted if model.pinned)
    never = [homes[model.name] for model in wanted if model.pinned]
    awake = set(homes)
    for model in sorted((m for m in wanted if m not in first), key=lambda model: -len(model.home)):
        pages = len(model.home)
        if pages > num_pages - pinned:
            raise PlanError(
                f"the home of {model.name} takes {counted(pages, 'page')}; {num_pages} less {pinned} of "
                "pinned models are left"
            )
        start = end if end + pages <= num_pages else _cheapest_start(pages, homes, awake, never, num_pages)
        assert start is not None, "pinned homes lie side by side"
        homes[model.name] = range(start, start + pages)
        end = max(end, start + pages)
    return homes


def place_beside(
    settled: Collection[Resident], wanted: Sequence[Resident], num_pages: int
) -> dict[str, range]:
    """Homes for models that come to a card where others have theirs, which stay where they are.

    Pinned models come first, and overlap nobody; then those that will be awake, and the largest. Each takes
    the place where it displaces least, as in `place_homes`. Raises `PlanError` where a model fits nowhere.
    """
    homes = {model.name: model.home for model in settled}
    awake = {model.name for model in settled if model.awake or model.pinned}
    never = [model.home for model in settled if model.pinned]
    placed: dict[str, range] = {}
    for model in sorted(wanted, key=lambda m: (not m.pinned, not (m.pinned or m.awake), -len(m.home))):
        pages = len(model.home)
        taken = list(homes.values()) if model.pinned else never
        start = _cheapest_start(pages, homes, awake, taken, num_pages)
        if start is None:
            kept = "any other model's home" if model.pinned else "pinned homes"
            raise PlanError(
                f"the home of {model.name} takes {counted(pages, 'page')} in a row, and nowhere in the "
                f"{num_pages} pages are as many beside {kept}"
            )
        homes[model.name] = placed[model.name] = range(start, start + pages)
        if model.awake or model.pinned:
            awake.add(model.name)
        if model.pinned:
            never.append(homes[model.name])
    return placed


def promised_pages(residents: Collection[Resident | ModelPlan]) -> int:
    """Pages that these models need to be awake at once: their homes, and beside them all floors at a time, or
    the longest request of any of them alone."""
    floors = sum(r.floor_pages for r in residents)
    longest = max((r.longest_pages for r in residents), default=0)
    return sum(len(r.home) for r in residents) + max(floors, longest)


def can_be_awake(residents: Collection[Resident | ModelPlan], num_pages: int) -> bool:
    """Whether these models can be awake at once with all that they are promised."""
    homes = sorted((r.home for r in residents if r.home), key=lambda home: home.start)
    apart = all(a.stop <= b.start for a, b in pairwise(homes))
    return apart and promised_pages(residents) <= num_pages


def overlaps(a: range, b: range) -> int:
    """Pages that two homes have in common."""
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _cheapest_start(
    pages: int, homes: Mapping[str, range], awake: set[str], taken: Collection[range], num_pages: int
) -> int | None:
    """The best place for a home that may overlap others, but none of `taken`; the best one touches another's
    edge. None: there is none."""
    highest = num_pages - pages
    edges = {0, highest}
    for home in homes.values():
        edges |= {home.stop, home.start - pages}

    def is_open(start: int) -> bool:
        home = range(start, start + pages)
        return 0 <= start <= highest and not any(overlaps(home, other) for other in taken)

    def displaced(start: int) -> tuple[int, int, int, int]:
        shared = {name: overlaps(range(start, start + pages), home) for name, home in homes.items()}
        touched = [name for name, common in shared.items() if common]
        return len(awake.intersection(touched)), len(touched), sum(shared.values()), start

    return min(filter(is_open, edges), key=displaced, default=None)
