"""One tokenizer for every model: text to ids and back, token bytes, special tokens, chat template.

The work is done by the Rust `tokenizers` library, whose batch calls release the GIL (the others don't); this
class adds what a server needs around it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from onecard.engines.api import ChatPrompt, EngineFailedError
from onecard.engines.api.errors import is_panic
from onecard.engines.text import gguf_tokenizer, hf_tokenizer
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.token_text import SpecialTokens, TokenSpelling, spelling_of
from onecard.engines.weights.gguf_file import GgufFile

SHORT_CHARS, SHORT_TOKENS = 2000, 1000
"""Some 0.3 ms of work: to let go of the GIL and wait for it again costs about as much."""


@contextmanager
def answered(doing: str) -> Iterator[None]:
    """Around calls of the library: whatever goes wrong there, also a panic, is an `EngineFailedError`."""
    try:
        yield
    except ModelFileError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise EngineFailedError(f"The model's tokenizer can't {doing}: {reason}.") from error


class Tokenizer:
    """Immutable after construction and safe to use from several threads at once."""

    def __init__(self, backend: tokenizers.Tokenizer, special: SpecialTokens, templates: ChatTemplates):
        # A checkpoint's tokenizer.json may carry the padding and truncation it was trained with.
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.special = special
        self.bos_token_id = special.bos_token_id
        self.eos_token_ids = special.eos_token_ids
        """Ids that end an answer, the tokenizer's own first."""
        self._templates = templates
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.max_token_id = max(vocabulary.values(), default=-1)
        """The largest id that has a token (a model's embedding may have more rows)."""
        self.longest_token = max(map(len, vocabulary), default=1)
        """Characters of the longest token in the vocabulary's own spelling: none is more of a text."""
        decoder: Any = backend.decoder
        self.spelling: TokenSpelling = spelling_of(json.loads(decoder.__getstate__()) if decoder else None)
        self._bytes: dict[int, bytes] = {}

    # --- text and ids ---------------------------------------------------------------------------------

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) > SHORT_CHARS:
            return self.encode_batch([text], add_special_tokens)[0]
        with answered("read the text"):
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """All texts in one call, on the library's own threads, without the GIL."""
        with answered("read the text"):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
            return [encoding.ids for encoding in encodings]

    def truncate(self, token_ids: list[int], max_tokens: int) -> list[int]:
        """The first `max_tokens`, but with the special tokens that close an encoded text kept at its end."""
        closing = self._num_closing
        if len(token_ids) <= max_tokens:
            return token_ids
        if max_tokens <= closing or not closing or token_ids[-1] not in self.special_token_ids:
            return token_ids[:max_tokens]
        return token_ids[: max_tokens - closing] + token_ids[-closing:]

    @cached_property
    def _num_closing(self) -> int:
        """How many special tokens encoding adds behind a text (BERT: one, [SEP])."""
        with answered("read a text"):
            mask = self.backend.encode("a", add_special_tokens=True).special_tokens_mask
        return next((count for count, special in enumerate(reversed(mask)) if not special), 0)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        ids = list(token_ids)
        with answered("write the text"):
            if len(ids) > SHORT_TOKENS:
                return self.backend.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    # --- single tokens --------------------------------------------------------------------------------

    def token_piece(self, token_id: int) -> str:
        """The vocabulary's own spelling (`Ġhello`, `▁hello`, `##ing`); empty for an id without a token."""
        return self.backend.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes that the token stands for in running text; perhaps only part of a character."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self.spelling.token_bytes(self.token_piece(token_id))
        return known

    def token_string(self, token_id: int) -> str:
        """The token as text, as logprobs show it; U+FFFD where its bytes are not whole characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def max_trained_id(self) -> int:
        """`max_token_id` without the tokens that were added to the vocabulary afterwards."""
        return max(self.backend.get_vocab(with_added_tokens=False).values(), default=-1)

    @property
    def chat_templates(self) -> dict[str, str]:
        """Sources by name."""
        return self._templates.sources

    # --- chat -----------------------------------------------------------------------------------------

    async def render_chat(self, prompt: ChatPrompt) -> str:
        """The prompt text of `prompt` under the model's chat template (or the one it brings itself).

        The text holds the template's own special tokens: encode it with `add_special_tokens=False`. Raises
        `InvalidRequestError` with the template's message where it refuses the messages.
        """
        return await self._templates.render(prompt, self.special.names)


def load_tokenizer(path: Path, chat_template_file: Path | None = None, lowercase: bool = False) -> Tokenizer:
    """The tokenizer of a model folder or a GGUF file.

    `chat_template_file` replaces its chat template; `lowercase` puts lower-casing before all else (a
    sentence-transformers model's `do_lower_case`).

    Raises `ModelFileError` where there is no tokenizer that can be read, or none that reads a text.
    """
    try:
        tokenizer = _load(path, chat_template_file, lowercase)
        tokenizer.encode("a")
    except ModelFileError:
        raise
    except EngineFailedError as error:
        raise ModelFileError(f"{path} holds no tokenizer that works: {error.message}") from error
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = f"{type(error).__name__}: {error}"  # a KeyError says nothing but the key
        raise ModelFileError(f"{path} holds no tokenizer that can be read: {reason}") from error
    return tokenizer


def _load(path: Path, chat_template_file: Path | None, lowercase: bool) -> Tokenizer:
    if path.is_file():
        metadata = GgufFile(path).metadata
        backend = gguf_tokenizer.build_backend(metadata)
        special = gguf_tokenizer.special_tokens(metadata)
        templates = gguf_tokenizer.chat_templates(metadata)
    else:
        backend = hf_tokenizer.load_backend(path)
        config = hf_tokenizer.load_tokenizer_config(path)
        hf_tokenizer.apply_bos_eos_flags(backend, config)
        special = hf_tokenizer.special_tokens(path, config, backend)
        templates = hf_tokenizer.chat_templates(path, config)
    if lowercase:
        rest = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
    if chat_template_file is not None:
        return Tokenizer(backend, special, ChatTemplates.read(chat_template_file))
    return Tokenizer(backend, special, ChatTemplates(templates, origin=str(path)))
