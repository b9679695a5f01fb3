"""A tokenizer from a GGUF file's metadata.

The metadata holds the vocabulary, the merges and the name of a pre-tokenizer; how that pre-tokenizer
splits text is known only by its name (llama.cpp's `LLAMA_VOCAB_PRE_TYPE_*`), and written down here for
the families served.
"""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.hf_tokenizer import set_bos_eos
from onecard.engines.text.token_text import SpecialTokens

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Token types (`gguf.TokenType`)."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# name -> (regular expressions that split, one after another; NFC first?; known pieces stay whole?)
_PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool, bool]] = {
    "gpt-2": ((_GPT2,), False, False),
    "default": ((_GPT2,), False, False),
    "smollm": ((r"\p{N}", _GPT2), False, False),
    "starcoder": ((r"\p{N}", _GPT2), False, False),
    "llama3": ((_LLAMA3,), False, True),
    "llama-v3": ((_LLAMA3,), False, True),
    "llama-bpe": ((_LLAMA3,), False, True),
    "qwen2": ((_QWEN2,), True, False),
    "deepseek-r1-qwen": ((_QWEN2,), True, False),
    "tekken": ((_TEKKEN,), False, True),
}
_ADDS_BOS = {"llama3", "llama-v3", "llama-bpe", "tekken"}
_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
"""Control tokens that end an answer whatever the file names as its one end token."""


def check_vocabulary(path: Path, metadata: dict[str, Any]) -> None:
    """Raises `ModelFileError` where a GGUF file has no tokens, lists that don't go with them, or a kind of
    vocabulary that isn't known."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelFileError(
            f"{path} holds no tokenizer (tokenizer.ggml.tokens): set `engine.tokenizer` to the folder or hub "
            "id of the original model's"
        )
    try:
        _check_kind(metadata)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error
    for name in ("scores", "token_type"):
        values = metadata.get(f"tokenizer.ggml.{name}")
        if values is not None and (not isinstance(values, list) or len(values) != len(tokens)):
            raise ModelFileError(
                f"{path} is damaged: tokenizer.ggml.{name} has not one number for each token"
            )


def _check_kind(metadata: dict[str, Any]) -> None:
    kind, name = metadata.get("tokenizer.ggml.model"), _pre_name(metadata)
    if kind not in ("gpt2", "llama"):
        raise ModelFileError(
            f"The GGUF file's tokenizer is of the kind {kind!r}; 'gpt2' and 'llama' can be read. "
            "Set 'tokenizer' in the model's engine settings to the original model's folder or hub id."
        )
    if kind == "gpt2" and name not in _PRE_TOKENIZERS:
        raise ModelFileError(
            f"The GGUF file's pre-tokenizer {name!r} is not known ({', '.join(sorted(_PRE_TOKENIZERS))}). "
            "Set 'tokenizer' in the model's engine settings to the original model's folder or hub id."
        )


def build_backend(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    """Raises `ModelFileError` for a kind of vocabulary that isn't known."""
    _check_kind(metadata)
    kind = metadata["tokenizer.ggml.model"]
    if kind == "gpt2":
        backend = _byte_level_bpe(metadata)
    else:
        backend = _sentencepiece_bpe(metadata)
    _add_whole_tokens(backend, metadata)
    names = special_tokens(metadata).names
    adds_bos = metadata.get(
        "tokenizer.ggml.add_bos_token", kind == "llama" or _pre_name(metadata) in _ADDS_BOS
    )
    adds_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    bos, eos = (names.get("bos_token") if adds_bos else None), (names.get("eos_token") if adds_eos else None)
    if bos or eos:
        set_bos_eos(backend, bos, eos)
    return backend


def special_tokens(metadata: dict[str, Any]) -> SpecialTokens:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in keys.items()}
    names = {role: tokens[i] for role, i in ids.items() if i is not None and i < len(tokens)}
    control = {token: i for i, token in enumerate(tokens) if _type(metadata, i) == _CONTROL}
    ends = [ids["eos_token"], *(metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom"))]
    ends += [control.get(token) for token in _TURN_ENDS]
    eos = tuple(dict.fromkeys(i for i in ends if i is not None))
    return SpecialTokens(ids["bos_token"], eos, ids["pad_token"], names)


def chat_templates(metadata: dict[str, Any]) -> dict[str, str]:
    """`tokenizer.chat_template` is the default; `tokenizer.chat_template.NAME` are others."""
    prefix = "tokenizer.chat_template"
    named = {key[len(prefix) + 1 :]: text for key, text in metadata.items() if key.startswith(prefix + ".")}
    return named | ({"default": metadata[prefix]} if prefix in metadata else {})


def _pre_name(metadata: dict[str, Any]) -> str:
    return metadata.get("tokenizer.ggml.pre", "default")


def _type(metadata: dict[str, Any], token_id: int) -> int:
    types = metadata.get("tokenizer.ggml.token_type")
    return types[token_id] if types else 1


def _byte_level_bpe(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    name = _pre_name(metadata)
    patterns, normalize, ignore_merges = _PRE_TOKENIZERS[name]
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [_split_merge(merge) for merge in metadata["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    if normalize:
        backend.normalizer = normalizers.NFC()
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _split_merge(merge: str) -> tuple[str, str]:
    # The separator is the one space that isn't the first character (a half may begin with a space itself).
    cut = merge.index(" ", 1)
    return merge[:cut], merge[cut + 1 :]


def _sentencepiece_bpe(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    model = models.BPE(
        vocab,
        _merges_from_scores(vocab, scores),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    prefix_space = metadata.get("tokenizer.ggml.add_space_prefix", True)
    prepend: list[Any] = [normalizers.Prepend("\u2581")] if prefix_space else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "\u2581")])
    strip: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges_from_scores(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair with the best score: so every way to halve a piece, best piece first."""
    ranked: list[tuple[float, str, str]] = []
    for piece, index in vocab.items():
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in vocab and right in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        ranked.extend((scores[index], left, right) for left, right in known)
    ranked.sort(key=lambda entry: -entry[0])
    return [(left, right) for _, left, right in ranked]


def _add_whole_tokens(backend: tokenizers.Tokenizer, metadata: dict[str, Any]) -> None:
    """Control tokens (special) and user-defined ones (plain) are matched whole, before all splitting."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or []
    whole = [
        AddedToken(token, normalized=False, special=kind != _USER_DEFINED)
        for token, kind in zip(tokens, types)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    backend.add_tokens(whole)
