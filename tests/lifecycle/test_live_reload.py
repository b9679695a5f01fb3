"""A changed registry on a real node: every kind of change, with requests running and requests coming in."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from lifecycle_helpers import ask, embed, states

from onecard.engines.api import InvalidRegistryError, ModelNotFoundError, ModelUnavailableError, ReloadReport
from onecard.engines.node import reload
from onecard.registry.spec import MemoryAmount, Registry, SamplingSpec

pytestmark = pytest.mark.weights

MIB = 1 << 20
CARD = 1700 * MIB
TOKENS = 24


@dataclass
class Served:
    """A node, what it serves to begin with, and the text that its language models give."""

    live: Any
    base: Registry
    paths: dict[str, Path]
    text: str = ""

    @property
    def node(self) -> Any:
        return self.live.node

    def with_model(self, name: str, **fields: Any) -> Registry:
        """`base` with other fields for a model; `engine` fields as a dictionary."""
        engine = fields.pop("engine", {})
        models = [
            replace(m, engine=replace(m.engine, **engine), **fields) if m.name == name else m
            for m in self.base.models
        ]
        return replace(self.base, models=tuple(models))

    def with_copy(self, name: str, **fields: Any) -> Registry:
        """`base` with one more language model."""
        copy = replace(self.base.models[0], **{"name": name, "aliases": (), **fields})
        return replace(self.base, models=(*self.base.models, copy))

    def apply(self, registry: Registry) -> ReloadReport:
        report = self.live.call(self.node.apply(registry, self.paths))
        self.live.wait_idle()
        self.check_books()
        return report

    def check_books(self) -> None:
        """Nothing of anybody who isn't served is left, and the pools add up."""
        card = self.node._cards[0]
        serving = {m.info.name for m in self.node._models.values() if not m.failed}
        awake = {name for name, state in states(self.live).items() if state == "ready"}

        def books() -> tuple[set[str], set[str], set[str]]:
            card.pool.check_integrity()
            return set(card.pool.engines), set(card.pool._homes), set(card.loop._engines)

        accounts, homes, engines = self.live.on_loop(self.node.engine("a"), books)
        assert accounts == serving - {"minilm"}
        assert homes == awake
        assert engines == serving == set(card.manager.card_models)
        assert {m.name for m in card.plan.models} == {m.info.name for m in self.node._models.values()}

    def while_running(self, registry: Registry, name: str = "a") -> tuple[list[str], list[str]]:
        """Apply `registry` while `name` answers; the texts of requests that ran, and of those that came
        while it was applied."""

        async def during() -> tuple[list[str], list[str]]:
            running = [asyncio.create_task(ask(self.node, name, tokens=TOKENS)) for _ in range(3)]
            await asyncio.sleep(0.05)
            applying = asyncio.create_task(self.node.apply(registry, self.paths))
            later = []
            while not applying.done():
                if len(later) < 5:
                    later.append(asyncio.create_task(ask(self.node, name, tokens=TOKENS)))
                await asyncio.sleep(0.1)
            await applying
            return await asyncio.gather(*running), await asyncio.gather(*later)

        texts = self.live.call(during())
        self.live.wait_idle()
        self.check_books()
        return texts

    def ask(self, name: str) -> str:
        return self.live.call(ask(self.node, name, tokens=TOKENS))


@pytest.fixture(scope="module")
def opened(card_of, demo_paths) -> Iterator[Served]:
    """A language model and an embedding model, with room for one more language model."""
    with card_of(CARD, a={"aliases": ("first",)}, minilm={}) as live:
        paths = dict.fromkeys(("a", "b", "c"), demo_paths["smollm2"]) | {"minilm": demo_paths["minilm"]}
        served = Served(live, live.node._registry, paths)
        served.text = served.ask("a")
        yield served


@pytest.fixture
def served(opened: Served) -> Iterator[Served]:
    """The shared node, as it was at first again after each test."""
    yield opened
    opened.apply(opened.base)
    opened.live.call(opened.node.wake("a"))
    assert states(opened.live) == {"a": "ready", "minilm": "ready"}
    assert opened.ask("first") == opened.text
    opened.live.wait_idle()


# --- numbers ---------------------------------------------------------------------------------------------


