"""The event loop's side of a language model: what the gateway calls."""

import asyncio
import random
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from functools import partial

import torch

from onecard.engines.api import (
    ChatPrompt,
    ContextLengthError,
    EngineError,
    GenerateRequest,
    InvalidRequestError,
    ModelInfo,
    SamplingParams,
)
from onecard.engines.paged.core import PagedCore
from onecard.engines.paged.logits import LogitsProcessor, wants_processing
from onecard.engines.paged.output import SequenceOutput
from onecard.engines.paged.request import Request, Sequence
from onecard.engines.paged.stream import TokenStream
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.gate import Gate
from onecard.engines.step.front import Front
from onecard.engines.text.fit import Fit
from onecard.engines.text.service import TextService
from onecard.engines.text.stop_strings import StopStrings
from onecard.registry.units import counted

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Sets the random streams of one request's answers apart (2^64 / golden ratio)."""


class GenerationEngine(Front[PagedCore]):
    """Implements `api.TextGenerator`."""

    def __init__(
        self,
        info: ModelInfo,
        core: PagedCore,
        loop: DeviceLoop,
        text: TextService,
        gate: Gate,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        device: torch.device,
        seed: int = 0,
    ):
        """Raises `ModelFileError` where none of `eos_token_ids` can ever come."""
        super().__init__(info, core, loop, text, gate)
        self._entering: set[asyncio.Task[None]] = set()
        self._aborted: list[Request] = []
        """In this turn of the event loop."""
        self._vocab_size = vocab_size
        self._eos_token_ids = text.vocabulary.ends(eos_token_ids)
        self._device = device
        self._seeds = random.Random(seed)

    async def generate(self, request: GenerateRequest) -> TokenStream:
        with self.gate.arriving():
            return await self._generate(request)

    async def _generate(self, request: GenerateRequest) -> TokenStream:
        arrival_time = time.monotonic()
        params = request.sampling
        field = "messages" if isinstance(request.prompt, ChatPrompt) else "prompt"
        prompt, text = await self._encode(request, field)
        max_tokens = self._settle_max_tokens(len(prompt), params, field)
        self._check_vocabulary([token for token, _ in params.logit_bias], "logit_bias")
        self._check_vocabulary(params.stop_token_ids, "stop_token_ids")

        stream = TokenStream(prompt, text, params.n)
        admitted = Request(
            request_id=request.request_id,
            prompt_token_ids=prompt,
            sampling=params,
            max_tokens=max_tokens,
            arrival_time=arrival_time,
            stream=stream,
            priority=request.priority,
            cache_salt=(request.cache_salt or "").encode(),
            group=request.group,
        )
        seed = self._seeds.getrandbits(63) if params.seed is None else params.seed
        stops = StopStrings(params.stop) if params.stop else None
        processor = await self._processor(params, prompt)
        admitted.sequences = [
            self._sequence(admitted, index, seed, stops, processor) for index in range(params.n)
        ]
        if self.gate.is_open:
            self._admit(admitted)
        else:
            self._admit_later(admitted)
        return stream

    def _admit(self, request: Request) -> None:
        self.gate.touch()
        request.stream.on_abort(partial(self._post_abort, request))
        self._post(request)
        request.stream.on_pause(partial(self._post_pause, request))

    def _post_abort(self, request: Request) -> None:
        """A client that hangs up may end thousands of requests: they go in one call, before the next step."""
        if not self._aborted:
            asyncio.get_running_loop().call_soon(self._post_aborts)
        self._aborted.append(request)

    def _post_aborts(self) -> None:
        aborted, self._aborted = self._aborted, []
        self._loop.post(lambda: self._loop.deliver([d for r in aborted for d in self.core.abort(r)]))

    def _post_pause(self, request: Request, paused: bool) -> None:
        self._loop.post(partial(self.core.pause if paused else self.core.resume, request))

    def _admit_later(self, request: Request) -> None:
        """The model isn't awake: the stream is there, but nothing comes before the model has woken up."""

        async def enter() -> None:
            try:
                await self.gate.enter()
            except EngineError as error:
                request.stream.fail(error)
            else:
                self._admit(request)

        entering = asyncio.create_task(enter())
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)
        request.stream.on_abort(partial(_cancel, entering))
        request.stream.notice = self.gate.notice

    async def _encode(self, request: GenerateRequest, field: str) -> tuple[list[int], str | None]:
        most, room = self.info.max_model_len, self._longest_prompt(request.sampling.max_tokens)
        limit = self._truncation(request.truncate_prompt_tokens, room)
        fit = Fit(most, limit or most, "last" if limit else "all", field, lambda _: f"the {field}")
        encoded = await self._text.encode_prompt(request.prompt, request.add_special_tokens, fit)
        token_ids = encoded.token_ids[-limit:] if limit else encoded.token_ids
        if not token_ids:
            raise InvalidRequestError("The prompt is empty: send at least one token.", param=field)
        return token_ids, encoded.text

    def _longest_prompt(self, max_tokens: int | None) -> int:
        """What the context holds beside the answer; at least 1: too long an answer is refused as such."""
        return max(self.info.max_model_len - (1 if max_tokens is None else max_tokens), 1)

    def _settle_max_tokens(self, num_prompt: int, params: SamplingParams, field: str) -> int:
        """How many tokens an answer may have, so that prompt and answer fit the context."""
        asked, room = params.max_tokens, self.info.max_model_len - num_prompt
        if room < (1 if asked is None else asked):
            raise ContextLengthError(self.info.max_model_len, num_prompt, asked or 0, field)
        if params.min_tokens > room:
            raise InvalidRequestError(
                f"`min_tokens` is {params.min_tokens}, but beside the {counted(num_prompt, 'token')} of the "
                f"{field} the context leaves {room}: ask for fewer.",
                param="min_tokens",
            )
        if asked is not None:
            return asked
        # A default gives way: to the context, and to a request that wants more at least.
        return min(room, max(self.info.default_sampling.get("max_tokens", room), params.min_tokens))

    def _check_vocabulary(self, token_ids: Seq[int], param: str) -> None:
        """The model's logits may have more rows than the tokenizer has tokens: those ids are fine here."""
        bad = next((token for token in token_ids if not 0 <= token < self._vocab_size), None)
        if bad is not None:
            raise InvalidRequestError(
                f"Token id {bad} in `{param}` is out of vocabulary: ids go from 0 to {self._vocab_size - 1}.",
                param=param,
            )

    async def _processor(self, params: SamplingParams, prompt: list[int]) -> LogitsProcessor | None:
        if not wants_processing(params):
            return None
        ends, device = sorted(self._eos_token_ids), self._device
        return await self._text.run(len(prompt), lambda: LogitsProcessor(params, prompt, ends, device))

    def _sequence(
        self,
        request: Request,
        index: int,
        seed: int,
        stops: StopStrings | None,
        processor: LogitsProcessor | None,
    ) -> Sequence:
        params = request.sampling
        return Sequence(
            request=request,
            index=index,
            seed=_signed64(seed + index * SEED_STRIDE),
            token_ids=request.prompt_token_ids,
            output=SequenceOutput(
                self._text.tokenizer,
                params,
                index,
                request.prompt_token_ids,
                request.max_tokens,
                self._eos_token_ids,
                stops,
            ),
            processor=None if processor is None else processor.another(),
        )


def _signed64(value: int) -> int:
    """`value` modulo 2^64 as a signed 64-bit integer."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
