"""`ps` and `chat` against a small server that says what a test wants said."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import FakeServer, Outcome, delta

from onecard.gateway.cli.client import Client

Run = Callable[..., Outcome]
CHAT = "/v1/chat/completions"

STATUS: dict[str, Any] = {
    "state": "ready",
    "cards": [
        {
            "name": "card0",
            "device": "cuda:0",
            "total_bytes": 80 << 30,
            "budget_bytes": 72 << 30,
            "arena_bytes": 48 << 30,
            "page_bytes": 32 << 20,
            "pages_free": 1200,
            "pages_total": 1536,
        }
    ],
    "models": [
        {
            "name": "chat",
            "kind": "llm",
            "card": "card0",
            "state": "ready",
            "weight_bytes": 15 << 30,
            "kv_bytes_used": 3 << 30,
            "kv_bytes_owned": 10 << 30,
            "floor_bytes": 8 << 30,
            "ceiling_bytes": 48 << 30,
            "running": 12,
            "waiting": 3,
            "finished": 12345,
        }
    ],
}


def pipe_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> None:
    """A person at a terminal types these lines, then Ctrl-D; an exception stands for its key."""
    typed: Iterator[str | type[BaseException]] = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)


# --- ps ----------------------------------------------------------------------------------------------


def test_ps_shows_models_and_cards(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", STATUS)
    ran = onecard("ps", "--url", server.url)
    assert ran.code == 0
    model = next(line.split() for line in ran.out.splitlines() if line.strip().startswith("chat"))
    numbers = ["15GiB", "3GiB", "10GiB", "8GiB", "48GiB", "12", "3", "12,345"]
    assert model == ["chat", "llm", "card0", "ready", *numbers]
    assert "1,200 of 1,536" in ran.out
    assert "server: ready" in ran.out


def test_ps_and_list_have_one_word_for_one_number(
    onecard: Run, server: FakeServer, local_registry: Path
) -> None:
    """`list` says what is guaranteed for weights and KV together, `ps` what of it is the KV's."""
    server.json("/admin/status", STATUS)
    shown, listed = onecard("ps", "--url", server.url).out, onecard("list", str(local_registry)).out
    heads = (next(line for line in said.splitlines() if " model " in line) for said in (shown, listed))
    of_ps, of_list = (set(re.split(r" {2,}", head.strip())) for head in heads)
    assert {"floor", "ceiling"} <= of_list
    assert {"KV floor", "KV ceiling"} <= of_ps
    assert not {"floor", "ceiling"} & of_ps


HEALTH = {
    "source": "nvml",
    "used_bytes": 62 << 30,
    "free_bytes": 18 << 30,
    "total_bytes": 80 << 30,
    "utilization": 0.87,
    "memory_utilization": 0.42,
    "temperature_c": 61,
    "power_w": 402.5,
    "power_limit_w": 700.0,
    "sm_clock_mhz": 1755,
    "memory_clock_mhz": 2619,
    "throttle_reasons": ["sw_power_cap"],
    "ecc_uncorrected": 0,
    "processes": [{"pid": 7, "name": "x[red]y", "used_bytes": 9 << 30}],
    "own_bytes": 53 << 30,
    "foreign_processes": [{"pid": 7, "name": "x[red]y", "used_bytes": 9 << 30}],
}


def status_with(health: dict[str, Any] | None) -> dict[str, Any]:
    return {**STATUS, "cards": [{**STATUS["cards"][0], "health": health}]}


def last_line(ran: Outcome) -> list[str]:
    return [part.strip() for part in ran.out.rstrip().splitlines()[-1].split("  ") if part.strip()]


