import base64

import numpy as np
import pytest

from onecard.engines.api import InvalidRequestError

PATH = "/v1/embeddings"


async def test_floats(client, node):
    reply = await client.post(PATH, {"model": "embedder", "input": ["ab", "cde"], "user": "u"})
    assert reply.status == 200
    assert reply.body["id"].startswith("embd-")
    assert (reply.body["object"], reply.body["model"]) == ("list", "embedder")
    assert [item["index"] for item in reply.body["data"]] == [0, 1]
    expected = np.array([[2, 0, 0.1, -1 / 3], [3, 1, 0.1, -1 / 3]], dtype=np.float32)
    answered = np.array([item["embedding"] for item in reply.body["data"]], dtype=np.float32)
    np.testing.assert_array_equal(answered, expected)
    assert reply.body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


async def test_base64_is_little_endian_float32(client):
    body = {"input": "ab", "encoding_format": "base64"}
    reply = await client.post(PATH, body, check=False)  # OpenAI's schema describes the floats only
    decoded = np.frombuffer(base64.b64decode(reply.body["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_array_equal(decoded, np.array([2, 0, 0.1, -1 / 3], dtype=np.float32))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        ("", ("",)),
    ],
)
async def test_forms_of_input(client, node, given, expected):
    assert (await client.post(PATH, {"input": given})).status == 200
    assert node.embed.requests[0].inputs == expected


async def test_options_reach_the_engine(client, node):
    asked = {"dimensions": 4, "truncate_prompt_tokens": -1, "add_special_tokens": False, "priority": 2}
    await client.post(PATH, {"input": "a", **asked})
    assert {name: getattr(node.embed.requests[0], name) for name in asked} == asked


async def test_engine_error(client, node):
    node.embed.error = InvalidRequestError("This model has no dimensions to choose.", param="dimensions")
    reply = await client.post(PATH, {"input": "a", "dimensions": 2})
    assert (reply.status, reply.error["param"]) == (400, "dimensions")


async def test_a_chat_model_does_not_embed(client):
    reply = await client.post(PATH, {"model": "talker", "input": "a"})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert "Models that do: embedder" in reply.error["message"]


async def test_an_embedding_model_does_not_talk(client):
    reply = await client.post("/v1/completions", {"model": "embedder", "prompt": "a"})
    assert (reply.status, reply.error["type"]) == (400, "BadRequestError")


@pytest.mark.parametrize(
    ("asked", "normalize"),
    [
        ({}, None),
        ({"normalize": False}, False),
        ({"normalize": True}, True),
        ({"use_activation": False}, False),
        ({"normalize": False, "use_activation": False}, False),
    ],
)
async def test_normalize_reaches_the_engine_under_both_names(client, node, asked, normalize):
    assert (await client.post(PATH, {"input": "a", **asked})).status == 200
    assert node.embed.requests[0].normalize is normalize
