"""`POST /rerank` in Jina's form, and what clients of that form read."""

import pytest
from jsonschema import Draft202012Validator

from onecard.engines.api import ContextLengthError
from onecard.gateway.schemas.rerank import MAX_DOCUMENTS

PATHS = ["/rerank", "/v1/rerank"]
PATH = PATHS[0]
DOCUMENTS = ["bb", "dddd", "a", "dddd", "ccc"]
BODY = {"query": "q", "documents": DOCUMENTS}


@pytest.fixture(autouse=True)
def _served(judge):
    assert judge.requests == []


def order(reply):
    assert reply.status == 200, reply.text
    return [item["index"] for item in reply.body["results"]]


@pytest.mark.parametrize("path", PATHS)
async def test_the_answer(client, path):
    reply = await client.post(path, {"model": "judge", **BODY, "top_n": 3})
    assert reply.status == 200
    answer = reply.body
    assert answer.pop("id").startswith("rerank-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "list",
        "model": "judge",
        "results": [
            {"index": 1, "relevance_score": pytest.approx(0.04), "document": {"text": "dddd"}},
            {"index": 3, "relevance_score": pytest.approx(0.04), "document": {"text": "dddd"}},
            {"index": 4, "relevance_score": pytest.approx(0.03), "document": {"text": "ccc"}},
        ],
        "usage": {"prompt_tokens": 5 + 14, "total_tokens": 5 + 14},
    }


@pytest.mark.parametrize(
    ("top_n", "expected"), [(None, 5), (0, 5), (1, 1), (4, 4), (5, 5), (99, 5), (2**31 - 1, 5)]
)
async def test_the_best_come_first_and_equals_in_the_requests_order(client, judge, top_n, expected):
    reply = await client.post(PATH, {**BODY, "top_n": top_n})
    assert order(reply) == [1, 3, 4, 0, 2][:expected]
    assert len(judge.requests[0].documents) == 5, "all are read, whatever is answered"
    assert reply.body["usage"]["prompt_tokens"] == 19


async def test_documents_may_be_objects_with_a_text(client, judge):
    given = ["plain", {"text": "wrapped", "id": 7, "image": None}, {"text": ""}]
    reply = await client.post(PATH, {"query": "q", "documents": given})
    assert judge.requests[0].documents == ("plain", "wrapped", "")
    assert [item["document"] for item in reply.body["results"]] == [
        {"text": "wrapped"},
        {"text": "plain"},
        {"text": ""},
    ]


async def test_without_documents(client):
    reply = await client.post(PATH, {**BODY, "return_documents": False})
    assert order(reply) == [1, 3, 4, 0, 2]
    assert all(set(item) == {"index", "relevance_score"} for item in reply.body["results"])


@pytest.mark.parametrize("asked", [{"use_activation": False}, {"raw_scores": True}])
async def test_raw_scores(client, judge, asked):
    reply = await client.post(PATH, {**BODY, **asked})
    assert [item["relevance_score"] for item in reply.body["results"]] == [2, 2, 1, 0, -1]
    assert judge.requests[0].raw_scores
    await client.post(PATH, {**BODY, "use_activation": True, "raw_scores": False})
    assert not judge.requests[1].raw_scores


async def test_options_reach_the_engine(client, judge):
    asked = {"max_tokens_per_doc": 7, "truncate_prompt_tokens": -1, "priority": 2}
    await client.post(PATH, {**BODY, **asked})
    request = judge.requests[0]
    assert {name: getattr(request, name) for name in asked} == asked
    assert (request.query, request.documents) == ("q", tuple(DOCUMENTS))
    await client.post(PATH, {**BODY, **dict.fromkeys(asked), "model": None})
    assert {name: getattr(judge.requests[1], name) for name in asked} == {
        "max_tokens_per_doc": None,
        "truncate_prompt_tokens": None,
        "priority": 0,
    }


