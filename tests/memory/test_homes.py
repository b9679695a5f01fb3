"""Where homes lie, and which models can be awake together."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.memory.homes import (
    ALIGNMENT,
    PlanError,
    Resident,
    can_be_awake,
    overlaps,
    pages_for,
    place_homes,
)


def asleep(name: str, pages: int) -> Resident:
    return Resident(name, range(pages), awake=False)


def awake(name: str, pages: int, pinned: bool = False) -> Resident:
    return Resident(name, range(pages), pinned=pinned)


def test_pinned_then_awake_then_sleeping_from_page_0_up():
    homes = place_homes([asleep("s", 2), awake("a", 3), awake("p", 4, pinned=True), asleep("l", 5)], 20)
    assert homes == {"p": range(4), "a": range(4, 7), "l": range(7, 12), "s": range(12, 14)}


def test_who_fits_nowhere_else_overlaps_a_sleeping_model():
    homes = place_homes([awake("a", 4), asleep("b", 4), asleep("c", 3)], 10)
    assert homes == {"a": range(4), "b": range(4, 8), "c": range(7, 10)}, "one page of b, the least"


def test_a_model_that_is_awake_at_start_is_displaced_last():
    homes = place_homes([awake("a", 4), asleep("b", 3), asleep("c", 3), asleep("d", 3)], 10)
    assert homes["d"].start >= 4
    assert place_homes([awake("a", 6), asleep("b", 5)], 10)["b"] == range(5, 10)


def test_never_a_pinned_one():
    assert place_homes([awake("p", 6, pinned=True), awake("a", 2), asleep("b", 4)], 10)["b"] == range(6, 10)
    with pytest.raises(PlanError, match="home of b takes 5 pages; 10 less 6 of pinned models are left"):
        place_homes([awake("p", 6, pinned=True), asleep("b", 5)], 10)


def test_what_is_awake_at_start_must_fit_together():
    with pytest.raises(PlanError, match="the homes of p, a take 11 pages of 10"):
        place_homes([awake("a", 5), awake("p", 6, pinned=True)], 10)


def test_pinned_means_awake():
    with pytest.raises(PlanError, match="the homes of p, a take 5 pages of 4"):
        place_homes([awake("a", 2), Resident("p", range(3), awake=False, pinned=True)], 4)


needs = st.lists(
    st.tuples(st.integers(0, 12), st.booleans(), st.sampled_from([True, False, False, False])), max_size=8
).map(lambda specs: [Resident(f"m{i}", range(pages), *spec) for i, (pages, *spec) in enumerate(specs)])


@given(needs, st.integers(1, 40))
def test_placement(wanted: list[Resident], num_pages: int) -> None:
    pinned = sum(len(need.home) for need in wanted if need.pinned)
    possible = sum(len(need.home) for need in wanted if (need.pinned or need.awake)) <= num_pages and all(
        len(need.home) <= num_pages - pinned for need in wanted if not (need.pinned or need.awake)
    )
    if not possible:
        with pytest.raises(PlanError):
            place_homes(wanted, num_pages)
        return
    homes = place_homes(wanted, num_pages)
    assert homes.keys() == {need.name for need in wanted}
    assert all(len(homes[need.name]) == len(need.home) for need in wanted)
    assert all(0 <= home.start <= home.stop <= num_pages for home in homes.values())
    for a, b in combinations(wanted, 2):
        if a.pinned or b.pinned or (a.awake and b.awake):
            assert not overlaps(homes[a.name], homes[b.name])
    if sum(len(need.home) for need in wanted) <= num_pages:
        assert not any(overlaps(a, b) for a, b in combinations(homes.values(), 2)), "there was room for all"


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(0, 3), st.integers(0, 6)), max_size=5
    )
)
def test_who_can_be_awake(specs: list[tuple[int, int, int, int]]) -> None:
    """Beside the homes all floors have room, and, at another time, each one's longest request."""
    residents = [
        Resident(str(i), range(first, first + pages), floor_pages=floor, longest_pages=longest)
        for i, (first, pages, floor, longest) in enumerate(specs)
    ]
    pages = [page for resident in residents for page in resident.home]
    left = 13 - len(pages)
    fits = len(set(pages)) == len(pages) and sum(r.floor_pages for r in residents) <= left
    assert can_be_awake(residents, 13) == (fits and all(r.longest_pages <= left for r in residents))


@given(st.integers(0, 10_000), st.integers(1, 3_000), st.integers(0, 20))
def test_a_home_holds_its_bytes_wherever_it_begins(nbytes: int, page_bytes: int, first: int) -> None:
    start = -(-first * page_bytes // ALIGNMENT) * ALIGNMENT
    pages = pages_for(nbytes, page_bytes)
    assert start + nbytes <= (first + pages) * page_bytes or not nbytes
    assert pages_for(nbytes, 4096) == -(-nbytes // 4096)
