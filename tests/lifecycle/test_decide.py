"""Who sleeps for whom, who waits, who passes: decided without threads, clocks or weights."""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from onecard.engines.lifecycle.decide import decide, reason
from onecard.engines.lifecycle.table import Ask, Effect, Event, Table
from onecard.engines.memory.homes import Resident, can_be_awake


class Card:
    """A card on paper: does what is decided, but for what takes time, which tests bring about."""

    def __init__(self, num_pages: int, *models: Resident):
        self.table = Table(num_pages)
        self.models = {model.name: model for model in models}
        self.running: set[str] = set()
        """Models with requests."""
        self.known_quiet: set[str] = set()
        self.closed: set[str] = set()
        self.watched: set[str] = set()
        self.patient: list[Ask] = []
        self.begun: list[Ask] = []
        """Those for the card that have it, until they leave."""
        self.ended: dict[Ask, str] = {}
        self.moving: Ask | str | None = None
        """The model whose weights leave, or the ask that they come for."""
        self._events: list[Event] = []
        self._deciding = False

    # --- what happens -------------------------------------------------------------------------------------

    def ask(self, kind: str, model: str = "", **more: Any) -> Ask:
        ask = (self.table.wake_of(model) if kind == "wake" else None) or Ask(kind, model, **more)
        self.tell("asked", ask)
        return ask

    def leave(self, ask: Ask) -> None:
        if ask in self.begun:
            self.begun.remove(ask)
        self.tell("left", ask)

    def run(self, name: str) -> None:
        """Somebody is let in."""
        assert self.models[name].awake
        assert name not in self.closed
        self.running.add(name)
        self.known_quiet.discard(name)

    def finish(self, name: str) -> None:
        self.running.discard(name)
        self.answer(name)

    def answer(self, name: str) -> None:
        """The card's loop says that nothing of the model runs, if it was asked."""
        if name in self.watched and name not in self.running:
            self.watched.discard(name)
            self.known_quiet.add(name)
            self.tell("changed")

    def fail(self, name: str) -> Ask:
        """Returns the ask of whoever is to clear it away."""
        self.models[name] = replace(self.models[name], failed=True, pinned=False)
        self.running.discard(name)
        self.tell("changed")
        return self.ask("hold")

    def remove(self, name: str) -> None:
        del self.models[name]
        self.closed.discard(name)
        self.watched.discard(name)
        self.tell("changed")

    def moved(self, well: bool = True) -> None:
        """The weights are where they should be; or couldn't be brought there."""
        moving, self.moving = self.moving, None
        if isinstance(moving, str):
            self.models[moving] = replace(self.models[moving], awake=False)
            self.closed.discard(moving)
            self.known_quiet.discard(moving)
            self.tell("moved")
            return
        assert moving is not None
        model = self.models[moving.model]
        well = well and not model.failed
        self.models[model.name] = replace(model, awake=well or model.failed)
        self.tell("moved")
        self.end(moving, "" if well else "it can't be read")

    def tell(self, what: str, ask: Ask | None = None) -> list[str]:
        """What is done about it, in words."""
        self._events.append(Event(what, ask))
        done: list[Effect] = []
        while self._events and not self._deciding:
            self._deciding = True
            self.table.models = {name: self.seen(model) for name, model in self.models.items()}
            effects = decide(self.table, self._events.pop(0))
            for effect in effects:
                getattr(self, f"do_{effect.do}")(effect)
            done += effects
            self._deciding = False
        return [" ".join(filter(None, (e.do, e.model))) for e in done if e.do not in ("watch", "waking")]

    def seen(self, model: Resident) -> Resident:
        waking = self.table.wake_of(model.name)
        idle = model.name not in self.running and (waking is None or not waking.num_waiting)
        return replace(model, idle=idle, quiet=model.name in self.known_quiet)

    def end(self, ask: Ask, why: str = "") -> None:
        """All who waited go on."""
        self.ended[ask] = why
        if ask.kind == "wake" and not why and ask.num_waiting:
            self.run(ask.model)
        for _ in range(ask.num_waiting):
            self.tell("left", ask)

    # --- what is done about it ----------------------------------------------------------------------------

    def do_close(self, effect: Effect) -> None:
        model = self.models[effect.model]
        assert (model.awake, model.pinned, model.failed) == (True, False, False)
        assert model.name not in self.closed
        assert effect.ask is not None
        assert effect.ask.num_waiting, "nobody sleeps for nobody"
        self.closed.add(model.name)

    def do_reopen(self, effect: Effect) -> None:
        assert not self.models[effect.model].failed
        self.closed.remove(effect.model)

    def do_move_out(self, effect: Effect) -> None:
        model = self.models[effect.model]
        assert (self.moving, self.begun) == (None, []), "one at a time"
        assert (model.pinned, model.failed) == (False, False)
        assert model.name in self.closed - self.running
        self.moving = model.name

    def do_waking(self, effect: Effect) -> None:
        assert not self.models[effect.model].awake

    def do_watch(self, effect: Effect) -> None:
        assert effect.model in self.models
        self.watched.add(effect.model)

    def do_patience(self, effect: Effect) -> None:
        self.patient.append(effect.ask)

    def do_begin(self, effect: Effect) -> None:
        ask = effect.ask
        assert (self.moving, self.begun) == (None, []), "one at a time"
        assert ask.num_waiting, "not for nobody"
        model = self.models.get(ask.model)
        if ask.kind == "wake":
            assert not model.awake
            assert not model.failed
            self.models[model.name] = replace(model, awake=True)
            self.moving = ask
            return
        if ask.kind == "grow" and model is not None:
            self.models[model.name] = replace(model, floor_pages=ask.floor_pages)
        if ask.kind == "vacate" and model is not None:
            assert model.name not in self.running
            assert self.table.is_settled(model.name)
        self.begun.append(ask)

    def do_end(self, effect: Effect) -> None:
        ask, model = effect.ask, self.models.get(effect.model)
        assert ask is not self.moving, "what has begun is carried through"
        broken = model is None or model.failed
        if ask.kind == "wake" and ask.num_waiting and not (effect.why or broken):
            assert model.awake
            assert model.name not in self.closed
        if ask.kind == "sleep" and ask.num_waiting and not broken:
            assert not model.awake or model.name in {one.model for one in self.begun if one.kind == "vacate"}
        self.end(ask, effect.why or ("it has failed" if broken else ""))


