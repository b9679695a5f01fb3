"""A server without keys is for its machine and network, not for the web pages that their browsers show."""

import json
import socket

import pytest
from test_auth import ADMIN, INFERENCE, raw_status

NEAR = [
    "localhost:8000",
    "127.0.0.1",
    "[::1]:8000",
    "192.168.1.5:8000",
    "[2001:db8::1]",
    "onecard:8000",
    "ONECARD",
    "app.localhost:8000",
    "gpu-box.local",
    "host.docker.internal:8000",
    "onecard.default.svc.cluster.local",
    "box.home.arpa",
    "box.local.",
    socket.gethostname(),
]
FAR = [
    "evil.example:8000",
    "evil.example.",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost@evil.example",
    "local.evil",
    ".local",
    "notlocal.evil.example",
    "[::1",
    "onecard, evil.example",
    "",
]
FOREIGN = ["https://evil.example", "http://evil.example:8000", "null", "file://", "http://192.168.1.9:3000"]
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("host", NEAR)
async def test_addresses_and_names_of_the_machine_and_its_network_are_answered(client, host):
    assert await raw_status(client.port, "GET", "/v1/models", {}, host) == 200


@pytest.mark.parametrize("host", FAR)
async def test_a_name_that_any_site_could_have_is_answered_on_no_route(client, node, host):
    for method, path, _ in INFERENCE:
        assert await raw_status(client.port, method, path, {}, host) in (400, 403), path
    assert node.chat.requests == []


async def test_the_refusal_says_what_to_write(client):
    reply = await client.get("/v1/models", headers={"Host": "models.example.org"})
    assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")
    assert "'models.example.org'" in reply.error["message"]
    assert "`server.allowed_hosts`" in reply.error["message"]


@pytest.mark.parametrize("allowed", [("models.example.org",), ("Models.Example.ORG", "b"), ("*",)])
async def test_the_registry_names_further_hosts(serve, allowed):
    client = await serve(allowed_hosts=allowed)
    assert await raw_status(client.port, "GET", "/v1/models", {}, "models.example.org:8000") == 200
    others = await raw_status(client.port, "GET", "/v1/models", {}, "evil.example")
    assert others == (200 if "*" in allowed else 403)
    assert await raw_status(client.port, "GET", "/admin/status", {}, "models.example.org") == 403


async def test_the_name_that_it_listens_on_is_its_own(serve):
    client = await serve(host="gpu.example.org")
    assert await raw_status(client.port, "GET", "/v1/models", {}, "gpu.example.org") == 200


async def test_with_keys_any_name_will_do(serve):
    client = await serve(api_keys=("sesame",))
    headers = {"x-api-key": "sesame", "Origin": "https://evil.example"}
    assert await raw_status(client.port, "GET", "/v1/models", headers, "evil.example") == 200


async def test_probes_answer_to_any_name(client):
    for path in ("/health", "/metrics", "/version"):
        assert await raw_status(client.port, "GET", path, {}, "evil.example") == 200


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_foreign_page_reaches_no_model_whatever_it_leaves_out(client, node, origin):
    for method, path, body in INFERENCE:
        data = None if body is None else json.dumps(body).encode()
        reply = await client.request(
            method, path, data=data, headers={"Origin": origin}, skip_auto_headers=["Content-Type"]
        )
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed"), path
        assert "`server.allowed_origins`" in reply.error["message"]
    assert node.chat.requests == node.embed.requests == []


@pytest.mark.parametrize(
    ("origin", "server"),
    [
        ("http://localhost:3000", {}),
        ("tauri://localhost", {}),
        ("https://chat.example.org", {"allowed_origins": ("https://chat.example.org",)}),
        ("https://evil.example", {"allowed_origins": ("*",)}),
    ],
)
async def test_pages_that_may_call_still_may(serve, origin, server):
    client = await serve(**server)
    headers = {"Origin": origin, "Content-Type": "application/json"}
    reply = await client.request("POST", CHAT, data=BODY, headers=headers)
    assert reply.status == 200
    assert reply.headers["Access-Control-Allow-Origin"] == origin


async def test_a_page_of_the_same_address_is_no_stranger(client):
    headers = {"Host": "192.168.1.5:8000", "Origin": "http://192.168.1.5:8000"}
    assert (await client.get("/v1/models", headers=headers)).status == 200
    rebound = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
    assert (await client.get("/v1/models", headers=rebound)).status == 403


PROXIES = [
    "X-Forwarded-For",
    "X-Original-Forwarded-For",
    "X-Azure-ClientIP",
    "Fly-Client-IP",
    "DO-Connecting-IP",
    "X-Scheme",
    "X-Amzn-Trace-Id",
    "X-Request-Start",
    "Ngrok-Trace-Id",
    "Anything-At-All",
]


@pytest.mark.parametrize("header", PROXIES)
async def test_without_its_key_admin_trusts_no_header_it_does_not_know(client, header):
    for method, path in ADMIN:
        reply = await client.request(method, path, headers={header: "203.0.113.9"})
        assert (reply.status, header in reply.error["message"]) == (403, True)


@pytest.mark.parametrize(
    "headers",
    [
        {"User-Agent": "curl/8", "Accept": "*/*"},
        {"Sec-Fetch-Site": "none", "Sec-CH-UA": "x", "DNT": "1", "Upgrade-Insecure-Requests": "1"},
        {"X-Stainless-Lang": "python", "Authorization": "Bearer unused"},
    ],
)
async def test_clients_of_this_machine_are_known_by_what_they_send(client, headers):
    assert (await client.get("/admin/status", headers=headers)).status == 200
