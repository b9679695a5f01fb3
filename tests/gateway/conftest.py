"""A node without models, a real server around it, and a client that checks the shape of every answer."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from jsonschema import Draft202012Validator
from openai_contract import CONTRACT

from onecard.engines.api import (
    CardHealth,
    CardStatus,
    ChatPrompt,
    Embedder,
    EmbedRequest,
    EmbedResult,
    EngineError,
    GenerateRequest,
    ModelInfo,
    ModelNotFoundError,
    ModelStatus,
    NodeStatus,
    Reranker,
    RerankRequest,
    RerankResult,
    ShuttingDownError,
    TextGenerator,
    TokenChunk,
    TokenLogprob,
)
from onecard.engines.paged.stream import TokenStream
from onecard.engines.text.chat_template import text_only
from onecard.gateway.app import create_app
from onecard.gateway.http.connections import Connections
from onecard.gateway.http.listen import app_runner, listen
from onecard.gateway.routes.route import Routes
from onecard.gateway.routes.table import ROUTES
from onecard.gateway.schemas import responses
from onecard.gateway.schemas.rerank import RerankAnswer
from onecard.registry.spec import Registry, ServerSpec

ANSWERS = {
    "/v1/chat/completions": responses.ChatAnswer,
    "/v1/completions": responses.CompletionAnswer,
    "/v1/embeddings": responses.EmbeddingAnswer,
    "/v1/rerank": RerankAnswer,
    "/rerank": RerankAnswer,
    "/v1/models": responses.ModelList,
    "/tokenize": responses.TokenizeAnswer,
    "/detokenize": responses.DetokenizeAnswer,
    "/tokenizer_info": responses.TokenizerInfo,
    "/": responses.RootAnswer,
    "/health": responses.HealthAnswer,
    "/version": responses.VersionAnswer,
    "/admin/status": responses.StatusAnswer,
}


# --- a node without models -----------------------------------------------------------------------------


class FakeTokenizer:
    """One token a UTF-8 byte, so that ids, texts and offsets are easy to say."""

    def __init__(self, info: ModelInfo):
        self.info = info

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        is_chat = isinstance(prompt, ChatPrompt)
        text = render(prompt) if is_chat else prompt
        special = not is_chat if add_special_tokens is None else add_special_tokens
        return [256] * special + list(text.encode())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(t for t in token_ids if t < 256).decode(errors="replace")

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return [f"Ġ{chr(t)}" if t < 256 else "<s>" for t in token_ids]  # raw, as byte-level BPE spells it

    def tokenizer_info(self) -> dict[str, Any]:
        return {
            "tokenizer_class": "Bytes",
            "model_max_length": self.info.max_model_len,
            "vocab_size": 257,
            "bos_token": "<s>",
            "added_tokens_decoder": {},
            "chat_template": None,
        }


def render(prompt: ChatPrompt) -> str:
    return "".join(f"{m['role']}: {m['content']}\n" for m in text_only(prompt).messages)


def logprob_of(text: str, value: float, count: int) -> TokenLogprob:
    others = (("\n", value), ("x", value - 1.5), ("y", float("-inf")))
    top = tuple(TokenLogprob(ord(t), t, v, t.encode(), rank=i) for i, (t, v) in enumerate(others, start=1))
    return TokenLogprob(ord(text[0]), text, value, text.encode(), top[:count], rank=7)


class FakeStream(TokenStream):
    """Says `words`, one a step, in all `n` answers; ends with `length` where max_tokens cuts it."""

    def __init__(
        self, engine: "FakeGenerator", request: GenerateRequest, ids: Sequence[int], text: str | None
    ):
        super().__init__(ids, text, request.sampling.n)
        self.engine, self.request = engine, request
        self.cached_tokens = 3
        self.aborted, self.ended = asyncio.Event(), False
        self._speaker = asyncio.create_task(self._speak())

    def take(self) -> list[TokenChunk] | None:
        """Ends with the words, finished or not."""
        return super().take() or (None if self.ended else [])

    def abort(self) -> None:
        if not self.ended:
            self.aborted.set()
            self._speaker.cancel()

    async def _speak(self) -> None:
        sampling, words = self.request.sampling, self.engine.words
        count = len(words) if sampling.max_tokens is None else min(len(words), sampling.max_tokens)
        try:
            if sampling.max_tokens == 0:
                for index in range(sampling.n):
                    self.push(TokenChunk(index, "", finish_reason="length"))
            for step in range(count):
                await self.engine.before_step(step)
                for index in range(sampling.n):
                    reason = "stop" if count == len(words) else "length"
                    self.push(self.chunk(index, words[step], reason, step == count - 1))
            self.ended = True
            self.notice = None  # rings once more: `take` may have found nothing yet but an end
        except Exception as error:
            self.fail(error)

    def chunk(self, index: int, word: str, reason: Any, last: bool) -> TokenChunk:
        sampling = self.request.sampling
        entries = None
        if sampling.logprobs is not None:
            entries = (logprob_of(word, -0.25 * (sampling.n - index), sampling.logprobs),)
        stop_reason = self.engine.stop_reason if last and reason == "stop" else None
        return TokenChunk(
            index, word, tuple(map(ord, word[:1])) or (0,), entries, reason if last else None, stop_reason
        )


class FakeGenerator(FakeTokenizer):
    def __init__(self, info: ModelInfo):
        super().__init__(info)
        self.words = ["Hello", " wörld", '"!\n']
        self.stop_reason: int | str | None = None
        self.requests: list[GenerateRequest] = []
        self.streams: list[FakeStream] = []
        self.refuses: Callable[[GenerateRequest], Exception | None] = lambda request: None
        self.fails_at: dict[int, Exception] = {}
        self.gates: dict[int, asyncio.Event] = {}

    async def before_step(self, step: int) -> None:
        if step in self.gates:
            await self.gates[step].wait()
        if step in self.fails_at:
            raise self.fails_at[step]

    def hold(self, step: int) -> asyncio.Event:
        """Make every stream wait before `step` until the event is set."""
        return self.gates.setdefault(step, asyncio.Event())

    async def generate(self, request: GenerateRequest) -> FakeStream:
        self.requests.append(request)
        if (error := self.refuses(request)) is not None:
            raise error
        await asyncio.sleep(0)
        given = request.prompt
        ids = (
            list(given)
            if isinstance(given, tuple)
            else await self.tokenize(given, request.add_special_tokens)
        )
        stream = FakeStream(
            self, request, ids, None if isinstance(given, tuple) else await self.detokenize(ids)
        )
        if request.sampling.prompt_logprobs is not None:
            texts = [chr(t) for t in ids[1:]]
            stream.prompt_logprobs = [
                None,
                *(logprob_of(text, -0.5, request.sampling.prompt_logprobs) for text in texts),
            ]
        self.streams.append(stream)
        return stream


class FakeOneShot(FakeTokenizer):
    """What embedders and rerankers share: requests wait, run, and may be cancelled meanwhile."""

    def __init__(self, info: ModelInfo):
        super().__init__(info)
        self.requests: list[Any] = []
        self.error: EngineError | None = None
        self.gate: asyncio.Event | None = None
        """Requests wait for it before they run."""
        self.running: asyncio.Event | None = None
        """Requests run until it is set."""
        self.cancelled = asyncio.Event()

    async def run(self, request: Any, on_begun: Callable[[], None] | None) -> None:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        try:
            if self.gate is not None:
                await self.gate.wait()
            if on_begun is not None:
                on_begun()
            if self.running is not None:
                await self.running.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class FakeEmbedder(FakeOneShot):
    async def embed(self, request: EmbedRequest, on_begun: Callable[[], None] | None = None) -> EmbedResult:
        await self.run(request, on_begun)
        rows = [[len(x), i, 0.1, -1 / 3] for i, x in enumerate(request.inputs)]
        return EmbedResult(np.array(rows, dtype=np.float32), sum(len(x) for x in request.inputs))


class FakeReranker(FakeOneShot):
    """The longer a document, the better."""

    async def rerank(
        self, request: RerankRequest, on_begun: Callable[[], None] | None = None
    ) -> RerankResult:
        await self.run(request, on_begun)
        lengths = np.array([len(document) for document in request.documents], dtype=np.float32)
        scores = lengths - 2 if request.raw_scores else lengths / 100
        return RerankResult(scores, len(request.query) * len(lengths) + int(lengths.sum()))


class FakeNode:
    def __init__(self) -> None:
        self.chat = FakeGenerator(
            ModelInfo(
                "talker",
                "llm",
                "/models/talker",
                1700000000,
                512,
                frozenset({"generate"}),
                ("default", "org/talker-v2"),
            )
        )
        self.embed = FakeEmbedder(
            ModelInfo("embedder", "embedding", "/models/embedder", 1700000001, 256, frozenset({"embed"}))
        )
        self.rerank = FakeReranker(
            ModelInfo("judge", "reranker", "/models/judge", 1700000003, 256, frozenset({"rerank"}))
        )
        """Served where a test adds it to `engines`."""
        self.engines: list[FakeTokenizer] = [self.chat, self.embed]
        self.state: Any = "ready"

    def models(self) -> Sequence[ModelInfo]:
        return [engine.info for engine in self.engines]

    def engine(self, name: str) -> TextGenerator | Embedder | Reranker:
        if self.state == "draining":
            raise ShuttingDownError("The server is shutting down.")
        for engine in self.engines:
            if name in (engine.info.name, *engine.info.aliases):
                return engine
        raise ModelNotFoundError(name)

    def status(self) -> NodeStatus:
        card = CardStatus("card0", "cpu", 100, 90, 80, 8, 5, 10, CardHealth("psutil", used_bytes=60))
        models = [
            ModelStatus(i.name, i.kind, "card0", "ready", 10, 1, 2, 3, 4, 5, 6, 7) for i in self.models()
        ]
        return NodeStatus(self.state, (card,), tuple(models))

    def begin_drain(self) -> None:
        self.state = "draining"

    async def drained(self) -> None: ...

    async def stop(self) -> None: ...


class FakeMetrics:
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int, float]] = []
        self.rejections: list[tuple[str, str]] = []
        self.sizes: list[tuple[int | None, int | None]] = []
        self.lags: list[float] = []

    def look(self) -> None: ...

    def render(self) -> bytes:
        return b"vllm:num_requests_running 0.0\n"

    def http(
        self,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int | None = None,
        response_bytes: int | None = None,
    ) -> None:
        self.requests.append((handler, method, status, seconds))
        self.sizes.append((request_bytes, response_bytes))

    def event_loop_lag(self, seconds: float) -> None:
        self.lags.append(seconds)

    def rejected(self, model_name: str, reason: str) -> None:
        self.rejections.append((model_name, reason))


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def loaded_node() -> FakeNode:
    """One that takes the place of another `node`."""
    return FakeNode()


@pytest.fixture
def second_talker(node: FakeNode) -> FakeGenerator:
    """Another model of the talker's kind, served too."""
    engine = FakeGenerator(
        ModelInfo("second", "llm", "/models/second", 1700000002, 128, frozenset({"generate"}))
    )
    node.engines.append(engine)
    return engine


