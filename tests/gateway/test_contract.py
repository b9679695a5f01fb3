"""Answers against OpenAI's published schemas. (Every other test's answers are held against them as well.)"""

import jsonschema
import pytest

MESSAGES = [{"role": "user", "content": "Hi"}]
CHATS = [
    {},
    {"n": 2, "stop": ["x"], "max_tokens": 1},
    {"logprobs": True, "top_logprobs": 3},
]


@pytest.fixture(autouse=True)
def _contract_at_hand(contract):
    if not contract.present:
        pytest.skip("OpenAI's API description is not beside the repository (../shared/contracts)")
    contract.checked.clear()


@pytest.mark.parametrize("options", CHATS)
async def test_chat(client, contract, options):
    await client.post("/v1/chat/completions", {"messages": MESSAGES, **options})
    assert contract.checked == ["/v1/chat/completions"]


@pytest.mark.parametrize("options", CHATS)
async def test_chat_stream(client, contract, options):
    body = {"messages": MESSAGES, "stream_options": {"include_usage": True}, **options}
    chunks = await client.events("/v1/chat/completions", body)
    assert contract.checked == ["/v1/chat/completions#chunk"] * len(chunks)


async def test_completions_embeddings_models_and_errors(client, contract):
    await client.post("/v1/completions", {"prompt": ["a", "b"], "logprobs": 2})
    await client.post("/v1/embeddings", {"input": ["a", "b"]})
    await client.get("/v1/models")
    await client.post("/v1/completions", {"model": "nobody", "prompt": "a"})
    assert contract.checked == ["/v1/completions", "/v1/embeddings", "/v1/models", "error"]


async def test_the_contract_refuses_what_is_wrong(client, contract):
    reply = await client.post("/v1/chat/completions", {"messages": MESSAGES})
    reply.body["choices"][0]["finish_reason"] = None
    with pytest.raises(jsonschema.ValidationError):
        contract.check("/v1/chat/completions", reply.body)