def model(name: str, *home: int, awake: bool = False, **more: Any) -> Resident:
    return Resident(name, range(*home), awake, **more)


def two_in_one_place() -> Card:
    """`a` is awake, `b` has its home where `a` has."""
    return Card(4, model("a", 0, 3, awake=True), model("b", 0, 3))


def test_an_idle_model_makes_room_at_once():
    card = two_in_one_place()
    wake = card.ask("wake", "b")
    assert (card.moving, card.closed) == (None, {"a"})
    card.answer("a")
    assert card.moving == "a"
    card.moved()
    assert card.moving is wake
    card.moved()
    assert card.ended == {wake: ""}
    assert card.running == {"b"}
    assert card.table.at_rest


def test_a_busy_one_has_time_to_become_idle_by_itself():
    card = two_in_one_place()
    card.run("a")
    card.ask("wake", "b")
    assert not card.closed
    assert reason(card.table, "b") == "`a` is still busy with requests it has accepted"
    card.finish("a")
    assert card.moving == "a"


def test_one_that_stays_busy_is_made_to_finish():
    card = two_in_one_place()
    card.run("a")
    wake = card.ask("wake", "b")
    assert card.tell("late", wake) == ["close a"]
    assert card.moving is None
    card.finish("a")
    assert card.moving == "a"


def test_patience_that_was_another_ones_counts_for_nobody():
    card = two_in_one_place()
    card.run("a")
    first = card.ask("wake", "b")
    card.leave(first)
    second = card.ask("wake", "b")
    assert card.tell("late", first) == []
    assert card.tell("late", second) == ["close a"]


def test_all_who_want_a_model_share_one_wake_which_goes_on_when_some_leave():
    card = two_in_one_place()
    card.run("a")
    wake = card.ask("wake", "b")
    assert card.ask("wake", "b") is wake
    card.tell("late", wake)
    card.leave(wake)
    assert card.closed == {"a"}
    card.leave(wake)
    assert (card.closed, card.ended) == (set(), {wake: ""})
    assert card.table.at_rest


def test_weights_that_are_on_their_way_arrive_whoever_waits():
    card = Card(4, model("a", 0, 3))
    wake = card.ask("wake", "a")
    card.leave(wake)
    assert card.moving is wake
    card.moved()
    assert card.models["a"].awake
    assert card.table.at_rest


def test_a_model_that_really_leaves_does_so_whoever_wanted_it_to():
    card = two_in_one_place()
    wake = card.ask("wake", "b")
    card.answer("a")
    card.leave(wake)
    back = card.ask("wake", "a")
    assert card.moving == "a"
    card.moved()
    assert card.moving is back


def test_who_needs_nobodys_room_passes_one_that_waits_for_some():
    card = Card(4, model("a", 0, 2, awake=True), model("b", 0, 2), model("c", 2, 4))
    card.run("a")
    card.ask("wake", "b")
    passing = card.ask("wake", "c")
    assert card.moving is passing


