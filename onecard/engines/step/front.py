"""The event loop's side of an engine: what the fronts of all kinds share."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from onecard.engines.api import ChatPrompt, InvalidRequestError, ModelInfo
from onecard.engines.runtime.device_loop import DeviceLoop
from onecard.engines.runtime.gate import Gate
from onecard.engines.step.core import StepCore
from onecard.engines.text.fit import Fit
from onecard.engines.text.service import TextService
from onecard.engines.text.tokenizer_info import tokenizer_info

Core = TypeVar("Core", bound=StepCore[Any, Any])


class Front(Generic[Core]):
    """Implements `api.Tokenizing`. A kind's front validates requests, waits at the gate where the model
    sleeps, and posts them to the core on its device loop."""

    def __init__(self, info: ModelInfo, core: Core, loop: DeviceLoop, text: TextService, gate: Gate):
        self.info = info
        self.core = core
        self.gate = gate
        self._loop = loop
        self._text = text

    async def tokenize(self, prompt: str | ChatPrompt, add_special_tokens: bool | None = None) -> list[int]:
        longest = self.info.max_model_len
        name = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        fit = Fit(longest, longest, "count", name, lambda _: f"the {name}")
        return await self._text.tokenize(prompt, add_special_tokens, fit)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return await self._text.detokenize(token_ids)

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        return await self._text.token_strings(token_ids)

    def tokenizer_info(self) -> dict[str, Any]:
        return tokenizer_info(self._text.tokenizer, self.info.max_model_len)

    def _truncation(self, asked: int | None, longest: int | None = None) -> int | None:
        """The most tokens of a text, where the request allows cutting; -1 means `longest`, and that is the
        model's maximum where nothing is said."""
        most = self.info.max_model_len
        if asked is None:
            return None
        if asked < -1 or asked == 0 or asked > most:
            raise InvalidRequestError(
                f"'truncate_prompt_tokens' is {asked}; it may be 1 to {most}, or -1 for all that fits.",
                param="truncate_prompt_tokens",
            )
        return (longest or most) if asked == -1 else asked

    def _post(self, request: Any) -> None:
        self._loop.post(partial(self.core.add, request))

    def _post_abort(self, request: Any) -> None:
        self._loop.post(partial(self._abort, request))

    def _abort(self, request: Any) -> None:
        self._loop.deliver(self.core.abort(request))
