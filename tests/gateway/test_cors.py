"""Pages in browsers: preflights need no key, answers and errors are readable for the pages that may."""

import pytest

ASK = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
HERE = ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"]
ELSEWHERE = ["https://evil.example", "http://localhost.evil.example", "null", "http://[", "file://"]


@pytest.mark.parametrize("origin", HERE)
async def test_pages_of_this_machine_may_call(serve, origin):
    client = await serve(api_keys=("key",))
    asked = await client.request("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **ASK})
    assert asked.status == 204
    assert asked.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    assert asked.headers["Access-Control-Allow-Headers"] == ASK["Access-Control-Request-Headers"]
    refused = await client.request("GET", "/v1/models", headers={"Origin": origin})
    assert refused.status == 401  # the preflight opens nothing; the page can read why
    assert refused.headers["Access-Control-Allow-Origin"] == origin
    served = await client.request(
        "GET", "/v1/models", headers={"Origin": origin, "Authorization": "Bearer key"}
    )
    assert (served.status, served.headers["Vary"]) == (200, "Origin")
    assert "X-Request-Id" in served.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("origin", ELSEWHERE)
async def test_other_pages_may_not(serve, origin):
    client = await serve()
    asked = await client.request("OPTIONS", "/v1/chat/completions", headers={"Origin": origin, **ASK})
    assert asked.status == 403
    answer = await client.request("GET", "/v1/models", headers={"Origin": origin})
    for reply in (asked, answer):
        assert "Access-Control-Allow-Origin" not in reply.headers


async def test_the_registry_names_more_pages(serve):
    client = await serve(allowed_origins=("https://chat.example.org",))
    for origin, may in (("https://chat.example.org", True), ("https://chat.example.org:444", False)):
        reply = await client.request("GET", "/v1/models", headers={"Origin": origin})
        assert ("Access-Control-Allow-Origin" in reply.headers) is may
    client = await serve(allowed_origins=("*",))
    asked = await client.request("OPTIONS", "/v1/embeddings", headers={"Origin": ELSEWHERE[0], **ASK})
    assert (asked.status, asked.headers["Access-Control-Allow-Origin"]) == (204, ELSEWHERE[0])


async def test_streams_are_readable_and_admin_is_for_no_page(serve):
    client = await serve(allowed_origins=("*",))
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    stream = await client.request("POST", "/v1/chat/completions", json=body, headers={"Origin": HERE[0]})
    assert (stream.status, stream.headers["Access-Control-Allow-Origin"]) == (200, HERE[0])
    status = await client.request("GET", "/admin/status", headers={"Origin": HERE[0]})
    assert "Access-Control-Allow-Origin" not in status.headers
    plain = await client.request("GET", "/v1/models")
    assert "Access-Control-Allow-Origin" not in plain.headers
