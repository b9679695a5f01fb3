"""A changed registry, applied to a node that serves: decided as a whole, then carried out model by model.

    headers -> plan of every card -> new engines built -> [names, numbers] -> models go, come, change places

Up to the brackets nothing has changed, and whatever is wrong refuses the registry. What is in them happens at
once. What follows takes as long as running requests take to finish; a model that can't be made to serve then
fails alone.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from onecard.engines.api import EngineError, InvalidRegistryError, ModelUnavailableError, ReloadReport
from onecard.engines.api.errors import explain
from onecard.engines.kinds import read_model, retuned, steps_of
from onecard.engines.kinds.kind import Blueprint, following
from onecard.engines.lifecycle.card_model import policy_of
from onecard.engines.memory.card_plan import CardPlan, ModelNeeds
from onecard.engines.memory.homes import Resident
from onecard.engines.memory.plan import replan_card
from onecard.engines.node.replacement import Replacement, resize
from onecard.engines.node.served import Card, NodeContext, ServedModel, build_served, quantum_of
from onecard.engines.runtime.inbox import run_aside
from onecard.engines.runtime.memory_use import collect_garbage
from onecard.registry.changes import Changes, Effect, compare
from onecard.registry.spec import ModelSpec, Registry

logger = logging.getLogger(__name__)


@dataclass
class _Decision:
    """What becomes of every card and model. `staying` serve on, under a changed blueprint or the one they
    have."""

    plans: dict[str, CardPlan] = field(default_factory=dict)
    staying: dict[str, Blueprint] = field(default_factory=dict)
    replacements: dict[str, Replacement] = field(default_factory=dict)


class Reload:
    """`models`, by name, is what the node serves: changed in place, in the registry's order."""

    def __init__(self, cards: Sequence[Card], models: dict[str, ServedModel], context: NodeContext):
        self._cards = {card.plan.card: card for card in cards}
        self._models = models
        self._context = context

    async def apply(
        self, running: Registry, wanted: Registry, paths: Mapping[str, Path], on_taken: Callable[[], None]
    ) -> ReloadReport:
        """One at a time. Raises `InvalidRegistryError`; nothing has changed then. An unchanged registry is
        always taken, and changes nothing. `on_taken` is called the moment that it can be refused no more."""
        changes = compare(running, wanted)
        if not changes:
            on_taken()
            return ReloadReport()
        async with AsyncExitStack() as still:
            async with _in_time(wanted):
                with _refusals():
                    read = await run_aside(partial(self._read, wanted, paths, changes))
                for card in self._cards.values():
                    await still.enter_async_context(card.manager.still())
                with _refusals():
                    decision = self._decide(wanted, read, changes)
                    await run_aside(partial(self._build, decision, read))
            self._switch(decision, wanted)
            on_taken()
            await self._retune(decision, wanted)
        notes = await self._carry_out(decision)
        some_left = any(replacement.old is not None for replacement in decision.replacements.values())
        del decision
        if some_left:
            # Engines are cycles: until the collector gets to its oldest generation, which may take days, they
            # would keep their tokenizers, and tensors of the card that the plan doesn't know.
            await run_aside(collect_garbage)
        changed = tuple(change.name for change in changes.changed)
        return ReloadReport(changes.added, changes.removed, changed, tuple(notes))

    async def revive(self, model: ServedModel, registry: Registry) -> None:
        """Build a model that has failed anew, and wake it. Raises `ModelUnavailableError` where it fails
        again."""
        card, before = model.card, model.blueprint
        try:
            async with _in_time(registry):
                blueprint = await run_aside(partial(read_model, before.spec, before.path, card.plan.facts()))
                share = card.plan.model(blueprint.spec.name)
                new = await run_aside(partial(build_served, blueprint, share, card, self._context))
        except Exception as error:
            raise ModelUnavailableError(
                f"The model `{before.spec.name}` can't be built: {explain(error)}"
            ) from error
        self._models[blueprint.spec.name] = new
        replacement = Replacement(model, new, wakes=True)
        replacement.announce()
        await replacement.carry_out()
        if new.card_model.gate.refusal is not None:
            raise new.card_model.gate.refusal

    # --- deciding: nothing changes ------------------------------------------------------------------------

    def _read(
        self, wanted: Registry, paths: Mapping[str, Path], changes: Changes
    ) -> dict[str, tuple[Effect, Blueprint]]:
        """The files of models that come or are made anew, by name."""
        effects: dict[str, Effect] = dict.fromkeys(changes.added, "replace")
        effects |= {change.name: change.effect for change in changes.changed}
        read: dict[str, tuple[Effect, Blueprint]] = {}
        for spec in wanted.models:
            effect = self._at_least(effects.get(spec.name), spec)
            if effect is not None and effect != "live":
                facts = self._card_of(spec).plan.facts()
                try:
                    read[spec.name] = effect, read_model(spec, paths[spec.name], facts)
                except Exception as error:
                    raise InvalidRegistryError(_of_model(spec.name, error)) from error
        return read

    def _at_least(self, effect: Effect | None, spec: ModelSpec) -> Effect | None:
        """Larger steps than an engine was built for ask for another engine; so does one that has failed."""
        model = self._models.get(spec.name)
        if effect is None or model is None:
            return effect
        if model.failed:
            return "replace"
        built, blueprint = model.blueprint.size, model.blueprint
        size = steps_of(spec, self._card_of(spec).plan.facts(), blueprint.needs.max_model_len)
        more_tokens = size.max_num_batched_tokens > built.max_num_batched_tokens
        larger = size.max_num_seqs > built.max_num_seqs or more_tokens
        return "rebuild" if effect == "live" and larger else effect

    def _decide(
        self, wanted: Registry, read: Mapping[str, tuple[Effect, Blueprint]], changes: Changes
    ) -> _Decision:
        """Raises `PlanError`."""
        decision = _Decision()
        for name in changes.removed:
            decision.replacements[name] = Replacement(self._models[name])
        for card in self._cards.values():
            staying: list[Resident] = []
            needs: list[ModelNeeds] = []
            for spec in wanted.models:
                if self._card_of(spec) is not card:
                    continue
                old = self._models.get(spec.name)
                if spec.name not in read:
                    assert old is not None
                    blueprint = retuned(old.blueprint, spec, card.plan.facts())
                    decision.staying[spec.name] = blueprint
                    staying.append(_resident(old))
                    needs.append(blueprint.needs)
                    continue
                effect, blueprint = read[spec.name]
                replacement = decision.replacements[spec.name] = _replacement(old, effect, blueprint)
                if replacement.keeps_weights and old is not None:
                    staying.append(_resident(old))
                needs.append(blueprint.needs)
            decision.plans[card.plan.card] = replan_card(card.plan, staying, needs)
        return decision

    def _build(self, decision: _Decision, read: Mapping[str, tuple[Effect, Blueprint]]) -> None:
        for name, (_, blueprint) in read.items():
            card = self._card_of(blueprint.spec)
            share = decision.plans[card.plan.card].model(name)
            try:
                decision.replacements[name].new = build_served(blueprint, share, card, self._context)
            except Exception as error:
                raise InvalidRegistryError(_of_model(name, error)) from error

    # --- all at once --------------------------------------------------------------------------------------

    def _switch(self, decision: _Decision, wanted: Registry) -> None:
        self._context.wake_timeout.seconds = wanted.server.wake_timeout
        for card in self._cards.values():
            card.plan = decision.plans[card.plan.card]
        served = dict(self._models)
        for name, replacement in decision.replacements.items():
            replacement.announce()
            if replacement.new is not None:
                served[name] = replacement.new
        for name, blueprint in decision.staying.items():
            model = served[name]
            model.blueprint = blueprint
            model.engine.info = following(model.info, blueprint.spec)
            model.card_model.policy = policy_of(blueprint.spec)
        self._models.clear()
        self._models.update({spec.name: served[spec.name] for spec in wanted.models})

    async def _retune(self, decision: _Decision, wanted: Registry) -> None:
        specs = {spec.name: spec for spec in wanted.cards}
        for name, card in self._cards.items():
            quantum = quantum_of(specs[name], card.handle.device.type)
            staying = [self._models[name] for name in decision.staying if self._models[name].card is card]
            await card.manager.on_loop(partial(_retune, card, quantum, staying))

    # --- one by one ---------------------------------------------------------------------------------------

    async def _carry_out(self, decision: _Decision) -> list[str]:
        """What is worth a note to whoever asked."""
        notes = await asyncio.gather(*(one.carry_out() for one in decision.replacements.values()))
        for name in decision.staying:
            notes.append(await self._settle(self._models[name]))
        return [note for note in notes if note is not None]

    async def _settle(self, model: ServedModel) -> str | None:
        """A floor that has grown, and being pinned, may take others' room: those that leave have left it."""
        spec, card_model = model.blueprint.spec, model.card_model
        card = model.card
        share = card.plan.model(spec.name)
        try:
            if card_model.floor_pages < share.floor_pages:
                await resize(card.manager, card_model, share.floor_pages, share.ceiling_pages)
            if spec.pinned and not card_model.awake and not model.failed:
                await card.manager.wake(spec.name)
        except EngineError as error:
            return str(error)
        except Exception as error:  # the others' changes hold all the same
            logger.exception("%s doesn't get what the registry says", spec.name)
            return f"The model `{spec.name}` serves on as it was: {explain(error)}"
        return None

    def _card_of(self, spec: ModelSpec) -> Card:
        first = next(iter(self._cards.values()))
        return first if spec.card is None else self._cards.get(spec.card, first)


