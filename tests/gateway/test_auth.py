import pytest
from aiohttp.test_utils import make_mocked_request

from onecard.gateway.auth import _is_local

KEYS = ("first-key", "zweiter-schlüssel", "")
INFERENCE = [
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("POST", "/v1/completions", {"prompt": "Hi"}),
    ("POST", "/v1/embeddings", {"input": "Hi"}),
    ("POST", "/tokenize", {"model": "talker", "prompt": "Hi"}),
    ("POST", "/detokenize", {"model": "talker", "tokens": [1]}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/talker", None),
    ("GET", "/openapi.json", None),
]
OPEN = [
    "/health",
    "/health/live",
    "/health/ready",
    "/healthz",
    "/readyz",
    "/v1/health/live",
    "/v1/health/ready",
]


@pytest.fixture
async def guarded(serve):
    return await serve(api_keys=KEYS)


@pytest.mark.parametrize(("method", "path", "body"), INFERENCE)
async def test_every_inference_path_wants_a_key(guarded, node, method, path, body):
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic first-key"},
        {"x-api-key": "first-ke"},
        {"x-api-key": ""},
    ):
        reply = await guarded.request(method, path, json=body, headers=headers)
        assert reply.status == 401, (path, headers)
        assert (reply.error["code"], reply.error["type"]) == ("invalid_api_key", "AuthenticationError")
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    assert node.chat.requests == []
    for headers in ({"Authorization": "Bearer first-key"}, {"x-api-key": "first-key"}):
        assert (await guarded.request(method, path, json=body, headers=headers)).status == 200


async def test_keys_beyond_ascii(guarded):
    headers = {"x-api-key": "zweiter-schlüssel"}
    assert (await guarded.get("/v1/models", headers=headers)).status == 200


@pytest.mark.parametrize("path", [*OPEN, "/version", "/metrics", "/ping"])
async def test_probes_are_open(guarded, path):
    assert (await guarded.get(path)).status == 200


async def test_unknown_paths_are_closed(guarded):
    assert (await guarded.get("/v1/nothing")).status == 401


async def test_admin_answers_this_machine_without_a_key(guarded):
    assert (await guarded.get("/admin/status")).status == 200


ADMIN = [
    ("GET", "/admin/status"),
    ("GET", "/admin/pool"),
    ("POST", "/models/talker/sleep"),
    ("POST", "/models/talker/unload"),
    ("POST", "/models/talker/wake_up"),
    ("POST", "/models/talker/load"),
    ("POST", "/sleep"),
    ("POST", "/wake_up"),
    ("GET", "/is_sleeping"),
    ("POST", "/-/reload"),
]
FORWARDED = [{"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}]


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_every_admin_path_wants_the_admin_key(serve, method, path):
    guarded = await serve(api_keys=KEYS, admin_key="sesame")
    for headers in ({}, {"x-api-key": "first-key"}, {"Authorization": "Bearer sesam"}, *FORWARDED):
        reply = await guarded.request(method, path, headers=headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), headers
    for headers in ({"x-api-key": "sesame"}, {"Authorization": "Bearer sesame", **FORWARDED[0]}):
        assert (await guarded.request(method, path, headers=headers)).status in (200, 501)


@pytest.mark.parametrize(("method", "path"), ADMIN)
@pytest.mark.parametrize("forwarded", FORWARDED)
async def test_admin_without_its_key_is_for_this_machine_only(guarded, method, path, forwarded):
    for headers in (forwarded, {**forwarded, "x-api-key": "first-key"}):
        reply = await guarded.request(method, path, headers=headers)
        assert (reply.status, reply.error["type"]) == (403, "PermissionDeniedError")
        assert "`admin_key`" in reply.error["message"]
    assert (await guarded.request(method, path)).status in (200, 501)


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000"])
async def test_without_a_key_no_web_page_commands(client, serve, origin):
    for method, path in ADMIN:
        status = (await client.request(method, path, headers={"Origin": origin})).status
        assert (status == 403) is (method == "POST"), path
    keyed = await serve(admin_key="sesame")
    reply = await keyed.request("POST", "/sleep", headers={"Origin": origin, "x-api-key": "sesame"})
    assert reply.status == 501


async def test_the_admin_key_opens_no_inference(serve):
    guarded = await serve(api_keys=KEYS, admin_key="sesame")
    assert (await guarded.get("/v1/models", headers={"x-api-key": "sesame"})).status == 401


async def test_an_admin_key_alone_closes_no_inference(serve):
    guarded = await serve(admin_key="sesame")
    assert (await guarded.get("/v1/models")).status == 200


@pytest.mark.parametrize(
    ("remote", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("example.org", False)],
)
def test_what_is_this_machine(remote, local):
    assert _is_local(make_mocked_request("GET", "/").clone(remote=remote)) is local