def test_ps_shows_what_the_card_says(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", status_with(HEALTH))
    ran = onecard("ps", "--url", server.url)
    assert last_line(ran) == [
        "card0", "62GiB", "80GiB", "87%", "61 °C", "402 W", "sw_power_cap", "x[red]y (7): 9GiB",
    ]  # fmt: skip
    assert json.loads(onecard("ps", "--url", server.url, "--json").out) == status_with(HEALTH)


def test_ps_of_a_card_that_is_quiet(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", status_with({**HEALTH, "throttle_reasons": [], "foreign_processes": []}))
    assert last_line(onecard("ps", "--url", server.url))[-2:] == ["nothing", "none"]


def test_ps_of_a_card_that_tells_nothing(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", status_with({**dict.fromkeys(HEALTH), "source": "none"}))
    assert last_line(onecard("ps", "--url", server.url)) == ["card0", *"???????"]


def test_ps_before_the_first_look_at_a_card(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", status_with(None))
    ran = onecard("ps", "--url", server.url)
    assert ran.code == 0
    assert "temperature" not in ran.out


def test_ps_json_is_the_servers_answer(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", STATUS)
    assert json.loads(onecard("ps", "--url", server.url, "--json").out) == STATUS


def test_ps_where_nothing_listens(onecard: Run) -> None:
    ran = onecard("ps", "--url", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "nothing answers at http://127.0.0.1:9 (Connection refused)" in ran.err
    assert "--url" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_url_needs_no_scheme(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", STATUS)
    assert onecard("ps", "--url", server.url.removeprefix("http://")).code == 0


@pytest.mark.parametrize("url", ["not a url", "ftp://localhost:8000"])
def test_ps_with_a_url_that_is_none(onecard: Run, url: str) -> None:
    ran = onecard("ps", "--url", url)
    assert ran.code == 1
    assert url in ran.err


def test_ps_of_another_kind_of_server(onecard: Run, server: FakeServer) -> None:
    ran = onecard("ps", "--url", server.url)
    assert ran.code == 1
    assert "doesn't look like a onecard server (HTTP 404)" in ran.err


def test_a_server_that_wants_a_key(onecard: Run, server: FakeServer) -> None:
    server.json("/admin/status", {"error": {"message": "no key"}}, status=401)
    ran = onecard("ps", "--url", server.url)
    assert ran.code == 1
    assert "--api-key" in ran.err


def test_the_key_is_sent_as_a_bearer_token(onecard: Run, server: FakeServer) -> None:
    seen: list[str] = []

    async def handler(request: Any) -> Any:
        from aiohttp import web

        seen.append(request.headers["Authorization"])
        return web.json_response(STATUS)

    server.handlers["/admin/status"] = handler
    assert onecard("ps", "--url", server.url + "/v1/", "--api-key", "sesame").code == 0
    assert seen == ["Bearer sesame"]


def test_the_admin_key_of_the_environment_comes_first(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def handler(request: Any) -> Any:
        from aiohttp import web

        seen.append(request.headers["Authorization"])
        return web.json_response(STATUS)

    server.handlers["/admin/status"] = handler
    monkeypatch.setenv("ONECARD_API_KEY", "anybody")
    assert onecard("ps", "--url", server.url).code == 0
    monkeypatch.setenv("ONECARD_ADMIN_KEY", "sesame")
    assert onecard("ps", "--url", server.url).code == 0
    assert seen == ["Bearer anybody", "Bearer sesame"]


# --- chat --------------------------------------------------------------------------------------------


def test_a_piped_question_gets_one_answer(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stream(
        CHAT, {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}, delta("Blue"), delta(" light.")
    )
    pipe_in(monkeypatch, "Why is the\nsky blue?\n")
    ran = onecard(
        "chat", "m", "--url", server.url, "--system", "Be terse.", "--temperature", "0", "--max-tokens", "9"
    )
    assert (ran.code, ran.out) == (0, "Blue light.\n")
    (body,) = server.bodies
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "Why is the\nsky blue?"},
        ],
        "stream": True,
        "temperature": 0.0,
        "max_tokens": 9,
    }


def test_what_is_not_asked_for_is_the_models_own(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stream(CHAT, delta("ok"))
    pipe_in(monkeypatch, "hi")
    onecard("chat", "m", "--url", server.url)
    assert server.bodies[0].keys() == {"model", "messages", "stream"}


def card(name: str, *tasks: str, aliases: Sequence[str] = ()) -> dict[str, Any]:
    return {"id": name, "tasks": tasks, "aliases": aliases}


def test_chat_without_a_model_takes_the_only_one_that_chats(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, chat, alias = (
        card("words", "embed"),
        card("chat", "generate", aliases=["default"]),
        card("default", "generate", aliases=["default"]),
    )
    server.json("/v1/models", {"data": [words, chat, alias]})
    server.stream(CHAT, delta("ok"))
    type_in(monkeypatch, "hi")
    ran = onecard("chat", "--url", server.url)
    assert ran.out.startswith("talking to chat; /reset forgets")
    assert server.bodies[0]["model"] == "chat"


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ([card("a", "generate"), card("b", "generate")], "name one, as in `onecard chat a` (a, b)"),
        ([card("words", "embed")], "serves no model that chats"),
    ],
)
def test_chat_without_a_model_where_none_or_several_chat(
    onecard: Run, server: FakeServer, cards: list[dict[str, Any]], said: str
) -> None:
    server.json("/v1/models", {"data": cards})
    ran = onecard("chat", "--url", server.url)
    assert ran.code == 1
    assert said in ran.err


def test_an_empty_pipe_is_refused(onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_in(monkeypatch, "\n")
    ran = onecard("chat", "m", "--url", server.url)
    assert ran.code == 1
    assert "stdin is empty" in ran.err
    assert not server.bodies


def test_the_conversation_is_remembered_until_reset(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stream(CHAT, delta("yes"))
    type_in(monkeypatch, "one", "", "two", "/reset", "three", "/exit", "never")
    assert onecard("chat", "m", "--url", server.url).code == 0
    said = [[(m["role"], m["content"]) for m in body["messages"]] for body in server.bodies]
    assert said == [
        [("user", "one")],
        [("user", "one"), ("assistant", "yes"), ("user", "two")],
        [("user", "three")],
    ]


def test_ctrl_c_stops_the_answer_and_not_the_program(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stream(CHAT, delta("half"), delta(" an answer"))
    real, turns = Client.stream, iter([True, False])

    def interrupted(self: Client, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        events = real(self, path, body)
        yield next(events)
        if next(turns):
            raise KeyboardInterrupt
        yield from events

    monkeypatch.setattr(Client, "stream", interrupted)
    type_in(monkeypatch, "tell", KeyboardInterrupt, "go on")
    ran = onecard("chat", "m", "--url", server.url)
    assert ran.code == 0
    assert "half (stopped)" in ran.out
    assert "half an answer" in ran.out
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["tell", "half", "go on"]


def test_a_refused_question_is_taken_back_and_the_chat_goes_on(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.json(CHAT, {"error": {"message": "The model `m` does not exist."}}, status=404)
    type_in(monkeypatch, "first", "second")
    ran = onecard("chat", "m", "--url", server.url)
    assert ran.code == 0
    assert ran.err.count("The model `m` does not exist. (HTTP 404)") == 2
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["second"]


def test_an_error_in_the_middle_of_a_stream_is_said(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stream(
        CHAT, delta("so"), {"error": {"message": "the engine failed", "type": "InternalServerError"}}
    )
    pipe_in(monkeypatch, "hi")
    ran = onecard("chat", "m", "--url", server.url)
    assert ran.code == 1
    assert "the engine failed" in ran.err


# --- proxies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_a_proxy_is_not_asked_for_this_machine(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    server.json("/admin/status", STATUS)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        ran = onecard("ps", "--url", url)
        assert (ran.code, ran.err) == (0, "")


def test_a_proxy_is_asked_for_other_machines(
    onecard: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.json("/admin/status", STATUS)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    assert onecard("ps", "--url", "http://gpu-box.example:8000").code == 0, "by way of the proxy"
