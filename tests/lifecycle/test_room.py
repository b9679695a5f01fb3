from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onecard.engines.lifecycle.room import NoRoomError, Room, Tenant, make_room
from onecard.engines.memory.homes import can_be_awake, overlaps


def tenant(name: str, first: int, pages: int, floor: int = 0, awake: bool = True, **more: object) -> Tenant:
    return Tenant(name, range(first, first + pages), floor, awake, **more)


def test_nobody_sleeps_where_there_is_room():
    assert make_room([tenant("a", 0, 4), tenant("b", 4, 4, awake=False)], "b", 10) == Room()


def test_whoever_lies_in_the_way_sleeps_and_busy_ones_are_named():
    tenants = [
        tenant("a", 0, 4, idle=False),
        tenant("c", 4, 2),
        tenant("d", 6, 2),
        tenant("b", 2, 4, awake=False),
    ]
    assert make_room(tenants, "b", 10) == Room(("c", "a"), ("a",))


def test_for_its_floor_the_least_recently_used_idle_one_sleeps():
    tenants = [
        tenant("old", 0, 2, floor=2, last_used=1.0, idle=False),
        tenant("older_idle", 2, 2, floor=2, last_used=2.0),
        tenant("newer_idle", 4, 2, floor=2, last_used=3.0),
        tenant("new", 6, 2, floor=2, awake=False),
    ]
    assert make_room(tenants, "new", 14).sleepers == ("older_idle",)
    assert make_room(tenants, "new", 8).sleepers == ("older_idle", "newer_idle")
    assert make_room(tenants, "new", 6).sleepers == ("older_idle", "newer_idle", "old")


def test_for_the_longest_request_of_whoever_is_awake_then_the_least_recently_used_idle_one_sleeps():
    """Of any of them: else a model that woke up would leave another one unable to serve."""
    for whose in ("old", "older_idle", "newer_idle", "new"):
        tenants = [
            tenant("old", 0, 2, last_used=1.0, idle=False),
            tenant("older_idle", 2, 2, last_used=2.0),
            tenant("newer_idle", 4, 2, last_used=3.0),
            tenant("new", 6, 2, awake=False),
        ]
        tenants = [replace(t, longest_pages=3) if t.name == whose else t for t in tenants]
        assert make_room(tenants, "new", 11) == Room()
        assert make_room(tenants, "new", 10).sleepers == ("older_idle",)
        alone = ("older_idle",) if whose == "older_idle" else ("older_idle", "newer_idle")
        assert make_room(tenants, "new", 8).sleepers == alone


def test_a_floor_and_another_models_longest_request_may_take_the_same_pages():
    tenants = [
        tenant("a", 0, 4, floor=2, longest_pages=4),
        tenant("b", 4, 4, floor=2, awake=False, longest_pages=3),
    ]
    assert make_room(tenants, "b", 12) == Room()
    assert make_room(tenants, "b", 11) == Room(("a",))


def test_pinned_models_are_left_alone():
    with pytest.raises(NoRoomError, match="never sleep, lie where b's belong"):
        make_room([tenant("a", 0, 4, pinned=True), tenant("b", 2, 4, awake=False)], "b", 10)
    for promise in ({"floor": 4}, {"longest_pages": 4}):
        with pytest.raises(NoRoomError, match="promised 12 pages of 10"):
            make_room([tenant("a", 0, 4, pinned=True, **promise), tenant("b", 4, 4, awake=False)], "b", 10)


tenants_of_a_card = st.lists(
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
).map(lambda rows: [Tenant(str(i), range(f, f + n), *rest) for i, (f, n, *rest) in enumerate(rows)])


@given(tenants_of_a_card)
def test_after_making_room_all_that_is_promised_can_be_kept(tenants: list[Tenant]):
    awake = [t for t in tenants[1:] if t.awake]
    assume(can_be_awake([t.resident for t in awake], 20))
    try:
        room = make_room(tenants, "0", 20)
    except NoRoomError:
        pinned = [t for t in awake if t.pinned]
        residents = [t.resident for t in (tenants[0], *pinned)]
        assert any(overlaps(t.home, tenants[0].home) for t in pinned) or not can_be_awake(residents, 20)
        return
    asleep = set(room.sleepers)
    assert not any(t.pinned for t in awake if t.name in asleep)
    assert set(room.busy) == {t.name for t in awake if t.name in asleep and not t.idle}
    left = [tenants[0], *(t for t in awake if t.name not in asleep)]
    assert can_be_awake([t.resident for t in left], 20)
