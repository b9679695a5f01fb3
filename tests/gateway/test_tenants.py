"""The prefix cache tells no client what another has asked: its salt hangs on the key."""

import pytest

KEYS = ("first", "second")
ROUTES = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
    ("/v1/completions", {"prompt": "Hi"}),
]


async def salts(client, node, path, body, *keys):
    """Of requests with these keys, None without one, in order."""
    node.chat.requests.clear()
    for key in keys:
        headers = {} if key is None else {"x-api-key": key}
        assert (await client.post(path, body, headers=headers)).status == 200
    return [request.cache_salt for request in node.chat.requests]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_clients_with_different_keys_share_no_prefix(serve, node, path, body):
    client = await serve(api_keys=KEYS)
    first, again, second = await salts(client, node, path, body, "first", "first", "second")
    assert first == again
    assert first != second
    assert None not in (first, second)


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_a_salt_of_the_clients_own_parts_its_requests_further_and_reaches_nobody_elses(
    serve, node, path, body
):
    client = await serve(api_keys=KEYS)
    plain = await salts(client, node, path, body, *KEYS)
    salted = await salts(client, node, path, {**body, "cache_salt": "pepper"}, *KEYS)
    stolen = await salts(client, node, path, {**body, "cache_salt": plain[0]}, *KEYS)
    assert len({*plain, *salted, *stolen}) == 6


async def test_the_key_itself_is_nowhere_in_it(serve, node):
    client = await serve(api_keys=KEYS)
    [salt] = await salts(client, node, *ROUTES[0], "second")
    assert "second" not in salt


@pytest.mark.parametrize("server", [{"api_keys": KEYS, "share_prefix_cache": True}, {}])
async def test_without_keys_or_where_the_registry_says_so_prefixes_are_shared(serve, node, server):
    client = await serve(**server)
    assert await salts(client, node, *ROUTES[0], *KEYS) == [None, None]
    salted = (ROUTES[0][0], {**ROUTES[0][1], "cache_salt": "pepper"})
    assert await salts(client, node, *salted, *KEYS) == ["pepper", "pepper"]


async def test_a_bad_salt_is_refused_with_a_key_too(serve):
    client = await serve(api_keys=KEYS)
    path, body = ROUTES[0]
    reply = await client.post(path, {**body, "cache_salt": "a/b"}, headers={"x-api-key": "first"})
    assert (reply.status, reply.error["param"]) == (400, "cache_salt")