@pytest.mark.parametrize(
    ("wrong", "param", "said"),
    [
        ({"query": None}, "query", "required"),
        ({"query": ""}, "query", "at least 1"),
        ({"query": ["q"]}, "query", "string"),
        ({"documents": None}, "documents", "required"),
        ({"documents": []}, "documents", "at least 1"),
        ({"documents": "a"}, "documents", "list"),
        ({"documents": ["a", None]}, "documents[1]", "must be a string, or an object"),
        ({"documents": [3]}, "documents[0]", "must be a string, or an object"),
        ({"documents": [{"txt": "a"}]}, "documents[0]", "must be a string, or an object"),
        ({"documents": [{"text": 3}]}, "documents[0]", "must be a string, or an object"),
        ({"documents": [["a"]]}, "documents[0]", "must be a string, or an object"),
        ({"documents": [""] * (MAX_DOCUMENTS + 1)}, "documents", "at most 2048"),
        ({"top_n": -1}, "top_n", "greater than or equal to 0"),
        ({"top_n": 1.5}, "top_n", "integer"),
        ({"top_n": 2**31}, "top_n", "less than"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc", "greater than or equal to 1"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        ({"return_documents": "perhaps"}, "return_documents", "boolean"),
        ({"instruction": "judge kindly"}, "instruction", "is not offered yet; leave it out."),
        ({"max_tokens_per_query": 5}, "max_tokens_per_query", "is not offered yet; leave it out."),
    ],
)
async def test_what_is_wrong_is_named(client, judge, wrong, param, said):
    reply = await client.post(PATH, {**BODY, **wrong})
    assert (reply.status, reply.error["type"]) == (400, "BadRequestError")
    assert reply.error["param"] == param
    assert said in reply.error["message"]
    assert judge.requests == []


async def test_as_many_documents_as_may_be(client, judge):
    reply = await client.post(PATH, {"query": "q", "documents": [""] * MAX_DOCUMENTS, "top_n": 1})
    assert order(reply) == [0]
    assert len(judge.requests[0].documents) == MAX_DOCUMENTS


async def test_what_is_too_long_says_so(client, judge):
    judge.error = ContextLengthError(256, 300)
    reply = await client.post(PATH, BODY)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")


async def test_an_unknown_model(client):
    reply = await client.post(PATH, {"model": "nobody", **BODY})
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")
    assert "Valid aliases: talker, default, org/talker-v2, embedder, judge." in reply.error["message"]


@pytest.mark.parametrize("model", ["talker", "embedder"])
async def test_a_model_that_does_something_else(client, model):
    reply = await client.post(PATH, {"model": model, **BODY})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert "Models that do: judge" in reply.error["message"]


async def test_a_reranker_does_nothing_else(client):
    reply = await client.post("/v1/embeddings", {"model": "judge", "input": "a"})
    assert (reply.status, reply.error["param"]) == (400, "model")
    reply = await client.post("/tokenize", {"model": "judge", "prompt": "Hi"})
    assert reply.body["tokens"] == [256, 72, 105]


async def test_where_nobody_reranks(client, node):
    node.engines.remove(node.rerank)
    for body in (BODY, {"model": "embedder", **BODY}):
        reply = await client.post(PATH, body)
        assert (reply.status, reply.error["param"]) == (400, "model")


async def test_what_open_webui_sends_and_reads(client):
    """`{model, query, documents, top_n}` with as many as there are; back by their index."""
    body = {"model": "judge", "query": "q", "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
    answer = (await client.post("/v1/rerank", body)).body
    by_index = sorted(answer["results"], key=lambda result: result["index"])
    scores = [result["relevance_score"] for result in by_index]
    assert scores == pytest.approx([0.02, 0.04, 0.01, 0.04, 0.03])


async def test_what_dify_sends_and_reads(client):
    """`return_documents` and `top_n`; `document` as text or with a `text`."""
    body = {"model": "judge", **BODY, "top_n": 2, "return_documents": True}
    answer = (await client.post("/rerank", body)).body
    read = [
        (result["index"], result["document"]["text"], result["relevance_score"])
        for result in answer["results"]
    ]
    assert read == [(1, "dddd", pytest.approx(0.04)), (3, "dddd", pytest.approx(0.04))]
    assert all(0 <= score <= 1 for _, _, score in read)


async def test_the_servers_description_has_it(client):
    document = (await client.get("/openapi.json")).body
    for path in PATHS:
        operation = document["paths"][path]["post"]
        [asked] = operation["requestBody"]["content"].values()
        answered = operation["responses"]["200"]["content"]["application/json"]
        parts = {"components": document["components"]}
        request, answer = (Draft202012Validator({**part["schema"], **parts}) for part in (asked, answered))
        for body in (
            {"model": "judge", **BODY, "top_n": 2},
            {"query": "q", "documents": [{"text": "a"}, "b"], "return_documents": False},
        ):
            request.validate(body)
            answer.validate((await client.post(path, body)).body)
        for wrong in ({"query": "q"}, {**BODY, "documents": []}, {**BODY, "documents": [{}]}):
            assert not request.is_valid(wrong)
