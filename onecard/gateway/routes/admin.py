"""What operators ask for: who serves and how, models asleep and awake, a changed registry, the live ledger.

`/models/{name}/...` are ours, `/sleep`, `/wake_up` and `/is_sleeping` are vLLM's with a `model` to choose;
without one they mean every model.
"""

import asyncio
from dataclasses import asdict

from aiohttp import web

from onecard.engines.api import EngineError, InvalidRequestError, NodeControl, SleepLevel
from onecard.gateway.context import GATEWAY
from onecard.gateway.http.body import json_response, parse
from onecard.gateway.http.errors import GatewayError, shorten
from onecard.gateway.schemas.admin import SleepRequest

LEVELS: dict[str, SleepLevel] = {"1": 1, "2": 2}


async def status(request: web.Request) -> web.Response:
    """What `onecard ps` shows."""
    return json_response(asdict(request.app[GATEWAY].node.status()))


async def sleep_model(request: web.Request) -> web.Response:
    """Answers with the level at which the model sleeps, which may be deeper than the one asked for."""
    control, name, level = _control(request), _named(request), await _level(request)
    return _asleep(name, await control.sleep(name, level))


async def unload_model(request: web.Request) -> web.Response:
    """Sleep that keeps nothing: `level` 2."""
    control, name = _control(request), _named(request)
    return _asleep(name, await control.sleep(name, 2))


async def wake_model(request: web.Request) -> web.Response:
    """Also `/load`. Answers when the model serves."""
    control, name = _control(request), _named(request)
    await control.wake(name)
    return json_response({"model": name, "status": "awake"})


async def sleep(request: web.Request) -> web.Response:
    """vLLM's `/sleep`. Without `model`, all go to sleep that aren't pinned.

    `level` in the answer is the one at which the model sleeps; of several, the lightest of theirs.
    """
    control, name, level = _control(request), _chosen(request), await _level(request)
    _only_waits(request)
    names = _names(request) if name is None else [name]
    return json_response({"status": "sleeping", "level": min(await _sleep_all(control, names, level))})


async def wake_up(request: web.Request) -> web.Response:
    """vLLM's `/wake_up`. A model wakes as a whole, whichever `tags` are named.

    Without `model`, all wake up in turn. Where not all have room, a later one puts an earlier one to sleep
    again: `status` is `sleeping` then, and `models` has them as they are in the end.
    """
    control, name, tags = _control(request), _chosen(request), request.query.getall("tags", None)
    if name is not None:
        await control.wake(name)
        return json_response({"status": "awake", "tags": tags})
    await _wake_all(control, _names(request))
    models = {each: "sleeping" if control.is_sleeping(each) else "awake" for each in _names(request)}
    if "sleeping" in models.values():
        return json_response({"status": "sleeping", "tags": tags, "models": models})
    return json_response({"status": "awake", "tags": tags})


async def is_sleeping(request: web.Request) -> web.Response:
    """vLLM's `/is_sleeping`. Without `model`: whether any does."""
    control, name = _control(request), _chosen(request)
    asked = _names(request) if name is None else [name]
    return json_response({"is_sleeping": any(control.is_sleeping(each) for each in asked)})


async def reload(request: web.Request) -> web.Response:
    return json_response(await _control(request).reload())


async def pool(request: web.Request) -> web.Response:
    """The live ledger: every page of every card by owner."""
    return json_response({"cards": list(_control(request).ledger())})


async def _sleep_all(control: NodeControl, names: list[str], level: SleepLevel) -> list[SleepLevel]:
    """The levels at which those sleep that may."""
    # Together, since each waits for its own running requests; a model that may not sleep stops no other.
    sleeps = (control.sleep(name, level) for name in names)
    outcomes = await asyncio.gather(*sleeps, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    failures = [error for error in errors if not isinstance(error, InvalidRequestError)]
    if failures or len(errors) == len(names):
        raise (failures or errors)[0]
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]


async def _wake_all(control: NodeControl, names: list[str]) -> None:
    """One that can't wake up stops no other. Raises the first error."""
    errors = []
    for name in names:
        try:
            await control.wake(name)
        except EngineError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _asleep(name: str, level: SleepLevel) -> web.Response:
    return json_response({"model": name, "status": "sleeping", "level": level})


def _control(request: web.Request) -> NodeControl:
    control = request.app[GATEWAY].control
    if control is None:
        raise GatewayError(501, "This server can't change what it serves while it runs.")
    return control


def _named(request: web.Request) -> str:
    """The model in the path, by its own name. Raises `ModelNotFoundError`."""
    return request.app[GATEWAY].router.info(request.match_info["name"]).name


def _chosen(request: web.Request) -> str | None:
    """The model in the query, by its own name; None where there is none."""
    name = request.query.get("model")
    return None if name is None else request.app[GATEWAY].router.info(name).name


def _names(request: web.Request) -> list[str]:
    return [info.name for info in request.app[GATEWAY].router.models()]


async def _level(request: web.Request) -> SleepLevel:
    asked = request.query.get("level")
    if asked is None:
        return (await parse(request, SleepRequest)).level if request.can_read_body else 1
    if asked not in LEVELS:
        raise InvalidRequestError(
            f"`level` must be 1 (weights stay in host memory) or 2 (dropped), got {shorten(asked)!r}.",
            param="level",
        )
    return LEVELS[asked]


def _only_waits(request: web.Request) -> None:
    # vLLM's other modes cut running requests off or freeze them: not silently something else.
    mode = request.query.get("mode", "wait")
    if mode != "wait":
        raise InvalidRequestError(
            f"`mode` must be `wait` (running requests finish first), got {shorten(mode)!r}.", param="mode"
        )
