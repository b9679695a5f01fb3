"""Chat templates render as transformers renders them; what is wrong in them is the client's error."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from onecard.engines.api import ChatPrompt, InvalidRequestError
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.template_process import TemplateLimits

CHATML = (
    "{% for message in messages %}\n"
    "    {%- if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' }}\n"
    "    {%- generation %}"
    "{{ message['content'] | trim if trims else message['content'] }}"
    "{% endgeneration %}\n"
    "    {{- '<|im_end|>\\n' }}\n"
    "    {%- if loop.index > 50 %}{% break %}{% endif %}\n"
    "{% endfor %}\n"
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
USER = {"role": "user", "content": "Hi <b>& 日本"}
ASSISTANT = {"role": "assistant", "content": "Well, "}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def prompt(*messages: dict, **changes: object) -> ChatPrompt:
    return ChatPrompt(messages or (USER,), **changes)  # type: ignore[arg-type]


def rendered(templates: ChatTemplates, request: ChatPrompt, special: dict[str, str]) -> str:
    return asyncio.run(templates.render(request, special))


def render(template: str, request: ChatPrompt) -> str:
    return rendered(ChatTemplates({"default": template}), request, SPECIAL)


PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TOOLS = ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize(
    ("field", "value"),
    [("tools", TOOLS), ("documents", ({"text": "d"},)), ("reasoning_effort", "low")],
)
def test_what_the_template_has_no_place_for_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=f"no place for `{field}`") as refused:
        render(PLAIN, prompt(**{field: value}))
    assert refused.value.param == field
    reads = {"reasoning_effort": "enable_thinking"}.get(field, field)
    assert (
        render(PLAIN + "{% if " + reads + " is defined %}!{% endif %}", prompt(**{field: value}))[-1] == "!"
    )


def test_a_template_that_sets_its_tools_itself_where_there_are_none_reads_them() -> None:
    template = "{% if not tools is defined %}{% set tools = none %}{% endif %}{{ tools | tojson }}"
    assert "function" in render(template, prompt(tools=TOOLS))


@pytest.mark.parametrize(
    ("effort", "kwargs", "written"),
    [
        (None, {}, "-"),
        ("none", {}, "none False"),
        ("high", {}, "high True"),
        ("high", {"enable_thinking": False}, "high False"),
        ("high", {"reasoning_effort": "low"}, "high True"),
    ],
)
def test_reasoning_effort_is_given_as_templates_know_it(effort: str, kwargs: dict, written: str) -> None:
    template = "{{ reasoning_effort ~ ' ' ~ enable_thinking if reasoning_effort is defined else '-' }}"
    request = prompt(reasoning_effort=effort, chat_template_kwargs=kwargs)
    assert render(template, request) == written


def test_no_effort_is_what_a_model_makes_that_does_not_reason() -> None:
    assert render(PLAIN, prompt(reasoning_effort="none")) == USER["content"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"add_generation_prompt": False},
        {"tools": ({"type": "function", "function": {"name": "f", "description": "<é>"}},)},
        {"chat_template_kwargs": {"trims": True}},
        {"continue_final_message": True, "add_generation_prompt": False},
        {
            "continue_final_message": True,
            "add_generation_prompt": False,
            "chat_template_kwargs": {"trims": True},
        },
    ],
)
def test_renders_as_transformers_does(changes: dict) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    request = prompt(USER, ASSISTANT, **changes)
    expected, _ = render_jinja_template(
        [[dict(message) for message in request.messages]],
        tools=list(request.tools) if request.tools else None,
        chat_template=CHATML,
        continue_final_message=request.continue_final_message,
        add_generation_prompt=request.add_generation_prompt,
        **{"trims": False, **request.chat_template_kwargs, **SPECIAL},
    )
    assert render(CHATML, request) == expected[0]


def test_special_tokens_and_keyword_arguments_reach_the_template() -> None:
    request = prompt(chat_template_kwargs={"enable_thinking": False})
    template = "{{ bos_token }}{{ enable_thinking }}{{ strftime_now('%Y') | length }}"
    assert render(template, request) == "<s>False4"


def test_arguments_of_tool_calls_are_parsed() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    template = "{{ messages[0].tool_calls[0].function.arguments.x + 1 }}"
    assert render(template, prompt(message)) == "2"
    assert call["function"]["arguments"] == '{"x": 1}', "the request itself stays as it was"
    call["function"]["arguments"] = "{"
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        render(template, prompt(message))


def test_the_template_for_tools_is_chosen_when_there_are_tools() -> None:
    templates = ChatTemplates({"default": "plain", "tool_use": "tools"})
    assert rendered(templates, prompt(), {}) == "plain"
    assert rendered(templates, prompt(tools=({"type": "function"},)), {}) == "tools"
    with pytest.raises(InvalidRequestError, match="rag") as refused:
        rendered(ChatTemplates({"rag": "x"}), prompt(), {})
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    ("template", "request_", "message"),
    [
        (CHATML, prompt({"role": "tool", "content": "x"}), "no tools"),
        ("{{ messages[0].content + 1 }}", prompt(), "refused the messages"),
        ("{{ messages[7].content.x }}", prompt(), "refused the messages"),
        ("{{ ''.__class__.__mro__ }}", prompt(), "unsafe"),
        ("{{ messages.append(1) }}", prompt(), "unsafe"),
        ("x", prompt(chat_template_kwargs={"messages": []}), "chat_template_kwargs"),
        ("x", prompt(USER, continue_final_message=True), "can't both"),
        ("x", prompt(USER, continue_final_message=True, add_generation_prompt=False), "leaves the final"),
        (
            "x",
            prompt({"role": "user"}, continue_final_message=True, add_generation_prompt=False),
            "needs a last message",
        ),
    ],
)
def test_what_is_wrong_is_the_clients_error(template: str, request_: ChatPrompt, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        render(template, request_)


def test_a_template_that_does_not_parse_is_refused_before_anybody_asks(tmp_path: Path) -> None:
    (file := tmp_path / "t.jinja").write_text("ok\n{{ m.content }")
    with pytest.raises(ModelFileError, match=r"t\.jinja doesn't parse: unexpected '}' in line 2; correct it"):
        ChatTemplates.read(file)
    with pytest.raises(ModelFileError, match=r"of the model doesn't parse"):
        ChatTemplates({"tool_use": "{% if %}", "default": "x"})
    file.write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelFileError, match=r"t\.jinja can't be read: save it as UTF-8"):
        ChatTemplates.read(file)


def test_without_a_template_the_error_says_what_to_do() -> None:
    with pytest.raises(
        InvalidRequestError, match=r"no chat template: send a `prompt` .* `engine.chat_template`"
    ):
        rendered(ChatTemplates(), prompt(), {})


class TestTemplateOfTheRequest:
    """It runs in a process of its own."""

    templates = ChatTemplates({"default": CHATML}, TemplateLimits(memory_bytes=256 << 20, cpu_seconds=1))

    def render(self, template: str, **changes: object) -> str:
        request = prompt(USER, chat_template=template, **changes)
        return rendered(self.templates, request, SPECIAL)

    def test_renders(self) -> None:
        assert self.render("{{ eos_token }}{{ messages[0].content }}") == "</s>Hi <b>& 日本"
        continued = {"continue_final_message": True, "add_generation_prompt": False}
        assert self.render("[{{ messages[0].content }}]", **continued) == "[Hi <b>& 日本"

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{{ ('a' * 2000000000) | length }}", "memory"),
            ("{{ raise_exception('mine') }}", "mine"),
            ("{% if %}", "TemplateSyntaxError"),
            ("{{ ''.__class__.__mro__ }}", "unsafe"),
            ("{{ 'a' * 9000000 }}", "longer than"),
            ("x" * 70_000, "longer than"),
        ],
    )
    def test_errors(self, template: str, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            self.render(template)

    def test_endless_work_is_cut_off(self) -> None:
        started = time.monotonic()
        loop = "{% for i in range(99999) %}"
        with pytest.raises(InvalidRequestError, match="took more than"):
            self.render(f"{loop}{loop}{'{% endfor %}' * 2}")
        assert time.monotonic() - started < 20

    def test_sees_neither_environment_nor_files(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"no loader"):
            self.render("{% include '/etc/hostname' %}")


def test_variables_survive_the_way_to_the_process() -> None:
    value = {"a": [1, 2.5, None, True, "é🤖"]}
    request = prompt(chat_template="{{ value | tojson }}", chat_template_kwargs={"value": value})
    assert json.loads(rendered(ChatTemplates(), request, {})) == value
