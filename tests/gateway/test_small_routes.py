"""tokenize, detokenize, models, health, version, metrics, openapi.json, admin/status."""

import pytest
from jsonschema import Draft202012Validator

from onecard.gateway.routes.table import ROUTES


async def test_tokenize_prompt(client):
    reply = await client.post("/tokenize", {"model": "talker", "prompt": "Hi"})
    assert reply.body == {"count": 3, "max_model_len": 512, "tokens": [256, 72, 105], "token_strs": None}


async def test_tokenize_without_special_tokens_and_with_strings(client):
    body = {"model": "embedder", "prompt": "Hi", "add_special_tokens": False, "return_token_strs": True}
    reply = await client.post("/tokenize", body)
    assert reply.body == {"count": 2, "max_model_len": 256, "tokens": [72, 105], "token_strs": ["ĠH", "Ġi"]}


async def test_tokenize_messages(client):
    reply = await client.post(
        "/tokenize", {"model": "talker", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert bytes(reply.body["tokens"]) == b"user: Hi\n"


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}])
async def test_tokenize_takes_one_of_both(client, body):
    reply = await client.post("/tokenize", {"model": "talker", **body})
    assert (reply.status, reply.error["param"]) == (400, "prompt")


async def test_tokens_need_no_model_where_one_talks(client, judge):
    assert (await client.post("/tokenize", {"prompt": "a"})).body["max_model_len"] == 512
    assert (await client.post("/detokenize", {"tokens": [97]})).body == {"prompt": "a"}
    assert (await client.get("/tokenizer_info")).body["model_max_length"] == 512


async def test_tokens_need_a_model_where_two_talk_or_none_of_several(client, node, judge, second_talker):
    for engines in ([node.chat, second_talker], [node.embed, judge]):
        node.engines = engines
        names = ", ".join(engine.info.name for engine in engines)
        for reply in (
            await client.post("/tokenize", {"prompt": "a"}),
            await client.post("/detokenize", {"tokens": [97]}),
            await client.get("/tokenizer_info"),
        ):
            assert (reply.status, reply.error["param"]) == (400, "model")
            assert names in reply.error["message"]


async def test_tokens_need_no_model_where_there_is_one_of_any_kind(client, node):
    node.engines = [node.embed]
    assert (await client.post("/tokenize", {"prompt": "a"})).body["max_model_len"] == 256


async def test_tokenizer_info_of_a_named_model(client):
    reply = await client.get("/tokenizer_info?model=embedder")
    assert (reply.status, reply.body["model_max_length"]) == (200, 256)
    assert {"tokenizer_class", "bos_token", "chat_template"} <= reply.body.keys()
    reply = await client.get("/tokenizer_info?model=nobody")
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


async def test_detokenize(client):
    reply = await client.post("/detokenize", {"model": "talker", "tokens": [72, 105]})
    assert reply.body == {"prompt": "Hi"}
    assert (await client.post("/detokenize", {"model": "talker", "tokens": []})).body == {"prompt": ""}


@pytest.mark.parametrize("tokens", [None, "x", [-1], [1.5], [True], ["a"], [2**40], {}])
async def test_detokenize_takes_token_ids_only(client, tokens):
    reply = await client.post("/detokenize", {"model": "talker", "tokens": tokens})
    assert (reply.status, reply.error["param"]) == (400, "tokens")


async def test_models(client):
    reply = await client.get("/v1/models")
    cards = reply.body["data"]
    assert [card["id"] for card in cards] == ["talker", "default", "org/talker-v2", "embedder"]
    assert [card["root"] for card in cards[1:3]] == ["talker", "talker"]
    card = cards[0]
    assert card["created"] == 1700000000
    assert card["max_model_len"] == 512
    assert card["root"] == "/models/talker"
    assert card["aliases"] == ["default", "org/talker-v2"]
    assert [card["tasks"] for card in cards] == [["generate"]] * 3 + [["embed"]]


@pytest.mark.parametrize("name", ["talker", "default", "org/talker-v2", "org%2Ftalker-v2"])
async def test_model_by_name_and_alias(client, name):
    reply = await client.get(f"/v1/models/{name}")
    assert reply.status == 200
    assert reply.body["id"] == name.replace("%2F", "/")
    assert reply.body["root"] == ("/models/talker" if name == "talker" else "talker")


async def test_unknown_model(client):
    for reply in (
        await client.get("/v1/models/nobody"),
        await client.post("/v1/completions", {"model": "nobody", "prompt": "a"}),
    ):
        assert reply.status == 404
        assert reply.error == {
            "message": "The model `nobody` does not exist. "
            "Valid aliases: talker, default, org/talker-v2, embedder.",
            "type": "NotFoundError",
            "param": "model",
            "code": "model_not_found",
        }


READY = ["/health", "/health/ready", "/v1/health/ready", "/readyz"]
LIVE = ["/health/live", "/v1/health/live", "/healthz"]


@pytest.mark.parametrize(
    ("state", "ready", "live"),
    [("ready", 200, 200), ("draining", 503, 200)],
)
async def test_health(client, node, state, ready, live):
    node.state = state
    assert {(await client.get(path)).status for path in READY} == {ready}
    assert {(await client.get(path)).status for path in LIVE} == {live}


