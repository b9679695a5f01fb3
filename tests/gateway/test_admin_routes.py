"""What operators may ask, against a control that remembers what it was told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from onecard.engines.api import (
    CardLedger,
    InvalidRegistryError,
    InvalidRequestError,
    ModelInfo,
    ModelLedger,
    ModelUnavailableError,
    ReloadReport,
)
from onecard.gateway.app import create_app
from onecard.gateway.context import GATEWAY
from onecard.gateway.schemas.admin import (
    IsSleepingAnswer,
    ModelSleepAnswer,
    ModelWakeAnswer,
    PoolAnswer,
    ReloadAnswer,
    SleepAnswer,
    WakeAnswer,
)
from onecard.registry.spec import Registry, ServerSpec

LEDGER = CardLedger(
    card="card0",
    page_bytes=1 << 20,
    num_pages=64,
    free_pages=40,
    models=(ModelLedger("talker", "ready", 0, 8, 8, 16, 9, 5, 2, 12, 64, 4, 3, 7 << 20, 0),),
    recalls={"talker": 2},
    preemptions={"wake": 1},
)


@dataclass
class FakeControl:
    """`log` is what was done; `pinned` models refuse to sleep, those in `deep` sleep at level 2 whatever is
    asked, those in `broken` don't wake up; `displaces`: who sleeps when a model wakes up; `raises` stands in
    for the next outcome."""

    log: list[tuple[Any, ...]] = field(default_factory=list)
    asleep: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)
    deep: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    displaces: dict[str, str] = field(default_factory=dict)
    raises: Exception | None = None

    async def sleep(self, name: str, level: int = 1) -> int:
        await asyncio.sleep(0)
        if name in self.pinned:
            raise InvalidRequestError(f"{name} is pinned.")
        self._act("sleep", name, level)
        self.asleep.add(name)
        return 2 if name in self.deep else level

    async def wake(self, name: str) -> None:
        self._act("wake", name)
        if name in self.broken:
            raise ModelUnavailableError(f"{name} is broken.")
        self.asleep.discard(name)
        self.asleep |= {self.displaces[name]} if name in self.displaces else set()

    def is_sleeping(self, name: str) -> bool:
        return name in self.asleep

    def ledger(self) -> list[CardLedger]:
        return [LEDGER]

    async def reload(self) -> ReloadReport:
        self._act("reload")
        return ReloadReport(added=("new",), notes=("server.port changed",))

    def _act(self, *what: Any) -> None:
        if self.raises is not None:
            raise self.raises
        self.log.append(what)


@dataclass
class Answer:
    status: int
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.body["error"]) == {"message", "type", "param", "code"}
        return self.body["error"]


Ask = Callable[..., Awaitable[Answer]]


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def app(node: Any, metrics: Any, control: FakeControl) -> web.Application:
    node.embed.info = ModelInfo(
        "org/embedder", "embedding", "/models/embedder", 1700000001, 256, frozenset({"embed"})
    )
    return create_app(node, Registry(), metrics, control=control)


@pytest.fixture
async def ask(app: web.Application) -> AsyncIterator[Ask]:
    """Asks a server with a control: `ask("POST", path, json=...)`."""
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        session = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}")
        )

        async def request(method: str, path: str, **options: Any) -> Answer:
            async with session.request(method, path, **options) as response:
                return Answer(response.status, json.loads(await response.text()))

        yield request


# --- one model -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "options", "level"),
    [
        ("sleep", {}, 1),
        ("sleep?level=2", {}, 2),
        ("sleep", {"json": {"level": 2}}, 2),
        ("sleep", {"json": {"level": None}}, 1),
        ("sleep", {"data": b""}, 1),
        ("sleep?level=1", {"json": {"level": 2}}, 1),
        ("unload", {}, 2),
    ],
)
async def test_a_model_goes_to_sleep(ask, control, path, options, level):
    answer = await ask("POST", f"/models/talker/{path}", **options)
    assert answer == Answer(200, {"model": "talker", "status": "sleeping", "level": level})
    ModelSleepAnswer.model_validate(answer.body)
    assert control.log == [("sleep", "talker", level)]


async def test_the_answer_tells_how_deep_it_sleeps_not_what_was_asked(ask, control):
    control.deep = {"talker"}
    slept = await ask("POST", "/models/talker/sleep?level=1")
    assert slept.body == {"model": "talker", "status": "sleeping", "level": 2}
    assert (await ask("POST", "/sleep?model=talker&level=1")).body == {"status": "sleeping", "level": 2}
    assert (await ask("POST", "/sleep?level=1")).body["level"] == 1, "of several, the lightest sleep"
    control.pinned = {"org/embedder"}
    assert (await ask("POST", "/sleep?level=1")).body["level"] == 2


@pytest.mark.parametrize("path", ["wake_up", "load"])
async def test_a_model_wakes(ask, control, path):
    answer = await ask("POST", f"/models/talker/{path}")
    assert answer == Answer(200, {"model": "talker", "status": "awake"})
    ModelWakeAnswer.model_validate(answer.body)
    assert control.log == [("wake", "talker")]


@pytest.mark.parametrize("name", ["org/embedder", "org%2Fembedder"])
async def test_names_with_slashes(ask, control, name):
    assert (await ask("POST", f"/models/{name}/sleep")).body["model"] == "org/embedder"
    assert (await ask("POST", f"/models/{name}/load")).status == 200
    assert control.log == [("sleep", "org/embedder", 1), ("wake", "org/embedder")]


@pytest.mark.parametrize(
    ("alias", "path"), [("org/talker-v2", "/models/org/talker-v2/sleep"), ("default", "")]
)
async def test_aliases_reach_their_model(ask, control, alias, path):
    assert (await ask("POST", path or f"/sleep?model={alias}")).status == 200
    assert control.log == [("sleep", "talker", 1)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/models/nobody/sleep"),
        ("POST", "/models/nobody/load"),
        ("POST", "/sleep?model=nobody"),
        ("POST", "/wake_up?model=nobody"),
        ("GET", "/is_sleeping?model=nobody"),
    ],
)
async def test_a_model_that_is_not_served(ask, control, method, path):
    answer = await ask(method, path)
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "org/embedder" in answer.error["message"]
    assert control.log == []


@pytest.mark.parametrize("path", ["/models/talker/sleep", "/sleep"])
async def test_levels_that_are_none(ask, control, path):
    for query, options in (
        ("?level=0", {}),
        ("?level=deep", {}),
        ("?level=", {}),
        ("", {"json": {"level": 3}}),
    ):
        answer = await ask("POST", path + query, **options)
        assert (answer.status, answer.error["param"]) == (400, "level"), query
    assert (await ask("POST", path, data=b"{", headers={"Content-Type": "application/json"})).status == 400
    assert control.log == []


async def test_a_pinned_model_says_so(ask, control):
    control.pinned = {"talker"}
    answer = await ask("POST", "/models/talker/sleep")
    assert (answer.status, answer.error["message"]) == (400, "talker is pinned.")


async def test_a_model_that_gets_no_memory(ask, control):
    control.raises = ModelUnavailableError("No room for talker.")
    answer = await ask("POST", "/models/talker/wake_up")
    assert (answer.status, answer.error["message"]) == (503, "No room for talker.")


# --- vLLM's routes ---------------------------------------------------------------------------------------


async def test_one_model_by_query(ask, control):
    slept = await ask("POST", "/sleep?model=org/embedder&level=2&mode=wait")
    assert slept == Answer(200, {"status": "sleeping", "level": 2})
    SleepAnswer.model_validate(slept.body)
    asked = [
        await ask("GET", f"/is_sleeping{query}") for query in ("?model=org/embedder", "?model=talker", "")
    ]
    assert [answer.body for answer in asked] == [{"is_sleeping": yes} for yes in (True, False, True)]
    IsSleepingAnswer.model_validate(asked[0].body)
    woken = await ask("POST", "/wake_up?model=org/embedder&tags=weights&tags=kv_cache")
    assert woken == Answer(200, {"status": "awake", "tags": ["weights", "kv_cache"]})
    assert control.log == [("sleep", "org/embedder", 2), ("wake", "org/embedder")]


async def test_all_models(ask, control):
    control.pinned = {"talker"}
    assert (await ask("POST", "/sleep")).body == {"status": "sleeping", "level": 1}
    assert control.log == [("sleep", "org/embedder", 1)], "pinned models are left out"
    woken = await ask("POST", "/wake_up")
    assert woken == Answer(200, {"status": "awake", "tags": None})
    WakeAnswer.model_validate(woken.body)
    assert control.log[1:] == [("wake", "talker"), ("wake", "org/embedder")]
    assert (await ask("GET", "/is_sleeping")).body == {"is_sleeping": False}


async def test_all_models_where_none_may_or_one_fails(ask, control):
    control.pinned = {"talker", "org/embedder"}
    assert (await ask("POST", "/sleep")).status == 400
    control.pinned, control.raises = {"talker"}, ModelUnavailableError("It failed.")
    assert (await ask("POST", "/sleep")).status == 503


async def test_models_that_have_no_room_together_are_told_as_they_are_in_the_end(ask, control):
    control.displaces = {"org/embedder": "talker"}
    woken = await ask("POST", "/wake_up?tags=weights")
    models = {"talker": "sleeping", "org/embedder": "awake"}
    assert woken == Answer(200, {"status": "sleeping", "tags": ["weights"], "models": models})
    WakeAnswer.model_validate(woken.body)


async def test_a_model_that_cant_wake_up_stops_no_other(ask, control):
    control.asleep, control.broken = {"talker", "org/embedder"}, {"talker"}
    woken = await ask("POST", "/wake_up")
    assert (woken.status, woken.error["message"]) == (503, "talker is broken.")
    assert control.asleep == {"talker"}


@pytest.mark.parametrize("mode", ["abort", "keep"])
async def test_modes_that_are_not_offered(ask, control, mode):
    answer = await ask("POST", f"/sleep?mode={mode}")
    assert (answer.status, answer.error["param"]) == (400, "mode")
    assert control.log == []


# --- the registry and the ledger -------------------------------------------------------------------------


async def test_reload(ask, control):
    answer = await ask("POST", "/-/reload")
    assert answer.status == 200
    assert answer.body == {"added": ["new"], "removed": [], "changed": [], "notes": ["server.port changed"]}
    ReloadAnswer.model_validate(answer.body)
    control.raises = InvalidRegistryError("registry.yaml:3:5: models[0].name: is missing")
    answer = await ask("POST", "/-/reload")
    assert (answer.status, answer.error["type"]) == (400, "BadRequestError")
    assert answer.error["message"] == "registry.yaml:3:5: models[0].name: is missing"


async def test_the_ledger(ask):
    answer = await ask("GET", "/admin/pool")
    assert answer.status == 200
    (card,) = answer.body["cards"]
    assert (card["card"], card["free_pages"], card["recalls"]) == ("card0", 40, {"talker": 2})
    assert card["models"][0]["borrowed_pages"] == 4
    assert PoolAnswer.model_validate(answer.body).cards == [LEDGER]


async def test_what_a_reload_may_change_of_the_gateway(app, ask):
    server = ServerSpec(admin_key="sesame", allowed_origins=("https://a.example",), max_queued_requests=7)
    assert (await ask("GET", "/admin/pool")).status == 200
    app[GATEWAY].configure(server)
    assert (await ask("GET", "/admin/pool")).status == 401
    assert (await ask("GET", "/admin/pool", headers={"x-api-key": "sesame"})).status == 200
    assert app[GATEWAY].admission.limit == 7


async def test_a_node_that_takes_no_orders(client):
    for method, path in (("POST", "/models/talker/sleep"), ("GET", "/is_sleeping"), ("POST", "/-/reload")):
        reply = await client.request(method, path)
        assert (reply.status, reply.error["type"]) == (501, "NotImplementedError")
    assert (await client.get("/models/talker/sleep")).status == 405


async def test_the_document_names_the_parameters(client):
    paths = (await client.get("/openapi.json")).body["paths"]
    sleep = paths["/models/{name}/sleep"]["post"]
    assert [(p["name"], p["in"], p["required"]) for p in sleep["parameters"]] == [
        ("name", "path", True),
        ("level", "query", False),
    ]
    assert sleep["requestBody"]["required"] is False
    assert paths["/v1/models/{id}"]["get"]["parameters"][0]["name"] == "id"
