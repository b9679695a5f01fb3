import asyncio
import socket

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from onecard.gateway.app import create_app
from onecard.gateway.http.keyless import is_local
from onecard.gateway.routes.table import ROUTES
from onecard.registry.spec import Registry

KEYS = ("first-key", "zweiter-schlüssel", "")
INFERENCE = [
    ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("POST", "/v1/completions", {"prompt": "Hi"}),
    ("POST", "/v1/embeddings", {"input": "Hi"}),
    ("POST", "/v1/rerank", {"query": "Hi", "documents": ["a"]}),
    ("POST", "/rerank", {"query": "Hi", "documents": ["a"]}),
    ("POST", "/tokenize", {"model": "talker", "prompt": "Hi"}),
    ("POST", "/detokenize", {"model": "talker", "tokens": [1]}),
    ("GET", "/tokenizer_info", None),
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
async def test_every_inference_path_wants_a_key(guarded, node, judge, method, path, body):
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
    assert node.chat.requests == judge.requests == []
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
ODD_SPELLINGS = [
    "/sleep/",
    "/sleep//",
    "//sleep",
    "/%73leep",
    "/sleep/now",
    "/wake_up/",
    "/is_sleeping/",
    "/models/talker/sleep/",
    "/models//talker/unload",
    "/models/org/talker/wake_up//",
    "//models/talker/sleep",
    "/models%2Ftalker%2Fsleep",
    "/admin",
    "/admin/",
    "/admin//status",
    "/%61dmin/status/",
    "/-",
    "/-/reload/",
    "/-//reload",
]
FORWARDED = [
    {"X-Forwarded-For": "203.0.113.9"},
    {"Forwarded": "for=203.0.113.9"},
    {"x-real-ip": "203.0.113.9"},
    {"Via": "1.1 proxy"},
    {"X-Forwarded-Host": "models.example"},
    {"X-Forwarded-Proto": "https"},
    {"CF-Connecting-IP": "203.0.113.9"},
    {"Host": "models.example"},
]
OWN_HOSTS = ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:8000", "127.1.2.3", "[::1]", "[::1]:8000"]
OTHER_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example:8000",
    "192.168.0.7:8000",
    "[2001:db8::1]:8000",
    "[::1",
    "localhost:8000, evil.example",
    "evil.example@localhost",
    "localhost/evil.example",
    "localhost:evil.example",
]


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_every_admin_path_wants_the_admin_key(serve, method, path):
    guarded = await serve(api_keys=KEYS, admin_key="sesame")
    for headers in ({}, {"x-api-key": "first-key"}, {"Authorization": "Bearer sesam"}, *FORWARDED):
        reply = await guarded.request(method, path, headers=headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), headers
    for headers in ({"x-api-key": "sesame"}, {"Authorization": "Bearer sesame", **FORWARDED[0]}):
        assert (await guarded.request(method, path, headers=headers)).status in (200, 501)


@pytest.mark.parametrize("path", ODD_SPELLINGS)
async def test_no_other_spelling_of_an_admin_path_opens_with_an_api_key(serve, path):
    guarded = await serve(api_keys=KEYS, admin_key="sesame")
    for method in ("GET", "POST"):
        assert await raw_status(guarded.port, method, path, {"x-api-key": "first-key"}) == 401
        assert await raw_status(guarded.port, method, path, {"x-api-key": "sesame"}) in (404, 405, 501)


def test_every_route_is_one_or_the_other():
    def paths(*access):
        rows = [row for row in ROUTES.rows if row.access in access]
        return {row.path.replace("{name:.+}", "talker").replace("{id:.+}", "talker") for row in rows}

    assert paths("admin") == {path for _, path in ADMIN}
    assert paths("key") == {path for _, path, _ in INFERENCE}
    assert paths("open") == {*OPEN, "/", "/version", "/metrics", "/ping"}
    assert not [path for path in paths("key", "open") if ROUTES.is_admin(path)]


async def raw_status(
    port: int, method: str, path: str, headers: dict[str, str], host: str = "x", address: str = "127.0.0.1"
) -> int:
    """Of a request whose path no client has tidied."""
    reader, writer = await asyncio.open_connection(address, port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


@pytest.mark.parametrize(("method", "path"), ADMIN)
@pytest.mark.parametrize("forwarded", FORWARDED)
async def test_admin_without_its_key_is_for_this_machine_only(guarded, method, path, forwarded):
    for headers in (forwarded, {**forwarded, "x-api-key": "first-key"}):
        reply = await guarded.request(method, path, headers=headers)
        assert (reply.status, reply.error["type"]) == (403, "PermissionDeniedError")
        assert "`admin_key`" in reply.error["message"]
        assert "Set `server.admin_key`" in reply.error["message"]
    assert (await guarded.request(method, path)).status in (200, 501)


@pytest.mark.parametrize("host", OWN_HOSTS)
async def test_admin_without_its_key_answers_to_this_machines_names(client, host):
    assert await raw_status(client.port, "GET", "/admin/status", {}, host) == 200


@pytest.mark.parametrize("host", OTHER_HOSTS)
async def test_admin_without_its_key_answers_to_no_other_name(client, host):
    """A site whose name means this machine by now (DNS rebinding) may read what its browser gets."""
    assert await raw_status(client.port, "GET", "/admin/status", {}, host) == 403
    assert await raw_status(client.port, "POST", "/models/talker/sleep", {}, host) == 403


async def test_under_any_name_and_through_any_proxy_with_the_admin_key(serve):
    keyed = await serve(admin_key="sesame")
    for headers in ({}, *FORWARDED):
        assert (await keyed.get("/admin/status", headers={**headers, "x-api-key": "sesame"})).status == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
async def test_listening_on_both_families_this_machine_stays_local(node, metrics):
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        runner = web.AppRunner(create_app(node, Registry(), metrics), access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            assert await raw_status(port, "GET", "/admin/status", {}, "localhost", address) == 200
        await runner.cleanup()


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
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_what_is_this_machine(remote, local):
    assert is_local(make_mocked_request("GET", "/").clone(remote=remote)) is local