async def test_probes_are_not_counted_however_they_are_spelt(client, metrics):
    for row in ROUTES.rows:
        if row.access == "open":
            await client.request(row.method, row.path, check=False)
    assert metrics.requests == []
    await client.get("/v1/models")
    assert [request[0] for request in metrics.requests] == ["/v1/models"]


async def test_ping_version_and_metrics(client):
    assert (await client.get("/ping")).status == 200
    assert (await client.request("POST", "/ping")).status == 200
    assert set((await client.get("/version")).body) == {"version"}
    reply = await client.get("/metrics")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert reply.text.startswith("vllm:num_requests_running")


async def test_admin_status(client):
    reply = await client.get("/admin/status")
    assert reply.body["state"] == "ready"
    assert reply.body["cards"][0]["pages_free"] == 5
    health = reply.body["cards"][0]["health"]
    assert (health["source"], health["used_bytes"], health["temperature_c"]) == ("psutil", 60, None)
    assert [row["name"] for row in reply.body["models"]] == ["talker", "embedder"]


async def test_openapi_describes_every_route(client):
    document = (await client.get("/openapi.json")).body
    assert {(row.published, row.method.lower()) for row in ROUTES.rows} == {
        (path, method) for path, methods in document["paths"].items() for method in methods
    }
    keys = document["components"]["securitySchemes"]
    assert (keys["bearer"]["scheme"], keys["x-api-key"]["name"]) == ("bearer", "x-api-key")
    assert document["security"] == [{}, {"bearer": []}, {"x-api-key": []}]
    sleep = {asked["name"]: asked["schema"] for asked in document["paths"]["/sleep"]["post"]["parameters"]}
    assert (sleep["level"]["enum"], sleep["mode"]["enum"], sleep["model"]) == (
        [1, 2],
        ["wait"],
        {"type": "string"},
    )
    [_, tags] = document["paths"]["/wake_up"]["post"]["parameters"]
    assert tags["schema"]["type"] == "array"
    for row in ROUTES.rows:
        path = row.published.replace("{id}", "talker")
        reply = await client.request(row.method, path, check=False)
        assert reply.status not in (404, 405), path


async def test_openapi_names_the_header_for_priority_where_the_body_takes_one(client):
    paths = (await client.get("/openapi.json")).body["paths"]
    named = {
        path: (parameter["in"], parameter["required"], parameter["schema"]["type"])
        for path, methods in paths.items()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
        if parameter["name"] == "X-Priority"
    }
    takes = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/rerank")
    takes += ("/tokenize", "/detokenize")
    assert named == dict.fromkeys(takes, ("header", False, "integer"))


async def test_openapi_tells_what_contents_and_prompts_may_be(client):
    components = (await client.get("/openapi.json")).body["components"]

    def takes(name, body):
        schema = {"$ref": f"#/components/schemas/{name}", "components": components}
        return Draft202012Validator(schema).is_valid(body)

    mixed = [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]
    for body in ({"messages": mixed}, {"messages": [{"role": "user", "content": ["a"]}]}):
        assert takes("ChatRequest", body)
        assert (await client.post("/v1/chat/completions", body)).status == 200
    both = {"prompt": "a", "messages": mixed}
    for body, right in (({"prompt": "a"}, True), ({"messages": mixed}, True), (both, False), ({}, False)):
        assert takes("TokenizeRequest", body) is right
        reply = await client.post("/tokenize", {"model": "talker", **body})
        assert reply.status == (200 if right else 400)


async def test_openapi_tells_who_may_ask(client):
    document = (await client.get("/openapi.json")).body
    for row in ROUTES.rows:
        told = document["paths"][row.published][row.method.lower()]
        assert (told.get("security") == []) == (row.access == "open")
        assert told["tags"] == [{"key": "models", "open": "health", "admin": "operating"}[row.access]]


async def test_openapi_tells_which_fields_are_refused_ignored_and_nullable(client):
    document = (await client.get("/openapi.json")).body
    chat = {"$ref": "#/components/schemas/ChatRequest", "components": document["components"]}
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    takes = Draft202012Validator(chat).is_valid
    for name, value, taken in [
        ("grammar", "root ::= a", False),
        ("grammar", "", True),
        ("chat_template", "{{ 1 }}", False),
        ("include_reasoning", True, True),
        ("include_reasoning", 1, False),
        ("metadata", {"a": "b"}, True),
        ("n", None, True),
        ("n", 0, False),
        ("stop", None, True),
        ("stream_options", None, True),
        ("temperature", None, True),
        ("messages", None, False),
    ]:
        body = {**asked, name: value}
        assert takes(body) == taken, (name, value)
        assert ((await client.post("/v1/chat/completions", body)).status == 200) == taken, (name, value)


async def test_openapi_schemas_are_sound(client):
    document = (await client.get("/openapi.json")).body
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    chat = {"$ref": "#/components/schemas/ChatRequest", "components": document["components"]}
    validator = Draft202012Validator(chat)
    assert validator.is_valid(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stop": "x"}
    )
    assert not validator.is_valid({"messages": [{"role": "user", "content": 3}]})