def test_who_would_be_in_the_way_of_whose_turn_it_is_waits():
    card = Card(4, model("a", 0, 2, awake=True), model("b", 0, 4), model("c", 2, 4))
    card.run("a")
    first = card.ask("wake", "b")
    second = card.ask("wake", "c")
    assert card.moving is None
    card.finish("a")
    card.moved()
    assert card.moving is first
    card.moved()
    card.finish("b")
    card.moved()
    assert card.moving is second


def test_a_place_that_somebody_else_has_got_meanwhile_is_not_taken_for_free():
    card = Card(4, model("a", 0, 3, awake=True), model("b", 0, 3), model("c", 0, 3))
    card.ask("wake", "b")
    card.answer("a")
    card.models["c"] = replace(card.models["c"], awake=True)
    card.moved()
    assert (card.moving, card.closed) == (None, {"c"})


def test_one_that_comes_in_the_moment_of_giving_up_has_a_wake_of_its_own():
    card = two_in_one_place()
    card.run("a")
    left = card.ask("wake", "b")
    card.tell("late", left)
    card.leave(left)
    later = card.ask("wake", "b")
    assert later is not left
    card.finish("a")
    card.moved()
    assert card.moving is later


def test_an_operators_sleep_waits_for_a_wake_that_is_under_way():
    card = Card(4, model("a", 0, 3))
    card.ask("wake", "a")
    sleep = card.ask("sleep", "a", level=2)
    card.moved()
    assert card.closed == {"a"}
    card.finish("a")
    assert card.moving == "a"
    card.moved()
    assert card.ended[sleep] == ""


def test_a_model_that_comes_back_for_late_requests_sleeps_first():
    card = Card(4, model("a", 0, 3, awake=True))
    card.run("a")
    sleep = card.ask("sleep", "a")
    back = card.ask("wake", "a")
    assert reason(card.table, "a") == "`a` is still busy with requests it has accepted"
    card.finish("a")
    card.moved()
    assert sleep in card.ended
    assert card.moving is back
    assert reason(card.table, "a") == "the weights of `a` are still on their way"


def test_what_pinned_models_leave_no_room_for_is_refused():
    card = Card(4, model("p", 0, 2, awake=True, pinned=True), model("b", 1, 4))
    wake = card.ask("wake", "b")
    assert "which never sleep" in card.ended[wake]
    assert card.table.at_rest


def test_a_larger_floor_sends_others_to_sleep_and_a_smaller_one_nobody():
    card = Card(4, model("a", 0, 1, awake=True, floor_pages=1), model("b", 1, 2, awake=True))
    card.leave(card.ask("grow", "a", floor_pages=1))
    assert not card.closed
    grow = card.ask("grow", "a", floor_pages=3)
    assert (card.begun, card.closed) == ([], {"b"})
    card.answer("b")
    card.moved()
    assert card.begun == [grow]


def test_a_model_is_vacated_once_nobody_uses_wakes_or_closes_it():
    card = two_in_one_place()
    card.run("a")
    vacate = card.ask("vacate", "a")
    wake = card.ask("wake", "b")
    card.tell("late", wake)
    card.finish("a")
    card.moved()
    card.moved()
    card.answer("a")
    assert card.begun == [vacate]


def test_nobody_moves_while_somebody_has_the_card():
    card = two_in_one_place()
    hold = card.ask("hold")
    card.ask("wake", "b")
    card.answer("a")
    assert (card.moving, card.closed) == (None, set())
    card.leave(hold)
    card.answer("a")
    assert card.moving == "a"


def test_a_model_that_fails_keeps_its_place_until_it_is_cleared_away():
    card = two_in_one_place()
    card.run("a")
    wake, own = card.ask("wake", "b"), card.ask("sleep", "a")
    clearing = card.fail("a")
    assert own in card.ended
    assert card.begun == [clearing]
    card.remove("a")
    assert card.moving is None
    card.leave(clearing)
    assert card.moving is wake


def test_a_wake_of_a_model_that_fails_ends():
    card = two_in_one_place()
    card.run("a")
    wake = card.ask("wake", "b")
    card.fail("b")
    assert card.ended[wake] == "it has failed"


NUM_PAGES = 10
NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
rows = st.tuples(
    st.integers(0, 8), st.integers(0, 5), st.integers(0, 3), st.integers(0, 4), st.sampled_from("-----p")
)