@pytest.fixture
def judge(node: FakeNode) -> FakeReranker:
    """A reranker, served too."""
    node.engines.append(node.rerank)
    return node.rerank


@pytest.fixture
def metrics() -> FakeMetrics:
    return FakeMetrics()


# --- a real server around it ---------------------------------------------------------------------------


@dataclass
class Reply:
    """`body` is parsed JSON; None where the answer is not JSON."""

    status: int
    headers: Any
    text: str
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.body) == {"error"}
        assert set(self.body["error"]) == {"message", "type", "param", "code"}
        return self.body["error"]


class Client:
    """Talks to the server; every 200 is held against our description and OpenAI's."""

    def __init__(self, url: str, session: aiohttp.ClientSession, contract: "Contract", app: web.Application):
        self.url, self.session, self.contract, self.app = url, session, contract, app

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def get(self, path: str, **options: Any) -> Reply:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: Any, *, check: bool = True, **options: Any) -> Reply:
        return await self.request("POST", path, check=check, json=body, **options)

    async def request(self, method: str, path: str, *, check: bool = True, **options: Any) -> Reply:
        async with self.session.request(method, self.url + path, **options) as response:
            text = await response.text()
            is_json = response.content_type == "application/json"
            reply = Reply(response.status, response.headers, text, json.loads(text) if is_json else None)
        if check and reply.status == 200 and is_json and path in ANSWERS:
            ANSWERS[path].model_validate(reply.body)
            self.contract.check(path, reply.body)
        if reply.status >= 400 and is_json and "error" in reply.body:
            responses.ErrorAnswer.model_validate(reply.body)
            self.contract.check("error", reply.body)
        return reply

    async def events(self, path: str, body: Any, *, check: bool = True) -> list[Any]:
        """What a stream says; its end (`[DONE]`) is checked and left out."""
        async with self.session.post(self.url + path, json={**body, "stream": True}) as response:
            text = await response.text()
            assert response.status == 200, text
            assert response.content_type == "text/event-stream"
        lines = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(":"))
        frames = [frame for frame in lines.split("\n\n") if frame]
        assert all(frame.startswith("data: ") for frame in frames)
        assert frames[-1] == "data: [DONE]"
        chunks = [json.loads(frame.removeprefix("data: ")) for frame in frames[:-1]]
        for chunk in chunks if check else ():
            if "error" not in chunk:
                model = responses.ChatChunk if "chat" in path else responses.CompletionChunk
                model.model_validate(chunk)
                self.contract.check(path + "#chunk", chunk)
        return chunks


