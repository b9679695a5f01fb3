"""What the event loop calls: short texts inline, long ones in the executor, bad ones refused."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from onecard.engines.api import ChatPrompt, ImagePart, InvalidRequestError, TextPart
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.service import TextService
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer


class CountingExecutor(ThreadPoolExecutor):
    def __init__(self) -> None:
        super().__init__(1)
        self.calls = 0

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.calls += 1
        return super().submit(*args, **kwargs)


@pytest.fixture
def executor() -> Any:
    with CountingExecutor() as pool:
        yield pool


@pytest.fixture
def service(byte_level: Tokenizer, executor: CountingExecutor) -> TextService:
    templates = ChatTemplates({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"})
    return TextService(Tokenizer(byte_level.backend, SpecialTokens(), templates), executor)


async def test_short_texts_stay_and_long_ones_go(
    service: TextService, executor: CountingExecutor, byte_level: Tokenizer
) -> None:
    assert await service.tokenize("fox") == byte_level.encode("fox")
    chat = ChatPrompt(({"role": "user", "content": "fox"},))
    assert (await service.encode_prompt(chat)).text == "fox"
    assert executor.calls == 0
    long = "the quick brown fox " * 500
    assert await service.tokenize(long) == byte_level.encode(long)
    assert await service.tokenize(ChatPrompt(({"role": "user", "content": long},))) == byte_level.encode(long)
    assert await service.encode_texts(["fox", long]) == byte_level.encode_batch(["fox", long])
    assert executor.calls == 3
    ids = byte_level.encode(long)
    assert await service.detokenize(ids) == long
    assert executor.calls == 4


async def test_special_tokens_by_default_for_texts_only(
    byte_level: Tokenizer, executor: CountingExecutor
) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level.backend.to_str())
    end = backend.token_to_id("<|end|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", end)]
    )
    templates = ChatTemplates({"default": "{{ messages[0].content }}"})
    service = TextService(Tokenizer(backend, SpecialTokens(), templates), executor)
    chat, ids = ChatPrompt(({"role": "user", "content": "fox"},)), byte_level.encode("fox")
    assert await service.tokenize("fox") == [end, *ids]
    assert await service.tokenize("fox", add_special_tokens=False) == ids
    assert await service.tokenize(chat) == ids
    assert await service.tokenize(chat, add_special_tokens=True) == [end, *ids]


async def test_token_ids_pass_through(service: TextService) -> None:
    encoded = await service.encode_prompt((1, 2))
    assert (encoded.token_ids, encoded.text) == ([1, 2], None)
    assert await service.token_strings([service.tokenizer.encode(" ")[0]]) == ["Ġ"]


@pytest.mark.parametrize("token_id", [-1, 10**9, 2**70])
async def test_unknown_ids_are_refused(service: TextService, token_id: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(token_id)):
        await service.detokenize([1, token_id])
    with pytest.raises(InvalidRequestError, match=str(token_id)):
        await service.encode_prompt((1, token_id))


async def test_half_a_character_is_refused(service: TextService) -> None:
    for call in (service.tokenize("x\ud83d"), service.encode_texts(["fine", "\udc00"])):
        with pytest.raises(InvalidRequestError, match="surrogate"):
            await call
    with pytest.raises(InvalidRequestError, match="surrogate"):
        await service.tokenize(ChatPrompt(({"role": "user", "content": "\ud83d"},)))


PARTS = ChatPrompt(({"role": "user", "content": (TextPart("the"), ImagePart("u"), TextPart("fox"))},))


async def test_parts_are_joined_or_refused(service: TextService) -> None:
    joined = ChatPrompt(({"content": (TextPart("the"), TextPart("fox"))}, {"content": ()}, {"content": None}))
    assert (await service.encode_prompt(joined)).text == "the\nfoxNone"
    with pytest.raises(
        InvalidRequestError, match="takes text only, not parts of type 'image_url'"
    ) as refused:
        await service.encode_prompt(PARTS)
    assert refused.value.param == "messages[0].content"


async def test_a_model_that_takes_more_reads_parts_itself(service: TextService, executor: Any) -> None:
    def read(prompt: ChatPrompt) -> ChatPrompt:
        [message] = prompt.messages
        return ChatPrompt(({"content": f"{len(message['content'])} parts"},))

    seeing = TextService(service.tokenizer, executor, read_parts=read)
    assert (await seeing.encode_prompt(PARTS)).text == "3 parts"


async def test_ids_to_be_written_out_are_named_as_the_client_names_them(service: TextService) -> None:
    with pytest.raises(InvalidRequestError, match="99999") as refused:
        await service.detokenize([1, 99999])
    assert refused.value.param == "tokens"
