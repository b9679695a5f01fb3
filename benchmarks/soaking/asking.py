"""One request over HTTP: asked, read to its end or hung up on, and what came of it."""

import asyncio
import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp
import numpy as np
from soaking.questions import Question, Reply

DEADLINE_SECONDS = 120.0
STATUS_OF_TYPE = {"InternalServerError": 500, "ServiceUnavailableError": 503}


@dataclass
class Outcome:
    """`status` 0: no answer in time, or half of one; None: hung up by us. `said`: a stream's comments."""

    status: int | None
    reply: Reply | None = None
    message: str = ""
    retry_after: str | None = None
    first: float | None = None
    """Seconds to a stream's first text."""
    said: tuple[str, ...] = ()
    seconds: float = 0.0


class BrokenAnswerError(Exception):
    """An answer that isn't what the API promises."""


@dataclass
class HangUp:
    """We leave after so many seconds, or so many frames of a stream, whichever comes first."""

    seconds: float
    frames: int

    @classmethod
    def draw(cls, random: Random) -> "HangUp":
        return cls(
            random.choice([0.003, 0.05, 0.5, 2.0]) * random.random() * 2, random.choice([1, 2, 8, 1000])
        )


class Asker:
    """Sends requests over `session` to the server at `url`."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def ask(
        self, question: Question, model: str, stream: bool = False, leave: HangUp | None = None
    ) -> Outcome:
        """Never raises for what the server does, and never takes longer than the deadline."""
        body = {"model": model, **question.body}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        began = time.monotonic()
        limit = DEADLINE_SECONDS if leave is None else leave.seconds
        try:
            async with asyncio.timeout(limit):
                outcome = await self._post(question, body, began, None if leave is None else leave.frames)
        except TimeoutError:
            late = Outcome(0, message=f"no whole answer within {DEADLINE_SECONDS:.0f} s")
            outcome = late if leave is None else Outcome(None)
        except (aiohttp.ClientError, BrokenAnswerError, ValueError, KeyError, IndexError) as error:
            outcome = Outcome(0, message=f"{type(error).__name__}: {error}")
        outcome.seconds = time.monotonic() - began
        return outcome

    async def content(self, question: Question, model: str, more: dict[str, Any]) -> tuple[int, Any]:
        """The status and JSON of an answer; `more` goes into the body."""
        return await self._json("POST", question.path, {"model": model, **question.body, **more})

    async def order(self, path: str) -> tuple[int, Any]:
        """POST to an operator's route; (0, why) where no answer comes in time."""
        return await self._json("POST", path)

    async def look(self, path: str) -> Any:
        """GET; raises `BrokenAnswerError` for anything but 200."""
        status, content = await self._json("GET", path)
        if status != 200:
            raise BrokenAnswerError(f"GET {path}: {status} {content}")
        return content

    async def _json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        try:
            async with (
                asyncio.timeout(DEADLINE_SECONDS),
                self._session.request(method, self._url + path, json=body) as response,
            ):
                return response.status, await response.json()
        except TimeoutError:
            return 0, f"no answer within {DEADLINE_SECONDS:.0f} s"
        except (aiohttp.ClientError, ValueError) as error:
            return 0, f"{type(error).__name__}: {error}"

    async def _post(
        self, question: Question, body: Mapping[str, Any], began: float, frames: int | None
    ) -> Outcome:
        async with self._session.post(self._url + question.path, json=body) as response:
            if response.status != 200:
                message = json.loads(await response.read())["error"]["message"]
                return Outcome(response.status, None, message, response.headers.get("Retry-After"))
            if body.get("stream"):
                return await _read_stream(response, began, frames)
            return Outcome(200, _whole(question, json.loads(await response.read())))


def _whole(question: Question, content: dict[str, Any]) -> Reply:
    if question.kind == "embedding":
        rows = [_vector(row["embedding"]) for row in content["data"]]
        return Reply(tokens=content["usage"]["total_tokens"], vectors=np.stack(rows))
    choices = sorted(content["choices"], key=lambda choice: choice["index"])
    texts = (c["message"]["content"] if question.kind == "chat" else c["text"] for c in choices)
    reasons = (c["finish_reason"] for c in choices)
    return Reply(tuple(texts), tuple(reasons), content["usage"]["completion_tokens"])


def _vector(embedding: Any) -> np.ndarray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), "<f4")
    return np.array(embedding, dtype=np.float32)


async def _read_stream(response: aiohttp.ClientResponse, began: float, frames: int | None) -> Outcome:
    outcome = Outcome(200)
    parts: dict[int, list[str]] = {}
    reasons: dict[int, str | None] = {}
    tokens, seen = None, 0
    async for raw in response.content:
        line = raw.decode().strip()
        if line.startswith(":"):
            outcome.said += (line[1:].strip(),)
        if not line.startswith("data:"):
            continue
        seen += 1
        if frames is not None and seen > frames:
            return Outcome(None, first=outcome.first)
        if line == "data: [DONE]":
            break
        content = json.loads(line[5:])
        if "error" in content:
            error = content["error"]
            return Outcome(STATUS_OF_TYPE.get(error["type"], 0), None, error["message"], retry_after="stream")
        for choice in content["choices"]:
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text and outcome.first is None:
                outcome.first = time.monotonic() - began
            parts.setdefault(choice["index"], []).append(text or "")
            reasons[choice["index"]] = choice["finish_reason"] or reasons.get(choice["index"])
        if content.get("usage"):
            tokens = content["usage"]["completion_tokens"]
    else:
        raise BrokenAnswerError("a stream ended without [DONE]")
    if tokens is None:
        raise BrokenAnswerError("a stream ended without its usage")
    order = sorted(parts)
    texts = tuple("".join(parts[index]) for index in order)
    outcome.reply = Reply(texts, tuple(reasons[index] for index in order), tokens)
    return outcome