OPENAI_SCHEMAS = {
    "/v1/chat/completions": "CreateChatCompletionResponse",
    "/v1/chat/completions#chunk": "CreateChatCompletionStreamResponse",
    "/v1/completions": "CreateCompletionResponse",
    "/v1/embeddings": "CreateEmbeddingResponse",
    "/v1/models": "ListModelsResponse",
    "error": "ErrorResponse",
}


class Contract:
    """OpenAI's published schemas; checks nothing where the file is not at hand."""

    def __init__(self) -> None:
        self.present = CONTRACT.exists()
        self.checked: list[str] = []
        document = nullable_to_null(json.loads(CONTRACT.read_text())) if self.present else {}
        self.validators = {
            path: Draft202012Validator(
                {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            )
            for path, name in (OPENAI_SCHEMAS.items() if self.present else ())
        }

    def check(self, path: str, answer: Any) -> None:
        if path in self.validators:
            self.validators[path].validate(answer)
            self.checked.append(path)


def nullable_to_null(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable: true` as JSON schema says it."""
    if isinstance(schema, list):
        return [nullable_to_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    converted = {key: nullable_to_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [converted, {"type": "null"}]} if schema.get("nullable") is True else converted


@pytest.fixture(scope="session")
def contract() -> Contract:
    return Contract()


Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(node: FakeNode, metrics: FakeMetrics, contract: Contract) -> AsyncIterator[Serve]:
    """Starts a server on a free port: `serve(max_queued_requests=1, keep_alive=0.1, ...)`."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            keep_alive: float = 10.0,
            body_timeout: float = 60.0,
            routes: Routes = ROUTES,
            connections: Connections | None = None,
            **server: Any,
        ) -> Client:
            registry = Registry(server=replace(ServerSpec(), **server))
            app = create_app(
                node,
                registry,
                metrics,
                keep_alive=keep_alive,
                body_timeout=body_timeout,
                routes=routes,
                connections=connections,
            )
            runner = app_runner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            stack.callback((await listen(runner, listener)).close)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Client(f"http://127.0.0.1:{listener.getsockname()[1]}", session, contract, app)

        yield start


@pytest.fixture
async def client(serve: Serve) -> Client:
    return await serve()