class DecideMachine(RuleBasedStateMachine):
    """Requests, operators, reloads and failures in any order. `Card` checks each thing that is done."""

    @initialize(rows=st.tuples(*[rows] * len(NAMES)))
    def open(self, rows):
        self.pinned: set[str] = set()
        self.waiting: list[Ask] = []
        residents: list[Resident] = []
        for name, (first, pages, floor, longest, pinned) in zip(NAMES, rows):
            home = range(first, min(NUM_PAGES, first + pages))
            one = Resident(name, home, False, floor_pages=floor, longest_pages=longest)
            awake = [r for r in residents if r.awake]
            if pinned == "p" and can_be_awake([*awake, one], NUM_PAGES):
                one = replace(one, awake=True, pinned=True)
                self.pinned.add(name)
            residents.append(one)
        self.card = Card(NUM_PAGES, *residents)

    def known(self, name: str) -> Resident | None:
        found = self.card.models.get(name)
        return None if found is None or found.failed else found

    @rule(name=names)
    def want(self, name):
        if self.known(name):
            self.waiting.append(self.card.ask("wake", name))

    @rule(name=names, level=st.sampled_from([1, 2]))
    def put_to_sleep(self, name, level):
        if self.known(name) and name not in self.pinned:
            self.waiting.append(self.card.ask("sleep", name, level=level))

    @rule(name=names, floor=st.integers(0, 6))
    def grow(self, name, floor):
        if found := self.known(name):
            together = [self.card.models[p] for p in self.pinned - {name} if self.known(p)]
            wanted = replace(found, floor_pages=floor)
            if name not in self.pinned or can_be_awake([*together, wanted], NUM_PAGES):
                self.waiting.append(self.card.ask("grow", name, floor_pages=floor))

    @rule(name=st.one_of(st.none(), names))
    def reload(self, name):
        if name is None:
            self.waiting.append(self.card.ask("hold"))
        elif self.known(name):
            self.waiting.append(self.card.ask("vacate", name))

    @rule(which=st.integers(0, 100))
    def leave(self, which):
        """Somebody hangs up, or is done with the card: a model that was vacated is gone then."""
        self.waiting = [ask for ask in self.waiting if ask not in self.card.ended]
        if self.waiting:
            ask = self.waiting.pop(which % len(self.waiting))
            if (
                ask.kind == "vacate"
                and ask in self.card.begun
                and which % 2
                and ask.model in self.card.models
            ):
                self.card.remove(ask.model)
            self.card.leave(ask)

    @rule(name=names)
    def run(self, name):
        found, moving = self.known(name), self.card.moving
        vacated = [ask.model for ask in self.card.begun if ask.kind == "vacate"]
        coming = isinstance(moving, Ask) and moving.model == name
        if found and found.awake and not coming and name not in {*self.card.closed, *vacated}:
            self.card.run(name)

    @rule(name=names)
    def finish(self, name):
        self.card.finish(name)

    @rule(name=names)
    def fail(self, name):
        if self.known(name):
            self.waiting.append(self.card.fail(name))

    @rule(name=names)
    def clear_away(self, name):
        found, holding = self.card.models.get(name), any(ask.kind == "hold" for ask in self.card.begun)
        if found and found.failed and holding:
            self.card.remove(name)

    @rule(which=st.integers(0, 9))
    def lose_patience(self, which):
        if self.card.patient:
            self.card.tell("late", self.card.patient.pop(which % len(self.card.patient)))

    @precondition(lambda self: self.card.moving is not None)
    @rule(well=st.booleans())
    def moved(self, well):
        self.card.moved(well)

    @rule()
    def nobody_waits_for_ever(self):
        """Once all that they wait for comes to its end, everybody is answered."""
        card = self.card
        for _ in range(200):
            if card.moving is not None:
                card.moved()
            for ask in list(card.begun):
                for name in [n for n, one in card.models.items() if one.failed and ask.kind == "hold"]:
                    card.remove(name)
                card.leave(ask)
            for name in NAMES:
                card.finish(name)
            while card.patient:
                card.tell("late", card.patient.pop())
            holding = any(ask.kind == "hold" for ask in card.table.asks)
            if any(one.failed for one in card.models.values()) and not holding:
                card.ask("hold")
        assert card.table.at_rest, card.table.asks
        assert not card.closed
        assert card.moving is None

    @invariant()
    def those_awake_have_what_they_are_promised(self):
        awake = [one for one in self.card.models.values() if one.awake]
        assert can_be_awake(awake, NUM_PAGES)
        assert all(one.awake or one.failed for one in self.card.models.values() if one.pinned)

    @invariant()
    def the_card_is_one_askers(self):
        table = self.card.table
        assert len(self.card.begun) + (self.card.moving is not None) == (table.moving is not None)
        failed = {one.name for one in self.card.models.values() if one.failed}
        assert self.card.closed - failed == table.departures.keys() - failed


TestDecideMachine = DecideMachine.TestCase
TestDecideMachine.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
