from dataclasses import replace

import pytest

from onecard.engines.text.chat_template import text_only

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
TEXT = 'Hello wörld"!\n'


async def test_answer_has_openai_shape(client, node):
    reply = await client.post(CHAT, {"model": "talker", "messages": USER})
    assert reply.status == 200
    body = reply.body
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "talker"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 3,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert node.chat.requests[0].request_id == body["id"]


async def test_alias_answers_under_the_models_own_name(client):
    reply = await client.post(CHAT, {"model": "default", "messages": USER})
    assert reply.body["model"] == "talker"


async def test_model_may_be_left_out_where_only_one_does_it(client):
    assert (await client.post(CHAT, {"messages": USER})).status == 200


async def test_model_is_needed_where_two_do_it(client, second_talker):
    reply = await client.post(CHAT, {"messages": USER})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert "talker, second" in reply.error["message"]


async def test_stop_reason_and_length(client, node):
    node.chat.stop_reason = "!"
    reply = await client.post(CHAT, {"messages": USER})
    assert reply.body["choices"][0]["stop_reason"] == "!"
    reply = await client.post(CHAT, {"messages": USER, "max_tokens": 2})
    assert reply.body["choices"][0]["finish_reason"] == "length"
    assert reply.body["choices"][0]["message"]["content"] == "Hello wörld"


async def test_n_answers(client):
    reply = await client.post(CHAT, {"messages": USER, "n": 3})
    assert [choice["index"] for choice in reply.body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in reply.body["choices"]} == {TEXT}
    assert reply.body["usage"]["completion_tokens"] == 9


async def test_logprobs(client):
    body = {"messages": USER, "logprobs": True, "top_logprobs": 3, "max_tokens": 1}
    reply = await client.post(CHAT, body)
    logprobs = reply.body["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    assert logprobs["content"] == [
        {
            "token": "Hello",
            "logprob": -0.25,
            "bytes": list(b"Hello"),
            "top_logprobs": [
                {"token": "\n", "logprob": -0.25, "bytes": [10]},
                {"token": "x", "logprob": -1.75, "bytes": [120]},
                {"token": "y", "logprob": -9999.0, "bytes": [121]},
            ],
        }
    ]


async def test_logprobs_without_alternatives(client, node):
    reply = await client.post(CHAT, {"messages": USER, "logprobs": True})
    assert node.chat.requests[0].sampling.logprobs == 0
    assert [e["top_logprobs"] for e in reply.body["choices"][0]["logprobs"]["content"]] == [[], [], []]


async def test_prompt_logprobs(client):
    reply = await client.post(CHAT, {"messages": USER, "prompt_logprobs": 1})
    first, second, *_ = reply.body["prompt_logprobs"]
    assert first is None
    assert second[str(ord("s"))] == {"logprob": -0.5, "rank": 7, "decoded_token": "s"}
    assert second["10"]["rank"] == 1


async def test_sampling_reaches_the_engine(client, node):
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.3,
        "seed": 7,
        "stop": ["a", "b"],
        "stop_token_ids": [5, 6],
        "include_stop_str_in_output": True,
        "max_tokens": 11,
        "min_tokens": 2,
        "ignore_eos": True,
        "logit_bias": {"17": -100, "4": 2.5},
        "skip_special_tokens": False,
    }
    engine_only = {"truncate_prompt_tokens": -1, "cache_salt": "tenant", "priority": 3}
    await client.post(CHAT, {"messages": USER, **asked, **engine_only})
    request = node.chat.requests[0]
    expected = {**asked, "stop": ("a", "b"), "stop_token_ids": (5, 6), "logit_bias": ((17, -100.0), (4, 2.5))}
    assert {name: getattr(request.sampling, name) for name in asked} == expected
    assert {name: getattr(request, name) for name in engine_only} == engine_only
    assert request.add_special_tokens is False


async def test_defaults_come_from_user_then_model_then_openai(client, node):
    node.chat.info = replace(node.chat.info, default_sampling={"temperature": 0.2, "top_k": 20})
    await client.post(CHAT, {"messages": USER, "temperature": 0.7, "max_tokens": None})
    sampling = node.chat.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.7, 20, 1.0)
    assert sampling.max_tokens is None


