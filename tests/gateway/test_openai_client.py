"""The official client on a real port: its defaults must work, and failures raise its own classes."""

import openai
import pytest

from onecard.engines.api import ContextLengthError, EngineFailedError, QueueFullError

MESSAGES = [{"role": "user", "content": "Hi"}]
TEXT = 'Hello wörld"!\n'


@pytest.fixture
async def sdk(client):
    async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="unused", max_retries=0) as sdk:
        yield sdk


async def test_chat(sdk):
    completion = await sdk.chat.completions.create(model="talker", messages=MESSAGES, n=2)
    assert [choice.message.content for choice in completion.choices] == [TEXT, TEXT]
    assert completion.usage.prompt_tokens_details.cached_tokens == 3


async def test_chat_stream(sdk):
    stream = await sdk.chat.completions.create(
        model="talker", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == TEXT
    assert chunks[-1].usage.total_tokens == 12


async def test_stream_helper(sdk):
    async with sdk.chat.completions.stream(model="talker", messages=MESSAGES) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


async def test_logprobs(sdk):
    completion = await sdk.chat.completions.create(
        model="talker", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    assert completion.choices[0].logprobs.content[0].top_logprobs[0].token == "\n"


async def test_completions(sdk):
    completion = await sdk.completions.create(model="talker", prompt=["a", "b"], logprobs=1, echo=False)
    assert [choice.text for choice in completion.choices] == [TEXT, TEXT]
    assert completion.choices[0].logprobs.text_offset == [0, 5, 11]
    stream = await sdk.completions.create(model="talker", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_embeddings_base64_by_default(sdk, node):
    result = await sdk.embeddings.create(model="embedder", input=["ab", "c"])
    assert result.data[0].embedding == pytest.approx([2, 0, 0.1, -1 / 3])
    assert result.usage.total_tokens == 3
    floats = await sdk.embeddings.create(model="embedder", input=["ab"], encoding_format="float")
    assert floats.data[0].embedding == pytest.approx([2, 0, 0.1, -1 / 3])


async def test_models(sdk):
    served = [model.id async for model in sdk.models.list()]
    assert served == ["talker", "default", "org/talker-v2", "embedder"]
    assert (await sdk.models.retrieve("default")).owned_by == "onecard"


async def test_its_own_exceptions(sdk, node):
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="nobody", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError) as bad:
        await sdk.chat.completions.create(model="talker", messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    node.chat.refuses = lambda request: ContextLengthError(512, 600)
    with pytest.raises(openai.BadRequestError) as long:
        await sdk.chat.completions.create(model="talker", messages=MESSAGES)
    assert long.value.code == "context_length_exceeded"
    for error, status in ((QueueFullError("full"), 503), (EngineFailedError("lost"), 500)):
        node.chat.refuses = lambda request, error=error: error
        with pytest.raises(openai.InternalServerError) as failed:
            await sdk.chat.completions.create(model="talker", messages=MESSAGES)
        assert failed.value.status_code == status


async def test_an_error_within_a_stream(sdk, node):
    node.chat.fails_at[2] = EngineFailedError("lost")
    node.chat.hold(2)
    stream = await sdk.chat.completions.create(model="talker", messages=MESSAGES, stream=True)
    await anext(stream)
    node.chat.gates[2].set()
    with pytest.raises(openai.APIError, match="lost"):
        async for _ in stream:
            pass


async def test_authentication(serve):
    client = await serve(api_keys=("right",))
    async with openai.AsyncOpenAI(base_url=client.url + "/v1", api_key="wrong", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as denied:
            await sdk.models.list()
        assert denied.value.code == "invalid_api_key"
        assert await sdk.with_options(api_key="right").models.list()


async def test_leaving_a_stream_aborts(sdk, node):
    node.chat.hold(1)
    stream = await sdk.chat.completions.create(model="talker", messages=MESSAGES, stream=True)
    await anext(stream)
    await stream.close()
    await node.chat.streams[0].aborted.wait()


@pytest.mark.parametrize("base", ["", "/", "//", "/v1/", "/v1//", "//v1", "/v1/v1"])
async def test_base_urls_that_are_nearly_right(client, base):
    async with openai.AsyncOpenAI(base_url=client.url + base, api_key="unused", max_retries=0) as sdk:
        completion = await sdk.chat.completions.create(model="talker", messages=MESSAGES)
        assert completion.choices[0].message.content == TEXT
        assert (await sdk.models.retrieve("org/talker-v2")).root == "talker"
        assert len((await sdk.embeddings.create(model="embedder", input="ab")).data[0].embedding) == 4
        stream = await sdk.completions.create(model="talker", prompt="a", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_vllms_fields_by_extra_body(sdk):
    extra = {"return_token_ids": True, "echo": True}
    started = [*MESSAGES, {"role": "assistant", "content": "So "}]
    completion = await sdk.chat.completions.create(model="talker", messages=started, extra_body=extra)
    assert completion.choices[0].message.content == "So " + TEXT
    assert completion.choices[0].token_ids == [72, 32, 34]
    assert bytes(completion.prompt_token_ids).endswith(b"assistant: So \n")
