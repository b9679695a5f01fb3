"""What each token of an answer is compared with is bounded, and a stranger's library is no silent end."""

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onecard.engines.api import InvalidRequestError
from onecard.gateway.schemas.sampling import (
    MAX_BIASES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
)

CHAT = "/v1/chat/completions"
OK = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("field", "most", "more"),
    [
        ("stop", ["x"] * MAX_STOP_STRINGS, ["x"] * (MAX_STOP_STRINGS + 1)),
        ("stop", "x" * MAX_STOP_CHARS, "x" * (MAX_STOP_CHARS + 1)),
        ("stop", ["x" * (MAX_STOP_CHARS // 4)] * 4, ["x" * (MAX_STOP_CHARS // 4)] * 5),
        ("stop_token_ids", [1] * MAX_STOP_TOKENS, [1] * (MAX_STOP_TOKENS + 1)),
        (
            "logit_bias",
            {str(i): 1 for i in range(MAX_BIASES)},
            {str(i): 1 for i in range(MAX_BIASES + 1)},
        ),
    ],
)
async def test_lists_that_every_token_is_compared_with_are_bounded(
    client: Any, field: str, most: Any, more: Any
) -> None:
    assert (await client.post(CHAT, {**OK, field: most})).status == 200
    reply = await client.post(CHAT, {**OK, field: more})
    assert (reply.status, reply.error["param"]) == (400, field)
    assert "at most" in reply.error["message"]


async def test_a_panic_is_an_answer(client: Any, node: Any) -> None:
    """PyO3 raises what no `except Exception` sees."""
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.FixedLength(0)
    node.chat.refuses = lambda request: backend.encode("a")
    reply = await client.post(CHAT, OK)
    assert (reply.status, reply.error["message"]) == (500, "Internal server error.")
    node.chat.refuses = lambda request: None
    assert (await client.post(CHAT, OK)).status == 200


async def test_half_a_character_in_an_error_is_written_out(client: Any, node: Any) -> None:
    node.chat.refuses = lambda request: InvalidRequestError("The template says \ud83d.")
    reply = await client.post(CHAT, OK)
    assert (reply.status, reply.error["message"]) == (400, "The template says \\ud83d.")