@pytest.mark.parametrize(
    ("asked", "name", "got"),
    [
        ({"top_k": -1}, "top_k", 0),
        ({"temperature": 1e-9}, "temperature", 0.0),
        ({"seed": -1}, "seed", None),
        ({"stop": "x"}, "stop", ("x",)),
        ({"stop": None, "n": None, "temperature": None}, "temperature", 1.0),
        ({"max_completion_tokens": 2, "max_tokens": 3}, "max_tokens", 2),
        ({"something_new": {"from": "next year"}, "user": "u", "store": True, "metadata": {}}, "n", 1),
        ({"response_format": {"type": "text"}}, "n", 1),
    ],
)
async def test_normalised(client, node, asked, name, got):
    assert (await client.post(CHAT, {"messages": USER, **asked})).status == 200
    assert getattr(node.chat.requests[0].sampling, name) == got


async def test_messages_reach_the_template(client, node):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
        },
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": messages, "tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    assert (await client.post(CHAT, body)).status == 200
    prompt = node.chat.requests[0].prompt
    assert text_only(prompt).messages == (
        {"role": "system", "content": "Be\nbrief."},
        {"role": "user", "content": "Hi", "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning": "hm",
            "reasoning_content": "hm",
            "tool_calls": [{**call, "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "1"},
    )
    assert prompt.tools == tuple(tools)
    assert prompt.chat_template_kwargs == {"enable_thinking": False}
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (True, False)


async def test_tool_choice_none_hides_the_tools(client, node):
    tools = [{"type": "function", "function": {"name": "f"}}]
    await client.post(CHAT, {"messages": USER, "tools": tools, "tool_choice": "none"})
    assert node.chat.requests[0].prompt.tools is None


async def test_continue_final_message(client, node):
    await client.post(CHAT, {"messages": USER, "continue_final_message": True})
    prompt = node.chat.requests[0].prompt
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (False, True)


async def test_return_token_ids(client):
    body = {"messages": USER, "return_token_ids": True}
    reply = await client.post(CHAT, body)
    prompt = list(b"user: Hi\n")
    assert reply.body["prompt_token_ids"] == prompt
    assert reply.body["choices"][0]["token_ids"] == [72, 32, 34]
    first, *rest = await client.events(CHAT, body)
    assert first["prompt_token_ids"] == prompt
    assert all("prompt_token_ids" not in chunk for chunk in rest)
    ids = [token for chunk in rest for token in chunk["choices"][0].get("token_ids", ())]
    assert ids == [72, 32, 34]


async def test_token_ids_of_text_that_is_held_back_come_too(client, node):
    node.chat.words = ["a", "", "b"]
    chunks = await client.events(CHAT, {"messages": USER, "return_token_ids": True})
    assert [t for c in chunks for t in c["choices"][0].get("token_ids", ())] == [97, 0, 98]


async def test_return_prompt_text(client):
    body = {"messages": USER, "return_prompt_text": True}
    assert (await client.post(CHAT, body)).body["prompt_text"] == "user: Hi\n"
    first, *rest = await client.events(CHAT, body)
    assert first["prompt_text"] == "user: Hi\n"
    assert all("prompt_text" not in chunk for chunk in rest)


async def test_return_tokens_as_token_ids(client):
    body = {"messages": USER, "logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    entry = (await client.post(CHAT, body)).body["choices"][0]["logprobs"]["content"][0]
    assert (entry["token"], bytes(entry["bytes"])) == ("token_id:72", b"Hello")
    assert entry["top_logprobs"][0]["token"] == "token_id:10"
    chunks = await client.events(CHAT, body)
    shown = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["token"] for entry in shown] == ["token_id:72", "token_id:32", "token_id:34"]


BEGUN = [*USER, {"role": "assistant", "content": [{"type": "text", "text": "Well, "}]}]


@pytest.mark.parametrize(
    ("asked", "begins"),
    [
        ({"messages": BEGUN, "echo": True}, "Well, "),
        ({"messages": BEGUN, "echo": True, "continue_final_message": True}, "Well, "),
        ({"messages": USER, "echo": True}, ""),
        ({"messages": USER, "echo": True, "add_generation_prompt": False}, "Hi"),
        ({"messages": BEGUN}, ""),
    ],
)
async def test_echo_begins_with_the_last_message_where_it_is_the_answers_role(client, asked, begins):
    reply = await client.post(CHAT, asked)
    assert reply.body["choices"][0]["message"]["content"] == begins + TEXT
    chunks = await client.events(CHAT, {**asked, "n": 2})
    for index in range(2):
        own = (c["choices"][0] for c in chunks if c["choices"][0]["index"] == index)
        assert "".join(choice["delta"].get("content", "") for choice in own) == begins + TEXT


async def test_reasoning_effort_reaches_the_template(client, node):
    assert (await client.post(CHAT, {"messages": USER, "reasoning_effort": "low"})).status == 200
    assert node.chat.requests[0].prompt.reasoning_effort == "low"
