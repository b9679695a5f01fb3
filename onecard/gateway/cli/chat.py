"""`onecard chat`: talk to a model of a running server."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from onecard.gateway.cli.client import Client
from onecard.gateway.cli.command import Command, CommandError, add_server

HELP = "/reset forgets the conversation, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a model's name or alias (default: the only one that chats)"
    )
    add_server(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "--temperature", type=float, help="0: always the likeliest token (default: the model's own)"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer (default: the model's own)"
    )


class Conversation:
    """The messages so far, and how to ask for the next one."""

    def __init__(self, client: Client, model: str, system: str | None, sampling: dict[str, Any]) -> None:
        self._client, self._model, self._sampling = client, model, sampling
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []

    def reset(self) -> None:
        self._messages = []

    def say(self, text: str) -> Iterator[str]:
        """The answer to `text`, piece by piece. What came before an interruption is remembered."""
        self._messages.append({"role": "user", "content": text})
        messages = self._opening + self._messages
        body = {"model": self._model, "messages": messages, "stream": True, **self._sampling}
        answer: list[str] = []
        try:
            with contextlib.closing(self._client.stream("/v1/chat/completions", body)) as events:
                for event in events:
                    for choice in event["choices"]:
                        if piece := choice["delta"].get("content"):
                            answer.append(piece)
                            yield piece
        except CommandError:
            answer.clear()
            raise
        finally:
            # Templates want the roles to alternate: a question without an answer is taken back.
            if answer:
                self._messages.append({"role": "assistant", "content": "".join(answer)})
            else:
                self._messages.pop()


def run(args: argparse.Namespace) -> int:
    asked = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    sampling = {key: value for key, value in asked.items() if value is not None}
    client = Client(args.url, args.api_key)
    model = args.model or only_chat_model(client.get("/v1/models")["data"], client.url)
    conversation = Conversation(client, model, args.system, sampling)
    if not sys.stdin.isatty():  # piped input is one message
        text = sys.stdin.read().strip()
        if not text:
            raise CommandError("nothing to say: stdin is empty")
        _print_answer(conversation.say(text))
        return 0
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() history and line editing
    print(f"talking to {model}; {HELP}")
    return _talk(conversation)


def only_chat_model(cards: Sequence[dict[str, Any]], url: str) -> str:
    """The name of the one model among `/v1/models` that generates text. Raises `CommandError`."""
    aliases = {alias for card in cards for alias in card.get("aliases", ()) if alias != card["id"]}
    names = [
        card["id"]
        for card in cards
        if card["id"] not in aliases and "generate" in card.get("tasks", ["generate"])
    ]
    if not names:
        raise CommandError(f"{url} serves no model that chats")
    if len(names) > 1:
        raise CommandError(
            f"{url} serves several models: name one, as in `onecard chat {names[0]}` ({', '.join(names)})"
        )
    return str(names[0])


def _talk(conversation: Conversation) -> int:
    """Turn after turn; neither Ctrl-C nor a refused request ends it."""
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n" + HELP)
            continue
        if text in ("/exit", "/quit"):
            return 0
        if text == "/reset":
            conversation.reset()
            print("(a new conversation)")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            try:
                _print_answer(conversation.say(text))
            except KeyboardInterrupt:
                print(" (stopped)")
            except CommandError as error:
                print(f"({error})", file=sys.stderr)


def _print_answer(pieces: Iterator[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


COMMAND = Command(
    summary="talk to a model of a running server",
    description="An interactive chat, streamed. With input from a pipe: one question, one answer.",
    epilog=f"""\
in the chat: {HELP}.

  onecard chat
  onecard chat smollm2 --system 'You are terse.' --temperature 0
  echo 'Why is the sky blue?' | onecard chat smollm2 --max-tokens 100
""",
    add_arguments=add_arguments,
    run=run,
)
