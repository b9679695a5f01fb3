import asyncio

import pytest

from onecard.engines.api import InvalidRequestError

PATH = "/v1/completions"
TEXT = 'Hello wörld"!\n'


async def test_answer_has_openai_shape(client, node):
    reply = await client.post(PATH, {"model": "talker", "prompt": "Hi"})
    assert reply.status == 200
    assert reply.body["id"].startswith("cmpl-")
    assert reply.body["object"] == "text_completion"
    assert reply.body["choices"] == [
        {
            "index": 0,
            "text": TEXT,
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
            "prompt_logprobs": None,
        }
    ]
    assert reply.body["usage"]["prompt_tokens"] == 3
    sampling = node.chat.requests[0].sampling
    assert (sampling.max_tokens, node.chat.requests[0].add_special_tokens) == (16, True)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", ["Hi"]),
        (["a", "b"], ["a", "b"]),
        ([72, 105], [(72, 105)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_forms_of_prompt(client, node, prompt, expected):
    assert (await client.post(PATH, {"prompt": prompt})).status == 200
    assert [request.prompt for request in node.chat.requests] == expected


async def test_several_prompts_times_n_have_their_indices(client, node):
    reply = await client.post(PATH, {"prompt": ["a", "bc"], "n": 2})
    assert [choice["index"] for choice in reply.body["choices"]] == [0, 1, 2, 3]
    assert reply.body["usage"]["prompt_tokens"] == 5
    assert reply.body["usage"]["completion_tokens"] == 12
    assert len({request.request_id for request in node.chat.requests}) == 2


async def test_one_bad_prompt_fails_the_request_and_aborts_the_others(client, node):
    node.chat.hold(0)
    node.chat.refuses = lambda r: InvalidRequestError("no b", param="prompt") if r.prompt == "b" else None
    reply = await client.post(PATH, {"prompt": ["a", "b", "c"]})
    assert (reply.status, reply.error["message"], reply.error["param"]) == (400, "no b", "prompt")
    assert all(stream.aborted.is_set() for stream in node.chat.streams)


async def test_logprobs(client):
    reply = await client.post(PATH, {"prompt": "Hi", "logprobs": 1, "max_tokens": 2})
    assert reply.body["choices"][0]["logprobs"] == {
        "tokens": ["Hello", " wörld"],
        "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{"\n": -0.25, "Hello": -0.25}, {"\n": -0.25, " wörld": -0.25}],
        "text_offset": [0, 5],
    }


async def test_echo(client, node):
    reply = await client.post(PATH, {"prompt": ["Hi ", "Yo "], "echo": True})
    assert [choice["text"] for choice in reply.body["choices"]] == ["Hi " + TEXT, "Yo " + TEXT]
    reply = await client.post(PATH, {"prompt": [72, 105], "echo": True})
    assert reply.body["choices"][0]["text"] == "Hi" + TEXT
    assert node.chat.requests[-1].sampling.prompt_logprobs is None


async def test_echo_with_logprobs(client):
    body = {"prompt": [72, 105], "echo": True, "logprobs": 1, "max_tokens": 1}
    # OpenAI's schema has no room for the null of a first token, its service answers it all the same.
    reply = await client.post(PATH, body, check=False)
    assert reply.body["choices"][0]["logprobs"] == {
        "tokens": ["H", "i", "Hello"],
        "token_logprobs": [None, -0.5, -0.25],
        "top_logprobs": [None, {"\n": -0.5, "i": -0.5}, {"\n": -0.25, "Hello": -0.25}],
        "text_offset": [0, 1, 2],
    }
    assert reply.body["choices"][0]["prompt_logprobs"] is None


async def test_echo_of_the_prompt_alone(client, node):
    body = {"prompt": [72, 105], "echo": True, "logprobs": 0, "max_tokens": 0}
    choice = (await client.post(PATH, body, check=False)).body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert choice["logprobs"]["tokens"] == ["H", "i"]
    assert node.chat.requests[0].sampling.max_tokens == 0
    chunks = await client.events(PATH, {**body, "stream_options": {"include_usage": True}}, check=False)
    assert [c["choices"][0]["text"] for c in chunks[:-1]] == ["Hi"]
    assert chunks[-1]["usage"]["completion_tokens"] == 0


async def test_best_of_answers_the_likeliest(client, node):
    # The fake gives answer k of n the log-probability -0.25 * (n - k).
    reply = await client.post(PATH, {"prompt": "Hi", "best_of": 3, "n": 1, "logprobs": 0})
    assert node.chat.requests[0].sampling.n == 3
    [choice] = reply.body["choices"]
    assert (choice["index"], choice["logprobs"]["token_logprobs"][0]) == (0, -0.25)
    reply = await client.post(PATH, {"prompt": "Hi", "best_of": 3, "n": 2})
    assert [choice["logprobs"] for choice in reply.body["choices"]] == [None, None]


async def test_prompt_logprobs(client):
    reply = await client.post(PATH, {"prompt": [72, 105], "prompt_logprobs": 0})
    expected = [None, {"105": {"logprob": -0.5, "rank": 7, "decoded_token": "i"}}]
    assert reply.body["choices"][0]["prompt_logprobs"] == expected


async def test_of_thousands_of_prompts_a_few_are_opened_at_once(client, node):
    """What is ready runs before the event loop looks at anything else."""
    generate, open_now, most = node.chat.generate, 0, 0

    async def counted(request):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        return await generate(request)

    node.chat.generate = counted
    reply = await client.post("/v1/completions", {"prompt": [f"p{i}" for i in range(200)], "max_tokens": 1})
    assert [choice["index"] for choice in reply.body["choices"]] == list(range(200))
    assert 1 < most <= 32
    assert len({request.group for request in node.chat.requests}) == 1


async def test_return_token_ids(client):
    body = {"prompt": [72, 105], "return_token_ids": True, "n": 2}
    reply = await client.post(PATH, body)
    for choice in reply.body["choices"]:
        assert choice["prompt_token_ids"] == [72, 105]
        assert choice["token_ids"] == [72, 32, 34]
    chunks = [chunk["choices"][0] for chunk in await client.events(PATH, body)]
    for index in range(2):
        own = [choice for choice in chunks if choice["index"] == index]
        assert [choice.get("prompt_token_ids") for choice in own] == [[72, 105]] + [None] * (len(own) - 1)
        assert [token for choice in own for token in choice["token_ids"]] == [72, 32, 34]


async def test_return_tokens_as_token_ids(client):
    body = {"prompt": [72, 105], "logprobs": 1, "max_tokens": 1, "return_tokens_as_token_ids": True}
    reply = await client.post(PATH, {**body, "echo": True}, check=False)
    logprobs = reply.body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["token_id:72", "token_id:105", "token_id:72"]
    assert logprobs["top_logprobs"][2] == {"token_id:72": -0.25, "token_id:10": -0.25}
    assert logprobs["text_offset"] == [0, 1, 2]
    [chunk, *_] = await client.events(PATH, body)
    assert chunk["choices"][0]["logprobs"]["tokens"] == ["token_id:72"]
