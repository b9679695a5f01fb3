"""Every rule on requests: what is wrong, and where the error says it is."""

import pytest

from onecard.gateway.routes.table import ROUTES

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "f"}}]

SHARED = [
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": "many"}, "n"),
    ({"n": 1.5}, "n"),
    ({"model": 3}, "model"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"stop": 3}, "stop"),
    ({"stop": ["a", 3]}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 2**40}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {"word": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ({"stream": "perhaps"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": 3}, "stream_options"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "a" * 129}, "cache_salt"),
    ({"cache_salt": "a/b"}, "cache_salt"),
    ({"cache_salt": "a\x00b"}, "cache_salt"),
    ({"priority": "high"}, "priority"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format"),
    ({"response_format": {"type": "poem"}}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": "json"}, "response_format"),
    ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
    ({"guided_json": {}}, "guided_json"),
    ({"guided_regex": "a+"}, "guided_regex"),
    ({"guided_choice": ["a"]}, "guided_choice"),
    ({"guided_grammar": "root ::= a"}, "guided_grammar"),
    ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ({"logits_processors": ["a.B"]}, "logits_processors"),
    ({"allowed_token_ids": [1]}, "allowed_token_ids"),
    ({"bad_words": ["a"]}, "bad_words"),
]

CHAT_ONLY = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "wizard", "content": "Hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"reasoning_effort": "heroic"}, "reasoning_effort"),
    ({"tools": TOOLS, "tool_choice": "whatever"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
]

COMPLETION_ONLY = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"best_of": 1, "n": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"prompt_embeds": "x"}, "prompt_embeds"),
]

EMBEDDINGS = [
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": ["a", [1]]}, "input"),
    ({"input": 1}, "input"),
    ({"encoding_format": "int8"}, "encoding_format"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": "x"}, "dimensions"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"normalize": "x"}, "normalize"),
    ({"normalize": True, "use_activation": False}, "use_activation"),
    ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
]


async def refused(client, path, body, param):
    reply = await client.post(path, body)
    assert reply.status == 400, reply.text
    assert (reply.error["type"], reply.error["param"]) == ("BadRequestError", param)
    assert reply.error["message"]


@pytest.mark.parametrize(("body", "param"), SHARED + CHAT_ONLY)
async def test_chat(client, node, body, param):
    await refused(client, CHAT, {"messages": [{"role": "user", "content": "Hi"}], **body}, param)
    assert node.chat.requests == []


@pytest.mark.parametrize(("body", "param"), SHARED + COMPLETION_ONLY)
async def test_completions(client, node, body, param):
    await refused(client, "/v1/completions", {"prompt": "Hi", **body}, param)
    assert node.chat.requests == []


@pytest.mark.parametrize(("body", "param"), EMBEDDINGS)
async def test_embeddings(client, node, body, param):
    await refused(client, "/v1/embeddings", {"input": "Hi", **body}, param)
    assert node.embed.requests == []


async def test_images_are_refused_with_a_reason(client):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    reply = await client.post(CHAT, {"messages": [{"role": "user", "content": [part]}]})
    assert reply.status == 400
    assert "takes text only" in reply.error["message"]


async def test_many_errors_are_capped(client):
    messages = [{"role": "wizard", "content": "Hi"}] * 500
    reply = await client.post(CHAT, {"messages": messages})
    assert reply.error["message"].count("role") == 10
    assert reply.error["message"].endswith("and 490 more")


async def test_echoed_input_is_capped(client):
    reply = await client.post(CHAT, {"messages": [], "temperature": "x" * 100_000, "model": ["y" * 100_000]})
    assert len(reply.text) < 1500
    reply = await client.post(CHAT, {"model": "z" * 100_000, "messages": [{"role": "user", "content": "a"}]})
    assert reply.status == 404
    assert len(reply.text) < 600


LENIENT = [
    ("tools", []),
    ("functions", []),
    ("function_call", "none"),
    ("stop", ""),
    ("stop", [""]),
    ("stop", []),
    ("top_p", 0),
    ("stream_options", None),
    ("logit_bias", {}),
    ("documents", []),
    ("user", None),
    ("tool_choice", "none"),
    ("parallel_tool_calls", False),
]


@pytest.mark.parametrize(("name", "value"), LENIENT)
async def test_what_openai_takes_for_nothing_is_nothing_here(client, node, name, value):
    body = {"messages": [{"role": "user", "content": "Hi"}], name: value}
    reply = await client.post(CHAT, body)
    assert reply.status == 200, reply.text
    [request] = node.chat.requests
    assert (request.prompt.tools, request.prompt.documents, request.sampling.stop) == (None, None, ())


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank"])
async def test_every_field_but_what_is_needed_may_be_null(client, judge, path):
    needed = {
        CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/embeddings": {"input": "Hi"},
        "/v1/rerank": {"query": "Hi", "documents": ["Ho"]},
    }[path]
    [row] = (row for row in ROUTES.rows if row.path == path)
    nulls = dict.fromkeys(row.request.model_fields, None)
    reply = await client.post(path, nulls | needed)
    assert reply.status == 200, reply.text


async def test_an_empty_list_of_tools_takes_the_choice_that_agents_send_along(client, node):
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "tool_choice": "auto"}
    assert (await client.post(CHAT, body)).status == 200


async def test_a_nucleus_of_no_mass_is_the_likeliest_token(client, node):
    body = {"messages": [{"role": "user", "content": "Hi"}], "top_p": 0, "temperature": 1}
    assert (await client.post(CHAT, body)).status == 200
    sampling = node.chat.requests[0].sampling
    assert (sampling.top_p, sampling.top_k, sampling.temperature) == (1.0, 1, 1.0)


async def test_an_empty_stop_string_leaves_the_others(client, node):
    assert (await client.post("/v1/completions", {"prompt": "Hi", "stop": ["", "a"]})).status == 200
    assert node.chat.requests[0].sampling.stop == ("a",)


ADVICE = [
    (CHAT, {"tool_choice": "required"}, {"tool_choice": "none"}),
    (CHAT, {"tool_choice": "required"}, {"tool_choice": "auto", "tools": TOOLS}),
    (CHAT, {"tool_choice": "auto"}, {}),
    (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"tool_choice": "none"}),
    (CHAT, {"tool_choice": "whatever"}, {"tool_choice": "none"}),
    (CHAT, {"response_format": {}}, {"response_format": {"type": "text"}}),
    (CHAT, {"response_format": {"type": "json_schema"}}, {"response_format": {"type": "text"}}),
    (CHAT, {"chat_template": "{{ 1 }}"}, {}),
    (CHAT, {"top_logprobs": 2}, {"top_logprobs": 2, "logprobs": True}),
    (CHAT, {"stream_options": {}}, {"stream_options": {}, "stream": True}),
    (CHAT, {"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ("/v1/completions", {"max_tokens": 0}, {"max_tokens": 0, "echo": True}),
    ("/v1/completions", {"prompt_embeds": "x"}, {}),
    ("/v1/completions", {"best_of": 1, "n": 2}, {"best_of": 2, "n": 2}),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": "Hi"}]}, {"input": "Hi"}),
    ("/v1/embeddings", {"normalize": True, "use_activation": False}, {"normalize": True}),
    ("/v1/embeddings", {"truncate_prompt_tokens": 0}, {"truncate_prompt_tokens": -1}),
]
NEEDED = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
}


@pytest.mark.parametrize(("path", "asked", "advised"), ADVICE)
async def test_who_does_as_an_error_advises_is_served(client, path, asked, advised):
    refused = await client.post(path, {**NEEDED[path], **asked})
    assert refused.status == 400
    told = refused.error["message"]
    assert all(name in told for name in advised if name not in asked and name != "tools"), told
    reply = await client.post(path, {**NEEDED[path], **advised})
    assert reply.status == 200, (told, reply.text)


async def test_no_error_advises_what_is_always_refused(client):
    for body in (
        {"tool_choice": "required", "tools": TOOLS},
        {"tool_choice": "sometimes", "tools": TOOLS},
        {"tool_choice": {"function": {"name": "g"}}, "tools": TOOLS},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_object"}},
    ):
        message = (await client.post(CHAT, {**NEEDED[CHAT], **body})).error["message"]
        assert "not offered yet" in message
        assert "required" not in message
        assert "needs" not in message
