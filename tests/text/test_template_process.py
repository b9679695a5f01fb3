"""A chat template is a stranger's program, the model's own as well: it never holds up the event loop, and
what it may use is bounded."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time

import pytest

from onecard.engines.api import ChatPrompt, InvalidRequestError
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.template_process import OWN_SOURCE_BYTES, TemplateLimits

LIMITS = TemplateLimits(memory_bytes=256 << 20, output_bytes=1 << 20, cpu_seconds=1)
ROUNDS = "{% for i in range(99999) %}"
ENDLESS = f"{ROUNDS * 2}{'{% endfor %}' * 2}"
HELD_UP = "{% if messages[0].content == 'loop' %}" + ENDLESS + "{% endif %}{{ messages[0].content }}"


def own(source: str) -> ChatTemplates:
    return ChatTemplates({"default": source}, LIMITS)


def says(content: str, **more: object) -> ChatPrompt:
    return ChatPrompt(({"role": "user", "content": content},), **more)  # type: ignore[arg-type]


async def ticks() -> int:
    """Goes round the event loop until it is cancelled; how often."""
    count = 0
    try:
        while True:
            await asyncio.sleep(0.01)
            count += 1
    except asyncio.CancelledError:
        return count


async def test_an_endless_template_is_ended_and_holds_up_nobody() -> None:
    templates, ticking = own(HELD_UP), asyncio.create_task(ticks())
    began = time.monotonic()
    looping = asyncio.create_task(templates.render(says("loop"), {}))
    await asyncio.sleep(0.1)
    assert await templates.render(says("Hi"), {}) == "Hi", "others chat meanwhile"
    assert not looping.done()
    with pytest.raises(
        InvalidRequestError, match=r"chat template \(default\) .* took more than 1 s"
    ) as error:
        await looping
    assert error.value.param == "messages"
    seconds = time.monotonic() - began
    assert seconds < 15
    ticking.cancel()
    assert await ticking > 20 * seconds
    assert await templates.render(says("again"), {}) == "again"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content * 2000000000 }}", "memory"),
        ("{{ '%999999999d' % 1 }}", "memory"),
        ("{{ 'a' | center(9999999999) }}", "memory"),
        ("{{ 'a' * 2000000 }}", "longer than 1048576"),
        ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "longer than 1048576"),
    ],
)
async def test_memory_and_text_are_bounded(template: str, message: str) -> None:
    templates = own("{% if messages[0].content == 'x' %}" + template + "{% endif %}ok")
    with pytest.raises(InvalidRequestError, match=message) as refused:
        await templates.render(says("x"), {})
    assert "(default)" in refused.value.message
    assert await templates.render(says("y"), {}) == "ok"


def test_nothing_of_a_template_is_computed_before_somebody_asks() -> None:
    """Jinja computes what is constant as it compiles: that would be here, as the model loads."""
    began = time.monotonic()
    for source in ("{{ 9 ** 9 ** 9 }}", "{{ 'a' * 99999999999 }}", "{{ 'a' | center(99999999999) }}"):
        own(source)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("source", ["{% if x %}" * 5000, "{{ " + "9" * 5000 + " }}", "{" * (1 << 21), 7])
def test_a_template_that_nobody_can_read_is_refused_as_it_is_loaded(source: str) -> None:
    with pytest.raises(ModelFileError, match="chat template of the model"):
        own(source)
    assert OWN_SOURCE_BYTES < 1 << 21


def test_a_server_with_tighter_limits_of_its_own_can_still_render() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20));"
        "from onecard.engines.text.template_environment import _limit_this_process;"
        "_limit_this_process(512 << 20, 2); print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 20)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "400\n"


async def test_one_process_serves_many_chats() -> None:
    templates = own("{{ messages[0].content }}")
    for i in range(20):
        assert await templates.render(says(str(i)), {}) == str(i)
    assert len(templates._processes._idle) == 1
    answers = await asyncio.gather(*(templates.render(says(str(i)), {}) for i in range(50)))
    assert answers == [str(i) for i in range(50)]
    assert len(templates._processes._idle) <= 2


async def test_a_process_that_has_died_meanwhile_is_replaced() -> None:
    templates = own("{{ messages[0].content }}")
    await templates.render(says("a"), {})
    [process] = templates._processes._idle
    process._process.kill()
    process._process.wait(10)
    assert await templates.render(says("b"), {}) == "b"


async def test_a_client_that_goes_takes_its_process_with_it() -> None:
    templates = own(HELD_UP)
    await templates.render(says("a"), {})
    [process] = templates._processes._idle
    looping = asyncio.create_task(templates.render(says("loop"), {}))
    await asyncio.sleep(0.1)
    looping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looping
    process._process.wait(10)
    assert await templates.render(says("b"), {}) == "b"


async def test_a_models_processes_go_with_it() -> None:
    templates = own("{{ messages[0].content }}")
    await templates.render(says("a"), {})
    pid = templates._processes._idle[0]._process.pid
    del templates
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("TZ", "UTC")
    templates = own("{{ messages[0].content }}")
    await templates.render(says("a"), {})
    pid = templates._processes._idle[0]._process.pid
    with open(f"/proc/{pid}/environ", "rb") as file:
        environment = file.read()
    assert b"secret" not in environment
    assert b"TZ=UTC" in environment


async def test_half_a_character_is_the_requests_fault_wherever_it_comes_from() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}
    prompt = ChatPrompt(({"role": "assistant", "content": "", "tool_calls": [call]},))
    arguments = "messages[0].tool_calls[0].function.arguments.x"
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        await own("{{ " + arguments + " }}").render(prompt, {})
    with pytest.raises(InvalidRequestError, match="refused the messages: no ") as refused:
        await own("{{ raise_exception('no ' + " + arguments + ") }}").render(prompt, {})
    refused.value.message.encode()
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        await own("{{ messages[0].content }}").render(says("\ud83d"), {})
    assert await own("{{ messages[0].content | length }}").render(says("\ud83d"), {}) == "1"


async def test_what_is_nested_too_deeply_is_refused() -> None:
    tool: dict[str, object] = {"type": "function"}
    for _ in range(980):
        tool = {"a": tool}
    try:
        assert await own("{{ tools | length }}").render(says("a", tools=(tool,)), {}) == "1"
    except InvalidRequestError as error:
        assert "nested" in error.message or "Recursion" in error.message  # noqa: PT017
    for _ in range(100_000):
        tool = {"a": tool}
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        await own("{{ tools }}").render(says("a", tools=(tool,)), {})
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * 2000 + "]" * 2000}}
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        await own("x").render(ChatPrompt(({"role": "assistant", "tool_calls": [call]},)), {})


async def test_numbers_beyond_64_bits_reach_the_template() -> None:
    arguments = '{"x": 123456789012345678901234567890}'
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    prompt = ChatPrompt(({"role": "assistant", "tool_calls": [call]},))
    text = await own("{{ messages[0].tool_calls[0].function.arguments.x + 1 }}").render(prompt, {})
    assert text == "123456789012345678901234567891"


async def test_what_takes_long_to_write_down_is_written_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tool call's arguments may be megabytes of JSON that turn out to be none."""
    threads: list[int] = []

    def loads(text: str) -> object:
        threads.append(threading.get_ident())
        return {}

    monkeypatch.setattr("onecard.engines.text.chat_template.json.loads", loads)
    call = {"type": "function", "function": {"name": "f", "arguments": "[" + "1," * 2_000_000}}
    await own("x").render(ChatPrompt(({"role": "assistant", "tool_calls": [call]},)), {})
    assert threads
    assert threading.get_ident() not in threads


async def test_more_than_a_template_may_be_given_is_refused() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * (17 << 20)}}
    with pytest.raises(InvalidRequestError, match="a chat template takes 16777216"):
        await own("{{ tools }}").render(says("a", tools=(tool,)), {})