def _resident(model: ServedModel) -> Resident:
    return Resident(model.info.name, model.card_model.weights.home, model.card_model.awake)


def _replacement(old: ServedModel | None, effect: Effect, blueprint: Blueprint) -> Replacement:
    """An engine that is made anew takes over the weights, if those in the files are still as large."""
    keeps = (
        effect == "rebuild"
        and old is not None
        and not old.failed
        and old.blueprint.needs.weight_bytes == blueprint.needs.weight_bytes
    )
    was_awake = old is not None and old.card_model.awake
    wakes = was_awake or blueprint.spec.pinned or (blueprint.spec.preload and not keeps)
    return Replacement(old, keeps_weights=keeps, wakes=wakes)


def _retune(card: Card, quantum: float, staying: Sequence[ServedModel]) -> None:
    """On the card's loop: whatever is a number."""
    card.turns.quantum_seconds = quantum
    card.pool.keep_for_last({page for share in card.plan.models for page in share.home})
    for model in staying:
        spec, card_model = model.blueprint.spec, model.card_model
        with suppress(KeyError):  # an engine that has failed takes no turns
            card.turns.set_weight(spec.name, spec.weight)
        size = steps_of(spec, card.plan.facts(), model.blueprint.needs.max_model_len)
        card_model.engine.retune(spec, size)
        share = card.plan.model(spec.name)
        if share.floor_pages <= card_model.floor_pages:
            card.manager.mover.allot(card_model, share.floor_pages, share.ceiling_pages)


@asynccontextmanager
async def _in_time(registry: Registry) -> AsyncIterator[None]:
    """Around what a registry's files are read for: a thread that gets stuck is left to itself."""
    limit = registry.server.reload_timeout
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError:
        raise InvalidRegistryError(
            f"the models' files could not be read within {limit:g} s (`server.reload_timeout`)"
        ) from None


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever goes wrong while nothing has changed is said of the registry."""
    try:
        yield
    except InvalidRegistryError:
        raise
    except Exception as error:
        raise InvalidRegistryError(explain(error)) from error


def _of_model(name: str, error: Exception) -> str:
    said = explain(error)
    return said if name in said else f"{name}: {said}"
