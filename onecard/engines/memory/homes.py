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

from onecard.engines.memory.card_plan import PlanError

ALIGNMENT = 256
"""Every weight begins at a multiple of so many bytes: what kernels' vector loads and libraries ask for."""


@dataclass(frozen=True)
class HomeNeed:
    """A model that wants a home of `pages`. A `pinned` one never sleeps."""

    name: str
    pages: int
    awake_at_start: bool
    pinned: bool = False

    @property
    def first(self) -> bool:
        """Whether its home must be free of others when serving begins."""
        return self.pinned or self.awake_at_start


@dataclass(frozen=True)
class Resident:
    """An awake model: the pages of its home, those of KV that its floor guarantees, and those that its
    longest request takes."""

    home: range
    floor_pages: int
    longest_pages: int = 0


def pages_for(nbytes: int, page_bytes: int) -> int:
    """Pages of a home for weights of `nbytes`, wherever in the arena it begins."""
    misaligned = ALIGNMENT - 1 if nbytes and page_bytes % ALIGNMENT else 0
    return -(-(nbytes + misaligned) // page_bytes)


def place_homes(wanted: Sequence[HomeNeed], num_pages: int) -> dict[str, range]:
    """A home for each model, in an arena of `num_pages`.

    Pinned models come first, from page 0 up, then those that are awake at start: none of these overlap. The
    others, largest first, follow while there is room. What is left over takes the place where it
    displaces least: never a pinned home; else where the fewest models that are awake at start have theirs,
    then the fewest models at all, then the fewest of their pages, then the lowest place. Those are the
    models that must sleep so that this one can be awake.

    Raises `PlanError` where a model fits nowhere.
    """
    homes: dict[str, range] = {}
    end = 0
    for need in sorted((need for need in wanted if need.first), key=lambda need: not need.pinned):
        homes[need.name] = range(end, end + need.pages)
        end += need.pages
    if end > num_pages:
        raise PlanError(f"the homes of {', '.join(homes)} take {end} pages of {num_pages}")
    pinned = sum(need.pages for need in wanted if need.pinned)
    never = [homes[need.name] for need in wanted if need.pinned]
    awake = set(homes)
    for need in sorted((need for need in wanted if not need.first), key=lambda need: -need.pages):
        if need.pages > num_pages - pinned:
            raise PlanError(
                f"the home of {need.name} takes {need.pages} pages; {num_pages} less {pinned} of pinned "
                "models are left"
            )
        start = end if end + need.pages <= num_pages else None
        if start is None:
            start = _cheapest_start(need, homes, awake, never, num_pages)
        assert start is not None, "pinned homes lie side by side"
        homes[need.name] = range(start, start + need.pages)
        end = max(end, start + need.pages)
    return homes


@dataclass(frozen=True)
class Settled:
    """A model that has its home already. `awake`: now."""

    home: range
    awake: bool
    pinned: bool = False


def place_beside(
    settled: Mapping[str, Settled], wanted: Sequence[HomeNeed], num_pages: int
) -> dict[str, range]:
    """Homes for models that come to a card where others have theirs, which stay where they are.

    Pinned models come first, and overlap nobody; then those that will be awake, and the largest. Each takes
    the place where it displaces least, as in `place_homes`. Raises `PlanError` where a model fits nowhere.
    """
    homes = {name: model.home for name, model in settled.items()}
    awake = {name for name, model in settled.items() if model.awake or model.pinned}
    never = [model.home for model in settled.values() if model.pinned]
    placed: dict[str, range] = {}
    for need in sorted(wanted, key=lambda need: (not need.pinned, not need.first, -need.pages)):
        taken = list(homes.values()) if need.pinned else never
        start = _cheapest_start(need, homes, awake, taken, num_pages)
        if start is None:
            kept = "any other model's home" if need.pinned else "pinned homes"
            raise PlanError(
                f"the home of {need.name} takes {need.pages} pages in a row, and nowhere in the {num_pages} "
                f"pages are as many beside {kept}"
            )
        homes[need.name] = placed[need.name] = range(start, start + need.pages)
        if need.first:
            awake.add(need.name)
        if need.pinned:
            never.append(homes[need.name])
    return placed


def promised_pages(residents: Collection[Resident]) -> int:
    """Pages that these models need to be awake at once: their homes, and beside them all floors at a time, or
    the longest request of any of them alone."""
    floors = sum(r.floor_pages for r in residents)
    longest = max((r.longest_pages for r in residents), default=0)
    return sum(len(r.home) for r in residents) + max(floors, longest)


def can_be_awake(residents: Collection[Resident], num_pages: int) -> bool:
    """Whether these models can be awake at once with all that they are promised."""
    homes = sorted((r.home for r in residents if r.home), key=lambda home: home.start)
    apart = all(a.stop <= b.start for a, b in pairwise(homes))
    return apart and promised_pages(residents) <= num_pages


def overlaps(a: range, b: range) -> int:
    """Pages that two homes have in common."""
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _cheapest_start(
    need: HomeNeed, homes: Mapping[str, range], awake: set[str], taken: Collection[range], num_pages: int
) -> int | None:
    """The best place for a home that may overlap others, but none of `taken`; the best one touches another's
    edge. None: there is none."""
    highest = num_pages - need.pages
    edges = {0, highest}
    for home in homes.values():
        edges |= {home.stop, home.start - need.pages}

    def is_open(start: int) -> bool:
        home = range(start, start + need.pages)
        return 0 <= start <= highest and not any(overlaps(home, other) for other in taken)

    def displaced(start: int) -> tuple[int, int, int, int]:
        shared = {name: overlaps(range(start, start + need.pages), home) for name, home in homes.items()}
        touched = [name for name, pages in shared.items() if pages]
        return len(awake.intersection(touched)), len(touched), sum(shared.values()), start

    return min(filter(is_open, edges), key=displaced, default=None)
