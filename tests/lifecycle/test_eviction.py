from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onecard.engines.lifecycle.eviction import PinnedInTheWayError, make_room
from onecard.engines.memory.homes import Resident, can_be_awake, overlaps


def model(name: str, first: int, pages: int, floor: int = 0, awake: bool = True, **more: object) -> Resident:
    return Resident(name, range(first, first + pages), awake, floor_pages=floor, **more)


def test_nobody_sleeps_where_there_is_room():
    assert make_room([model("a", 0, 4), model("b", 4, 4, awake=False)], "b", 10) == []


def test_whoever_lies_in_the_way_sleeps_idle_ones_first():
    models = [
        model("a", 0, 4, idle=False),
        model("c", 4, 2),
        model("d", 6, 2),
        model("b", 2, 4, awake=False),
    ]
    assert make_room(models, "b", 10) == ["c", "a"]


def test_for_its_floor_the_least_recently_used_idle_one_sleeps():
    models = [
        model("old", 0, 2, floor=2, last_used=1.0, idle=False),
        model("older_idle", 2, 2, floor=2, last_used=2.0),
        model("newer_idle", 4, 2, floor=2, last_used=3.0),
        model("new", 6, 2, floor=2, awake=False),
    ]
    assert make_room(models, "new", 14) == ["older_idle"]
    assert make_room(models, "new", 8) == ["older_idle", "newer_idle"]
    assert make_room(models, "new", 6) == ["older_idle", "newer_idle", "old"]


def test_for_the_longest_request_of_whoever_is_awake_then_the_least_recently_used_idle_one_sleeps():
    """Of any of them: else a model that woke up would leave another one unable to serve."""
    for whose in ("old", "older_idle", "newer_idle", "new"):
        models = [
            model("old", 0, 2, last_used=1.0, idle=False),
            model("older_idle", 2, 2, last_used=2.0),
            model("newer_idle", 4, 2, last_used=3.0),
            model("new", 6, 2, awake=False),
        ]
        models = [replace(t, longest_pages=3) if t.name == whose else t for t in models]
        assert make_room(models, "new", 11) == []
        assert make_room(models, "new", 10) == ["older_idle"]
        alone = ["older_idle"] if whose == "older_idle" else ["older_idle", "newer_idle"]
        assert make_room(models, "new", 8) == alone


def test_a_floor_and_another_models_longest_request_may_take_the_same_pages():
    models = [
        model("a", 0, 4, floor=2, longest_pages=4),
        model("b", 4, 4, floor=2, awake=False, longest_pages=3),
    ]
    assert make_room(models, "b", 12) == []
    assert make_room(models, "b", 11) == ["a"]


def test_pinned_models_are_left_alone():
    with pytest.raises(PinnedInTheWayError, match="never sleep, lie where b's belong"):
        make_room([model("a", 0, 4, pinned=True), model("b", 2, 4, awake=False)], "b", 10)
    for promise in ({"floor": 4}, {"longest_pages": 4}):
        with pytest.raises(PinnedInTheWayError, match="promised 12 pages of 10"):
            make_room([model("a", 0, 4, pinned=True, **promise), model("b", 4, 4, awake=False)], "b", 10)


models_of_a_card = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.integers(0, 8),
        st.integers(0, 6),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.floats(0, 9),
        st.integers(0, 6),
    ),
    min_size=1,
    max_size=6,
).map(
    lambda rows: [
        Resident(
            str(i),
            range(first, first + pages),
            awake,
            pinned,
            floor_pages=floor,
            longest_pages=longest,
            idle=idle,
            last_used=last_used,
        )
        for i, (first, pages, floor, awake, pinned, idle, last_used, longest) in enumerate(rows)
    ]
)


@given(models_of_a_card)
def test_after_making_room_all_that_is_promised_can_be_kept(models: list[Resident]):
    awake = [t for t in models[1:] if t.awake]
    assume(can_be_awake(awake, 20))
    try:
        sleepers = make_room(models, "0", 20)
    except PinnedInTheWayError:
        pinned = [t for t in awake if t.pinned]
        residents = [models[0], *pinned]
        assert any(overlaps(t.home, models[0].home) for t in pinned) or not can_be_awake(residents, 20)
        return
    asleep = set(sleepers)
    assert not any(t.pinned for t in awake if t.name in asleep)
    left = [models[0], *(t for t in awake if t.name not in asleep)]
    assert can_be_awake(left, 20)