def test_what_is_live_changes_under_running_requests(served: Served):
    card, engine = served.node._cards[0], served.node.engine("a")
    card_model = served.node._models["a"].card_model
    wanted = served.with_model(
        "a",
        aliases=("second",),
        weight=3.0,
        priority=-2,
        ttl=500.0,
        sleep_level=2,
        memory=MemoryAmount(nbytes=600 * MIB),
        burst=MemoryAmount(nbytes=700 * MIB),
        sampling=SamplingSpec(temperature=0.3, max_tokens=99),
        engine={"max_num_seqs": 2, "max_num_batched_tokens": 64},
    )
    wanted = replace(wanted, cards=(replace(wanted.cards[0], quantum=0.05),))
    running, later = served.while_running(wanted)
    assert {*running, *later} == {served.text}
    assert served.node.engine("second") is engine is served.node.engine("a")
    with pytest.raises(ModelNotFoundError):
        served.node.engine("first")
    info = served.node.models()[0]
    assert (info.aliases, info.default_sampling) == (("second",), {"temperature": 0.3, "max_tokens": 99})
    limits = engine.core.scheduler.limits
    assert (limits.max_num_seqs, limits.max_num_batched_tokens) == (2, 64)
    assert (engine.core.weight, engine.core.priority) == (3.0, -2)
    assert card.turns._shares["a"].weight == 3.0
    assert card.turns.quantum_seconds == 0.05
    assert (card_model.policy.ttl, card_model.policy.sleep_level) == (500.0, 2)
    page = card.plan.page_bytes
    home = len(card_model.weights.home)
    shares = (card.pool.floor("a"), card.pool.ceiling("a"))
    assert shares == (600 * MIB // page - home, 700 * MIB // page - home)
    assert shares == (card_model.floor_pages, card_model.ceiling_pages)


def test_a_registry_that_does_not_fit_changes_nothing(served: Served, tmp_path: Path):
    (template := tmp_path / "t.jinja").write_text("{{ messages }")
    node = served.node
    before = node.status().models, node.models(), node._cards[0].plan
    refused = [
        (served.with_model("a", aliases=("x",), memory=MemoryAmount(nbytes=4 * CARD)), "above its ceiling"),
        (served.with_model("a", aliases=("x",), burst=MemoryAmount(nbytes=100 * MIB)), "raise its `burst:`"),
        (served.with_copy("b", memory=MemoryAmount(nbytes=CARD)), "the floors guarantee"),
        (
            served.with_model("minilm", aliases=("x",), engine={"max_num_batched_tokens": 1 << 20}),
            "beside its arena",
        ),
        (served.with_model("a", aliases=("x",), engine={"chat_template": "/nowhere.jinja"}), "nowhere"),
        (served.with_model("a", aliases=("x",), engine={"chat_template": str(template)}), "doesn't parse"),
        (served.with_model("minilm", kind="llm"), "kind: llm"),
    ]
    for registry, why in refused:
        with pytest.raises(InvalidRegistryError, match=why):
            served.apply(registry)
        assert (node.status().models, node.models(), node._cards[0].plan) == before
    assert served.ask("a") == served.text


def test_a_floor_that_grows_sends_those_to_sleep_that_were_promised_nothing(served: Served):
    served.apply(served.with_copy("b", preload=False))
    assert served.ask("b") == served.text
    served.live.call(embed(served.node))  # the others were used before it
    plan = served.node._cards[0].plan
    most = plan.num_pages - plan.model("minilm").home_pages
    wanted = served.with_model("a", memory=MemoryAmount(nbytes=most * plan.page_bytes))
    wanted = replace(wanted, models=(*wanted.models, served.with_copy("b", preload=False).models[-1]))
    assert served.apply(wanted) == ReloadReport(changed=("a",))
    assert states(served.live) == {"a": "ready", "minilm": "ready", "b": "asleep"}
    assert served.node._cards[0].pool.floor("a") == most - plan.model("a").home_pages
    assert [served.ask(name) for name in ("b", "a")] == [served.text] * 2
    served.live.call(embed(served.node))


def test_what_a_model_cannot_be_given_undoes_nothing_else(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def broken(*_: object) -> None:
        raise ValueError("the books are closed")

    wanted = served.with_model("a", memory=MemoryAmount(nbytes=800 * MIB))
    wanted = replace(wanted, models=(*wanted.models, served.with_copy("b", preload=False).models[-1]))
    with monkeypatch.context() as patch:
        patch.setattr(reload, "resize", broken)
        report = served.apply(wanted)
    assert report.added == ("b",)
    assert report.notes == ("The model `a` serves on as it was: ValueError: the books are closed",)
    assert "a doesn't get what the registry says" in caplog.text
    assert served.apply(wanted) == ReloadReport(), "it is the one that is served"
    assert served.ask("b") == served.text
    assert served.apply(served.base).removed == ("b",)


def test_an_unchanged_registry_is_taken_and_does_nothing(served: Served, monkeypatch: pytest.MonkeyPatch):
    def undecided(*_: object) -> None:
        raise AssertionError("there is nothing to decide")

    monkeypatch.setattr(served.node._reload, "_decide", undecided)
    served.live.call(served.node.sleep("a", 2))
    assert served.apply(served.base) == ReloadReport()
    assert states(served.live) == {"a": "unloaded", "minilm": "ready"}


def test_it_is_told_when_a_registry_is_taken_not_when_its_models_have_moved(served: Served):
    async def during() -> None:
        taken = asyncio.Event()
        running = asyncio.create_task(ask(served.node, "a", tokens=100))
        await asyncio.sleep(0.05)
        with pytest.raises(InvalidRegistryError):
            await served.node.apply(
                served.with_copy("b", memory=MemoryAmount(nbytes=CARD)), served.paths, taken.set
            )
        assert not taken.is_set()
        anew = served.with_model("a", engine={"seed": 5})
        applying = asyncio.create_task(served.node.apply(anew, served.paths, taken.set))
        await taken.wait()
        assert not running.done()
        assert not applying.done()
        await applying
        taken.clear()
        await served.node.apply(anew, served.paths, taken.set)
        assert taken.is_set(), "an unchanged one is taken too"
        await running

    served.live.call(during())


# --- models that come and go -----------------------------------------------------------------------------


def test_a_model_comes_and_goes_while_others_run(served: Served):
    running, later = served.while_running(served.with_copy("b", aliases=("bee",)))
    assert {*running, *later} == {served.text}
    assert states(served.live) == {"a": "ready", "minilm": "ready", "b": "ready"}
    assert served.ask("bee") == served.text
    vector = served.live.call(embed(served.node))

    async def remove() -> tuple[list[str], ReloadReport]:
        running = [asyncio.create_task(ask(served.node, "b", tokens=TOKENS)) for _ in range(3)]
        await asyncio.sleep(0.05)
        applying = asyncio.create_task(served.node.apply(served.base, served.paths))
        while "b" in {model.name for model in served.node.models()}:
            await asyncio.sleep(0.01)
        with pytest.raises(ModelNotFoundError):
            served.node.engine("bee")
        return await asyncio.gather(*running), await applying

    texts, report = served.live.call(remove())
    assert texts == [served.text] * 3
    assert report == ReloadReport(removed=("b",))
    served.live.wait_idle()
    served.check_books()
    assert served.live.call(embed(served.node)) == vector


def test_a_model_without_preload_comes_asleep_and_its_first_request_wakes_it(served: Served):
    report = served.apply(served.with_copy("b", preload=False))
    assert report == ReloadReport(added=("b",))
    assert states(served.live)["b"] == "unloaded"
    assert served.ask("b") == served.text
    assert states(served.live)["b"] == "ready"


def test_more_than_the_card_holds_takes_turns(served: Served):
    wanted = served.with_copy("b")
    more = replace(wanted, models=(*wanted.models, replace(wanted.models[-1], name="c")))
    report = served.apply(more)
    assert (report.added, report.notes) == (("b", "c"), ())
    for name in ("a", "b", "c", "a"):
        assert served.ask(name) == served.text
    served.live.wait_idle()
    served.check_books()


# --- engines that are made anew --------------------------------------------------------------------------


def test_an_engine_is_made_anew_around_its_weights(served: Served, monkeypatch: pytest.MonkeyPatch):
    def unread(*_: object) -> None:
        raise AssertionError("the weights are there already")

    monkeypatch.setattr("onecard.engines.paged.build.load_model", unread)
    before = served.node.engine("a")
    wanted = served.with_model(
        "a", engine={"enable_prefix_caching": False}, memory=MemoryAmount(fraction=0.3)
    )
    running, later = served.while_running(wanted)
    assert {*running, *later} == {served.text}
    assert len(later) > 0
    assert served.node.engine("a") is not before
    assert not served.node.engine("a").core.scheduler.kv.pool.enable_caching


def test_a_sleeping_one_stays_asleep_and_keeps_its_copy(served: Served):
    served.live.call(served.node.sleep("a", 1))
    served.apply(served.with_model("a", engine={"seed": 7}))
    assert states(served.live)["a"] == "asleep"
    assert {m.name: m.host_bytes > 0 for m in served.node.ledger()[0].models} == {"a": True, "minilm": False}
    assert served.ask("a") == served.text


def test_a_model_is_replaced_while_requests_run_and_come(served: Served):
    running, later = served.while_running(served.with_model("a", engine={"max_model_len": 128}))
    assert {*running, *later} == {served.text}
    assert served.node.models()[0].max_model_len == 128


def test_larger_steps_than_it_was_built_for_make_an_engine_anew(served: Served):
    before = served.node.engine("a")
    report = served.apply(served.with_model("a", engine={"max_num_seqs": 4}))
    assert served.node.engine("a") is before
    assert report == ReloadReport(changed=("a",))
    served.apply(served.with_model("a", engine={"max_num_seqs": 8}))
    assert served.node.engine("a") is before
    served.apply(served.with_model("a", engine={"max_num_seqs": 9}))
    assert served.node.engine("a") is not before
    assert served.node.engine("a").core.scheduler.limits.max_num_seqs == 9


def test_an_embedding_model_is_replaced_too(served: Served):
    before = served.live.call(embed(served.node))
    served.apply(served.with_model("minilm", engine={"max_model_len": 64, "max_num_seqs": 3}))
    assert served.live.call(embed(served.node)) == before
    assert served.node.engine("minilm").info.max_model_len == 64


def test_a_model_that_becomes_pinned_wakes_up(served: Served):
    served.live.call(served.node.sleep("a", 1))
    served.apply(served.with_model("a", pinned=True))
    assert states(served.live)["a"] == "ready"


# --- what goes wrong half-way ----------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_read_fails_alone(served: Served, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("onecard.engines.paged.build.load_model", broken)
        report = served.apply(served.with_copy("b"))
        assert len(report.notes) == 1
        assert "`b` can't be woken up: the disk is gone" in report.notes[0]
        assert states(served.live) == {"a": "ready", "minilm": "ready", "b": "failed"}
        with pytest.raises(ModelUnavailableError, match="the disk is gone"):
            served.ask("b")
        with pytest.raises(ModelUnavailableError, match="the disk is gone"):
            served.live.call(served.node.wake("b"))
        assert served.ask("a") == served.text
        served.check_books()
    served.live.call(served.node.wake("b"))
    assert served.ask("b") == served.text
    served.live.wait_idle()
    served.check_books()


def test_an_engine_that_fails_on_and_on_is_out_of_service_until_it_is_woken(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(served.node.engine("a").core._runner, "launch", broken)

    async def until_failed() -> None:
        while states(served.live)["a"] != "failed":
            with pytest.raises(Exception, match="failed"):
                await ask(served.node, "a")

    served.live.call(until_failed())
    with pytest.raises(ModelUnavailableError, match="out of service"):
        served.ask("a")
    served.live.wait_idle()
    assert "a" not in served.node._cards[0].pool.engines
    assert len(served.live.call(embed(served.node))) == 384
    served.apply(served.with_model("a", priority=1))  # a reload that touches it tries again, too
    assert states(served.live)["a"] == "ready"
    assert served.ask("a") == served.text


@pytest.mark.parametrize("engine", [{"seed": 5}, {"max_model_len": 200}], ids=["made anew", "replaced"])
def test_an_engine_that_leaves_is_freed_whenever_the_collector_runs(served: Served, engine: dict[str, int]):
    left = weakref.ref(served.node.engine("a")._text.tokenizer)
    gc.disable()
    try:
        served.apply(served.with_model("a", engine=engine))
        assert left() is None
    finally:
        gc.enable()


def test_files_that_cannot_be_read_in_time_refuse_the_registry_and_change_nothing(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to, say: the thread that reads stays behind, the server goes on."""
    over = threading.Event()
    wanted = served.with_copy("b")
    hasty = replace(wanted, server=replace(wanted.server, reload_timeout=0.3))
    with monkeypatch.context() as patch:
        patch.setattr(reload, "read_model", lambda *_: over.wait())
        with pytest.raises(InvalidRegistryError, match=r"could not be read within 0.3 s"):
            served.apply(hasty)
    served.check_books()
    assert served.ask("a") == served.text
    assert served.apply(wanted).added == ("b",)
    over.set()
    assert served.ask("b") == served.text
    served.apply(served.base)
