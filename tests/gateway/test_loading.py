"""What a server answers whose models are still being fetched and loaded."""

import pytest

from onecard.gateway.context import GATEWAY
from onecard.gateway.loading import LoadingNode
from onecard.gateway.routes.table import ROUTES
from onecard.registry.spec import ModelSpec, Registry

NEED_MODELS = [row for row in ROUTES.rows if not (row.early or row.access == "open")]


@pytest.fixture
def node() -> LoadingNode:
    return LoadingNode(Registry(models=(ModelSpec("a"), ModelSpec("b", "embedding"))))


def path_of(row) -> str:
    return row.path.replace("{id:.+}", "a").replace("{name:.+}", "a")


async def test_it_lives_and_says_what_is_loading_and_how_far_it_is(client, node):
    node.loaded("a", 50, 200)
    assert (await client.get("/health/live")).body == {"status": "starting"}
    for path in ("/health", "/health/ready", "/v1/health/ready", "/readyz"):
        reply = await client.get(path)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert reply.body == {
            "status": "starting",
            "models": [
                {"model": "a", "stage": "loading", "progress": 0.25},
                {"model": "b", "stage": "waiting", "progress": None},
            ],
        }
    assert (await client.get("/ping")).status == 503


@pytest.mark.parametrize("row", NEED_MODELS, ids=lambda row: f"{row.method} {row.path}")
async def test_what_needs_models_is_answered_503_with_when_to_come_again(client, node, row):
    node.turn("b", "fetching", 1000)
    node.advance("b", 420)
    reply = await client.request(row.method, path_of(row), json={"model": "a"} if row.request else None)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert reply.error["type"] == "ServiceUnavailableError"
    assert "The server is starting: fetching b (42 %)." in reply.error["message"]


async def test_what_needs_no_models_is_answered(client):
    for path in ("/version", "/metrics", "/openapi.json"):
        assert (await client.get(path)).status == 200
    status = (await client.get("/admin/status")).body
    assert status["state"] == "starting"
    assert [(model["name"], model["state"]) for model in status["models"]] == [
        ("a", "loading"),
        ("b", "loading"),
    ]


async def test_who_may_ask_and_what_there_is_holds_already(serve):
    client = await serve(api_keys=("sesame",))
    assert (await client.get("/v1/models")).status == 401
    assert (await client.get("/v1/models", headers={"Authorization": "Bearer sesame"})).status == 503
    assert (await client.get("/nowhere", headers={"Authorization": "Bearer sesame"})).status == 404


async def test_once_they_are_loaded_it_answers(client, loaded_node):
    client.app[GATEWAY].serve(loaded_node, None)
    assert (await client.get("/health/ready")).body == {"status": "ready"}
    assert (await client.get("/ping")).status == 200
    asked = {"model": "talker", "messages": [{"role": "user", "content": "Hi"}]}
    assert (await client.post("/v1/chat/completions", asked)).status == 200


async def test_a_model_whose_successor_loads_is_loaded(node):
    node.loaded("a", 7, 7)
    node.loaded("a", 1, 4, "graphs")
    assert str(node.starts["a"]) == "capturing a (25 %)"
    node.loaded("b", 1, 4)
    assert [start["stage"] for start in node.progress()] == ["loaded", "loading"]


async def test_who_polls_a_starting_server_does_not_fill_its_log(client, caplog):
    assert (await client.get("/v1/models")).status == 503
    assert caplog.messages == []
