"""Registry files: what is read, and what is said of each kind of mistake."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onecard.registry.loader import load, load_registry
from onecard.registry.spec import EngineSpec, MemoryAmount, ModelSpec, Registry, RegistryError, ServerSpec

Load = Callable[[str], Registry]
Mistakes = Callable[[str], list[str]]

MODEL = "models:\n  - name: m\n    source: hf:org/name\n"


def test_defaults_are_those_of_the_specs(load: Load) -> None:
    registry = load(MODEL)
    assert registry.server == ServerSpec()
    assert [card.name for card in registry.cards] == ["card0"]
    assert registry.models[0].engine == EngineSpec()
    assert registry.models[0].memory == MemoryAmount(fraction=0.0)
    assert registry.models[0].burst == MemoryAmount(fraction=1.0)


def test_every_kind_of_value(load: Load) -> None:
    registry = load("""
server:
  {port: 0, api_keys: [${KEY:-}, "", ~, secret], max_body_bytes: 1.5MiB, drain_timeout: 1e1, wake_timeout: 2}
cards:
  - {name: big, device: "cuda:1", memory: 1, page_size: 64KiB}
  - {name: small, device: cpu, memory: 4GB, page_size: auto, quantum: 0.05}
models:
  - name: m
    kind: embedding
    source: hf:org/name@refs/pr/3
    card: small
    memory: 0.25
    burst: 2147483648
    weight: 2
    priority: -1
    ttl: 600
    sleep_level: 2
    aliases: [a, b]
    engine:
      max_model_len: auto
      dtype: bfloat16
      enable_prefix_caching: false
      enforce_eager: true
      cudagraph_capture_sizes: [1, 8]
      tokenizer: org/other
""")
    server, (big, small), model = registry.server, registry.cards, registry.models[0]
    assert (server.port, server.api_keys, server.max_body_bytes) == (0, ("secret",), 3 << 19)
    assert (server.drain_timeout, server.wake_timeout) == (10.0, 2.0)
    assert (big.memory, big.page_size) == (MemoryAmount(fraction=1.0), 65536)
    assert (small.memory, small.page_size) == (MemoryAmount(nbytes=4_000_000_000), None)
    assert (model.memory.fraction, model.burst.nbytes, model.weight) == (0.25, 1 << 31, 2.0)
    assert registry.find("b") is model
    assert registry.card_of(model) is small
    assert (big.quantum, small.quantum) == (None, 0.05)
    assert (model.priority, model.ttl, model.sleep_level) == (-1, 600.0, 2)
    assert model.engine == EngineSpec(
        dtype="bfloat16",
        enable_prefix_caching=False,
        enforce_eager=True,
        cudagraph_capture_sizes=(1, 8),
        tokenizer="org/other",
    )


@pytest.mark.parametrize(
    ("keys", "pinned", "preload", "ttl"),
    [
        ("ttl: never, preload: false", False, False, None),
        ("ttl: ~, pinned: true", True, True, None),
        ("ttl: 0.5, pinned: false, preload: true", False, True, 0.5),
        ("ttl: 1e3", False, True, 1000.0),
    ],
)
def test_when_a_model_sleeps(keys: str, pinned: bool, preload: bool, ttl: float | None, load: Load) -> None:
    model = load(f"models: [{{name: m, source: hf:o/n, {keys}}}]").models[0]
    assert (model.pinned, model.preload, model.ttl) == (pinned, preload, ttl)


@pytest.mark.parametrize("nothing", ["0", "0.0", "0MiB", "0 GB", "'0'", "0B"])
def test_a_floor_of_nothing_is_the_same_however_it_is_written(nothing: str, load: Load) -> None:
    model = load(f"models: [{{name: m, source: hf:o/n, memory: {nothing}}}]").models[0]
    assert model.memory == MemoryAmount(fraction=0.0) == ModelSpec("n").memory


def test_an_admin_key_that_is_empty_is_none(write: Callable[[str], Path]) -> None:
    path = write("server: {admin_key: ${ADMIN:-}}\n" + MODEL)
    assert load(path, {}).registry.server.admin_key == ""
    assert load(path, {"ADMIN": "123"}).registry.server.admin_key == "123"


def test_paths_start_at_the_registrys_folder(load: Load, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "chat.jinja").touch()
    (tmp_path / "tok").mkdir()
    model = load("""
models:
  - {name: m, source: m.gguf, engine: {chat_template: ./chat.jinja, tokenizer: tok}}
""").models[0]
    assert model.source == str(tmp_path / "m.gguf")
    assert model.engine.chat_template == str(tmp_path / "chat.jinja")
    assert model.engine.tokenizer == str(tmp_path / "tok")


def test_a_relative_registry_path(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").touch()
    load("models: [{name: m, source: ./m.gguf}]")
    monkeypatch.chdir(tmp_path.parent)
    registry = load_registry(Path(tmp_path.name) / "registry.yaml")
    assert registry.models[0].source == str(tmp_path / "m.gguf")


def test_variables_are_typed_as_yaml_would(write: Callable[[str], Path]) -> None:
    path = write("""
# a comment may name ${ANYTHING}
server:
  host: "${HOST:-}${NONE:-::1}"
  port: ${PORT}
  api_keys: [${NUMBER}, '$${literal}', "a${NUMBER}b"]
cards: [{memory: ${MEMORY:-0.5}}]
models:
  - {name: ${NAME:-a-b}, source: hf:org/name, engine: {enable_prefix_caching: ${FLAG}, seed: ${EMPTY:-7}}}
""")
    env = {"PORT": "9000", "NUMBER": "123", "FLAG": "off", "EMPTY": "", "MEMORY": "2GiB", "HOST": ""}
    registry = load(path, env).registry
    assert (registry.server.host, registry.server.port) == ("::1", 9000)
    assert registry.server.api_keys == ("123", "${literal}", "a123b")
    assert registry.cards[0].memory == MemoryAmount(nbytes=2 << 30)
    assert registry.models[0].name == "a-b"
    assert registry.models[0].engine == EngineSpec(enable_prefix_caching=False, seed=7)


@pytest.mark.parametrize("key", ["api_keys: ['${KEY}']", "admin_key: ${KEY}"])
@pytest.mark.parametrize(("env", "state"), [({}, "not set"), ({"KEY": ""}, "empty")])
def test_a_variable_without_a_default_says_something(
    write: Callable[[str], Path], key: str, env: dict[str, str], state: str
) -> None:
    """A server that wants a key must not become one that wants none."""
    with pytest.raises(RegistryError, match=f"`KEY` is {state}; set it, or give a default"):
        load(write(f"server: {{{key}}}\n" + MODEL), env)


@pytest.mark.parametrize("form", ["${KEY}", "'${KEY}'", "'${KEY:-}'"])
@pytest.mark.parametrize("blank", [" ", "\t", "\n"])
def test_blanks_are_no_key_and_not_none_either(write: Callable[[str], Path], form: str, blank: str) -> None:
    with pytest.raises(RegistryError, match=r"api_keys\[0\]: is not valid, and not shown"):
        load(write(f"server: {{api_keys: [{form}]}}\n" + MODEL), {"KEY": blank})


@pytest.mark.parametrize("form", ["${KEY}", "'${KEY}'", "${KEY:-}"])
@pytest.mark.parametrize("key", ["null", "~"])
def test_a_key_that_yaml_takes_for_nothing_is_a_key(
    write: Callable[[str], Path], form: str, key: str
) -> None:
    loaded = load(write(f"server: {{api_keys: [{form}]}}\n" + MODEL), {"KEY": key})
    assert loaded.registry.server.api_keys == (key,)


def test_a_variable_cannot_change_the_structure(write: Callable[[str], Path]) -> None:
    path = write("server: {api_keys: ['${KEY}']}\n" + MODEL)
    key = "x], port: 1, host: [\nmodels: #"
    assert load(path, {"KEY": key}).registry.server.api_keys == (key,)


def test_merge_keys_share_settings(load: Load) -> None:
    registry = load("""
models:
  - {name: a, source: hf:org/a, engine: &e {seed: 1, block_size: 32}}
  - {name: b, source: hf:org/b, engine: {<<: *e, seed: 2}}
""")
    assert registry.models[1].engine == EngineSpec(seed=2, block_size=32)


def test_positions_name_line_and_column(write: Callable[[str], Path]) -> None:
    positions = load(write(MODEL + "    engine: {seed: 1}\n"), {}).positions
    assert (positions["models[0].source"].line, positions["models[0].source"].column) == (3, 5)
    assert (positions["models[0].engine.seed"].line, positions["models[0].engine.seed"].column) == (4, 14)


FORMS = [
    ("serer: {}\n" + MODEL, "1:1: serer: unknown key `serer`. Did you mean `server`?"),
    ("zzz: 1\n" + MODEL, "1:1: zzz: unknown key `zzz`. The keys here are server, cards, models."),
    (MODEL + "    engine: {max_modl_len: 1}", "Did you mean `max_model_len`?"),
    (
        "server: {port: abc}\n" + MODEL,
        "server.port: wants a whole number from 0 to 65535, got the text `abc`",
    ),
    ("server: {port: 70000}\n" + MODEL, "got `70000`; write for example `port: 8000`"),
    ("server: {port: '80'}\n" + MODEL, "got the text `80`; remove the quotes"),
    ("server: {port: true}\n" + MODEL, "server.port: wants a whole number from 0 to 65535, got `true`"),
    ("server: {port: 1.5}\n" + MODEL, "got `1.5`"),
    ("server: {port: [1]}\n" + MODEL, "got a list"),
    ("server: {port: }\n" + MODEL, "is empty; write a value, such as `port: 8000`, or remove the key"),
    ("server: {host: 1}\n" + MODEL, 'server.host: wants text, got `1`; put it in quotes: "1"'),
    ("server: 3\n" + MODEL, "server: wants a mapping with keys such as `host`, `port` or `api_keys`"),
    ("server: {drain_timeout: -1}\n" + MODEL, "wants a number of at least 0, got `-1`"),
    ("server: {drain_timeout: .inf}\n" + MODEL, "wants a number of at least 0, got `.inf`"),
    (
        "server: {wake_timeout: 0}\n" + MODEL,
        "server.wake_timeout: wants a number above 0, got `0`; write for example `wake_timeout: 300`",
    ),
    ("server: {wake_timeout: -1}\n" + MODEL, "server.wake_timeout: wants a number above 0, got `-1`"),
    ("server: {wake_timeout: never}\n" + MODEL, "wants a number above 0, got the text `never`"),
    ("server: {max_body_bytes: 4G}\n" + MODEL, "`4G` is ambiguous; write 4GiB (1024s) or 4GB (1000s)"),
    ("server: {max_body_bytes: 4XB}\n" + MODEL, "`XB` is no unit of bytes"),
    ("server: {max_body_bytes: lots}\n" + MODEL, "`lots` is no number of bytes"),
    (
        "server: {api_keys: secret}\n" + MODEL,
        "wants a list of texts, got a single value; write `api_keys: [...]`",
    ),
    ("server: {api_keys: [1]}\n" + MODEL, "server.api_keys[0]: wants text, and YAML takes what is there"),
    (
        "server: {api_keys: [${NO_SUCH_VARIABLE}]}\n" + MODEL,
        "`NO_SUCH_VARIABLE` is not set; set it, or give a",
    ),
    ("server: {host: ${a b}}\n" + MODEL, "`${a b}` is no reference"),
    ("server:\n  host: ${A\n" + MODEL, "opens `${` and never closes it"),
    ("server:\n  host: ${A:-${B}}\n" + MODEL, "do not nest"),
    (
        "server: {admin_key: two words}\n" + MODEL,
        "server.admin_key: is not valid, and not shown here: it has a blank",
    ),
    (
        "server: {api_keys: [' a ']}\n" + MODEL,
        "server.api_keys[0]: is not valid, and not shown here: it has a",
    ),
    ("server: {allowed_origins: [nonsense]}\n" + MODEL, "server.allowed_origins[0]: `nonsense` is not valid"),
    ("server: {allowed_origins: ['https://a.b/']}\n" + MODEL, "`https://a.b/` is not valid"),
    ("server: {allowed_origins: ['https://a.b?c']}\n" + MODEL, "`https://a.b?c` is not valid"),
    ("server: {allowed_origins: ['https://me@a.b']}\n" + MODEL, "`https://me@a.b` is not valid"),
    ("server: {admin_key: }\n" + MODEL, "server.admin_key: is empty; write a value, such as `admin_key:"),
    ("cards: [{quantum: 0}]\n" + MODEL, "cards[0].quantum: wants a number above 0 or `auto`, got `0`"),
    ("cards: []\n" + MODEL, "cards: names no card"),
    (
        "cards: {name: a}\n" + MODEL,
        "cards: wants a list of mappings, got a mapping; write `- name: ...` for each",
    ),
    (
        "cards: [{memory: 0}]\n" + MODEL,
        "cards[0].memory: wants a fraction (above 0, up to 1) or bytes with a unit",
    ),
    (
        "cards: [{memory: 0MiB}]\n" + MODEL,
        "cards[0].memory: wants a fraction (above 0, up to 1) or bytes with a unit, got `0MiB`",
    ),
    (MODEL + "    burst: 0GiB\n", "wants a fraction (above 0, up to 1) or bytes with a unit, got `0GiB`"),
    ("cards: [{memory: 1.5}]\n" + MODEL, "got `1.5`; write for example `memory: 0.9` or `memory: 6GiB`"),
    ("cards: [{memory: -0.5}]\n" + MODEL, "got `-0.5`"),
    ("cards: [{memory: .nan}]\n" + MODEL, "got `.nan`"),
    ("cards: [{memory: 50%}]\n" + MODEL, "write a percentage as a fraction, such as 0.5"),
    ("cards: [{memory: 6}]\n" + MODEL, "`6` would be 6 bytes; write a fraction (0.5) or a unit (6GiB)"),
    ("cards: [{device: gpu}]\n" + MODEL, "`gpu` is not valid; write `device: cuda:0` (`auto` (cuda:0 where"),
    ("cards: [{page_size: 12}]\n" + MODEL, "wants a number of bytes of at least 4096 or `auto`, got `12`"),
    (
        "cards: [{name: a}, {name: a, device: cpu}]\n" + MODEL,
        "cards[1].name: cards[0] already has the name `a`",
    ),
    ("cards: [{device: cuda}, {name: b, device: 'cuda:0'}]\n" + MODEL, "already has the device `cuda:0`"),
    ("server: {}\n", "1:1: models: is missing; add it"),
    ("models: []\n", "1:1: models: names no model; add at least one"),
    ("models:\n  - source: hf:o/n\n", "models[0].name: is missing; add it, for example `name: smollm2`"),
    ("models: [{name: m}]\n", "models[0].source: is missing; add it, for example `source: hf:"),
    (MODEL + "    name: n\n", "4:5: models[0].name: stands twice; the first is on line 2"),
    (MODEL + "    kind: rerank\n", "`rerank` is no kind; write `llm`, `vlm`"),
    (
        MODEL + "    kind: whisper\n",
        "this version does not serve the kind `whisper` yet; it serves `llm`, `embedding` or",
    ),
    (
        MODEL + "    engine: {dtype: fp16}\n",
        "`fp16` is no dtype; write `auto`, `float32`, `float16` or `bfloat16`.",
    ),
    (MODEL + "    engine: {dtype: fp16}\n", "Did you mean `float16`?"),
    (MODEL + "    engine: {block_size: 24}\n", "24 is no power of two"),
    (MODEL + "    engine: {enable_prefix_caching: maybe}\n", "wants true or false, got the text `maybe`"),
    (
        MODEL + "    engine: {max_num_batched_tokens: 8, max_num_seqs: 64}\n",
        "a step of 8 tokens can't hold max_num_seqs (64)",
    ),
    (MODEL + "    engine: {chat_template: no.jinja}\n", "there is no file `"),
    (
        MODEL + "    engine: {cudagraph_capture_sizes: [1, two]}\n",
        "cudagraph_capture_sizes[1]: wants a whole number of at least 1, got the text `two`",
    ),
    (
        MODEL + "    engine: {cudagraph_capture_sizes: [[1]]}\n",
        "wants a whole number of at least 1, got a list",
    ),
    (
        MODEL + "    engine: {cudagraph_capture_sizes: 8}\n",
        "wants a list of whole numbers, got a single value",
    ),
    (MODEL + "    priority: high\n", "models[0].priority: wants a whole number, got the text `high`"),
    (
        MODEL + "    ttl: 0\n",
        "models[0].ttl: wants a number above 0 or `never`, got `0`; write for example `ttl: 600`",
    ),
    (MODEL + "    ttl: auto\n", "models[0].ttl: wants a number above 0 or `never`, got the text `auto`"),
    (MODEL + "    sleep_level: 3\n", "models[0].sleep_level: `3` is no sleep_level; write `1` or `2`."),
    (MODEL + "    sleep_level: true\n", "`true` is no sleep_level; write `1` or `2`."),
    (MODEL + "    sleep_level: '1'\n", "`1` is no sleep_level; write `1` or `2`; remove the quotes"),
    (
        MODEL + "    pinned: true\n    ttl: 60\n",
        "5:5: models[0].ttl: a pinned model never sleeps, so `ttl: 60` can't apply; remove `ttl` or `pinned`",
    ),
    (
        MODEL + "    pinned: true\n    preload: false\n",
        "5:5: models[0].preload: a pinned model never sleeps, so it can't start asleep; remove ",
    ),
    (MODEL + "    card: crad0\n", "there is no card `crad0`; the cards are `card0`. Did you mean `card0`?"),
    (MODEL + "    weight: 0\n", "wants a number above 0, got `0`; write for example `weight: 1`"),
    (MODEL + "    memory: 0.5\n    burst: 0.4\n", "the floor (0.5) is above the ceiling `burst` (0.4)"),
    (MODEL + "    memory: 2GiB\n    burst: 1GiB\n", "the floor (2GiB) is above the ceiling `burst` (1GiB)"),
    (MODEL + "    aliases: [m]\n", "models[0].aliases[0]: `m` already reaches models[0]; write another name"),
    (MODEL + "    sha256: abc\n", "`abc` is not valid; write `sha256: b9a0"),
    (
        MODEL + "    sha256: " + "a" * 64,
        "`sha256` pins one file, not a Hub model; pin it by hf:org/name@revision",
    ),
    (
        "models: [{name: 'a b', source: hf:o/n}]",
        "`a b` has blanks, which may not stand there; write for example `name: a-b`",
    ),
    ("models: [{name: m, source: ./nowhere/model}]", "there is no file or folder `"),
    (
        "models: [{name: m, source: ftp:x}]",
        "`ftp:` is no scheme here; write a path, hf:..., modelscope:..., pypi",
    ),
    ("models: [{name: m, source: hf:name}]", "`hf:name` is no Hub model; write hf:org/name"),
    ("models: [{name: m, source: hf:o/n/model.bin}]", "names a file that is no .gguf"),
    ("models: [{name: m, source: pypi:a/b}]", "write pypi:package==version/path/in/archive"),
    ("models: [{name: m, source: pypi:a==1/../b}]", "is no path inside an archive"),
    ("models: [{name: m, source: modelscope:a}]", "write modelscope:org/name[@revision]"),
    ("", "1:1: the file is empty"),
    ("[1, 2]", "1:1: wants a mapping with keys such as `server`, `cards` or `models`"),
    ("a: [", "1:5: not valid YAML"),
    (
        "models:\n\t- a",
        "2:1: not valid YAML: while scanning for the next token, found character '\\t' that cannot",
    ),
    ("models:\n\t- a", "indent with spaces, not tabs"),
    ("a: 1\n---\nb: 2\n", "2:1: not valid YAML: expected a single document"),
    ("a: *b", "found undefined alias"),
    ("a: \x01", "1:1: the character U+0001 may not stand in YAML"),
    ("server: {port: !!python/name:os.system 1}\n" + MODEL, "has no meaning here; remove it"),
    ("server: {<<: 3}\n" + MODEL, "`<<` wants a mapping that was named with `&` before"),
    ("server: &s {<<: *s}\n" + MODEL, "`<<` wants a mapping that was named with `&` before"),
]


@pytest.mark.parametrize(("text", "said"), FORMS, ids=range(len(FORMS)))
def test_each_mistake_is_named(text: str, said: str, mistakes: Mistakes) -> None:
    found = mistakes(text)
    assert len(found) == 1, found
    assert said in found[0]


def test_an_empty_item_lacks_what_is_required(mistakes: Mistakes) -> None:
    assert [line.split(": ")[1] for line in mistakes("models:\n  -\n")] == [
        "models[0].name",
        "models[0].source",
    ]


def test_several_mistakes_are_reported_together_in_order(mistakes: Mistakes) -> None:
    found = mistakes("""server: {prt: 1}
cards: [{name: a, memory: 3.5}]
models:
  - {name: m, source: hf:o/n, card: b, engine: {dtype: int4}}
  - {name: m, source: hf:o/n}
""")
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in found] == [
        "1:10 server.prt",
        "2:27 cards[0].memory",
        "4:31 models[0].card",
        "4:56 models[0].engine.dtype",
        "5:6 models[1].name",
    ]


def test_what_follows_from_a_mistake_is_not_one_more(mistakes: Mistakes) -> None:
    (found,) = mistakes(MODEL + "    engine: {max_num_seqs: many, max_num_batched_tokens: 8}\n")
    assert "models[0].engine.max_num_seqs" in found


@pytest.mark.parametrize(
    ("memory", "floors", "fits"),
    [
        ("4GiB", ("0.5", "0.5"), True),
        ("4GiB", ("0.5", "2GiB"), True),
        ("4GiB", ("0.5", "3GiB"), False),
        ("4GiB", ("3GiB", "2GiB"), False),
        ("0.9", ("0.7", "0.3"), True),
        ("0.9", ("0.7", "0.31"), False),
        ("0.9", ("1.0", "1MiB"), False),
        ("0.9", ("0.9", "1TiB"), True),  # can't be told without the card
    ],
)
def test_floors_fit_into_the_card(
    memory: str, floors: tuple[str, str], fits: bool, load: Load, mistakes: Mistakes
) -> None:
    models = "".join(f"  - {{name: m{i}, source: hf:o/n, memory: {f}}}\n" for i, f in enumerate(floors))
    text = f"cards: [{{memory: {memory}}}]\nmodels:\n{models}"
    if fits:
        assert len(load(text).models) == 2
    else:
        (found,) = mistakes(text)
        assert found.startswith("4:32: models[1].memory: the floors of card `card0` add up to more than its")


def test_floors_of_different_cards_do_not_add_up(load: Load) -> None:
    load("""
cards: [{name: a}, {name: b, device: cpu}]
models:
  - {name: m, source: hf:o/n, card: a, memory: 0.8}
  - {name: n, source: hf:o/n, card: b, memory: 0.8}
""")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="there is no such file"):
        load_registry(tmp_path / "none.yaml")
    with pytest.raises(RegistryError, match="can't be read"):
        load_registry(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(RegistryError, match=r"is not UTF-8 text \(byte 3\)"):
        load_registry(tmp_path / "latin.yaml")


# Files that hang or bloat whoever reads them, and what may not be shown.


def refused(path: Path) -> str:
    """The refusal of a registry file, which takes no time worth mentioning."""
    began = time.monotonic()
    with pytest.raises(RegistryError) as caught:
        load_registry(path)
    assert time.monotonic() - began < 20, "a second alone, but other work may run beside"
    assert len(str(caught.value)) < 30_000
    return str(caught.value)


def test_a_registry_that_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "pipe.yaml can't be read: it is a pipe" in refused(tmp_path / "pipe.yaml")
    assert "/dev/zero can't be read: it is a device" in refused(Path("/dev/zero"))


def test_a_huge_registry_is_not_read(write: Callable[[str], Path]) -> None:
    assert "a file of its kind has 262,144 at most" in refused(write("#" * 300_000))


def test_a_merge_bomb_does_not_go_off(write: Callable[[str], Path]) -> None:
    doubling = "".join(f"x-{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30))
    text = f"x-0: &a0 {{priority: 3}}\n{doubling}models: [{{<<: *a29, name: m, source: hf:o/n}}]\n"
    assert load(write(text), {}).registry.models[0].priority == 3, "merged twice is merged once"


def test_many_merges_are_refused(write: Callable[[str], Path]) -> None:
    many = ", ".join(f"k{i}: 1" for i in range(5000))
    assert refused(write(f"x-a: &a {{{many}}}\nmodels:\n" + "  - {<<: *a, name: m}\n" * 1000))
    chain = "".join(f"x-{i}: &a{i} {{<<: *a{i - 1}}}\n" for i in range(1, 300))
    text = f"x-0: &a0 {{priority: 3}}\n{chain}models: [{{<<: *a299, name: m, source: hf:o/n}}]\n"
    assert "more than 50 mappings merge (`<<`) one another" in refused(write(text))


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 20_000,
        "- " * 50_000,
        "a: " + "{a: " * 20_000,
        "a" * 200_000 + ": 1",
        "".join(f"key{i}: 1\n" for i in range(20_000)),
        "models:\n" + "  - {nam: m, sour: hf:o/n}\n" * 8000,
        "models: [{name: m, source: hf:o/n, kind: " + "llm" * 80_000 + "}]",
        "server: {port: " + "1:" * 100_000 + "1}\n" + MODEL,
        "server: {max_body_bytes: " + "9" * 200_000 + "GiB}\n" + MODEL,
        "server:\n  host: " + "${" * 100_000 + "\n" + MODEL,
        'server:\n  host: "' + "${A" * 60_000 + '"\n' + MODEL,
    ],
    ids=range(11),
)
def test_deep_long_and_hopeless_registries_are_refused_soon(write: Callable[[str], Path], text: str) -> None:
    assert refused(write(text))


def test_keys_of_the_file_s_own_hold_anchors(load: Load, mistakes: Mistakes) -> None:
    text = "x-shared: &shared {weight: 2, memory: 0.1}\nmodels: [{<<: *shared, name: m, source: hf:o/n}]\n"
    assert load(text).models[0].weight == 2
    (found,) = mistakes("models: [{name: m, source: hf:o/n, x-mine: 1}]")
    assert "unknown key `x-mine`" in found, "at the top only"


SECRET = "Sesame-8f3"


@pytest.mark.parametrize(
    "server",
    [
        f'{{admin_key: "{SECRET}\\n"}}',
        f'{{api_keys: ["{SECRET}\\n"]}}',
        f"{{api_keys: ['{SECRET} ']}}",
        f"{{admin_key: !{SECRET} }}",
        f"{{admin_key: *{SECRET} }}",
        f"{{admin_key: '{SECRET}${{'}}",
        f"{{admin_key: '${{{SECRET}}}'}}",
        "{admin_key: '${KEY}'}",
        "{api_keys: ['${KEY}']}",
    ],
)
def test_a_refused_key_is_not_shown(write: Callable[[str], Path], server: str) -> None:
    with pytest.raises(RegistryError) as caught:
        load(write(f"server: {server}\n{MODEL}"), {"KEY": f"{SECRET}\n"})
    assert SECRET not in str(caught.value)


def test_a_key_of_digits_is_not_shown_either(mistakes: Mistakes) -> None:
    (found,) = mistakes("server: {admin_key: 8675309}\n" + MODEL)
    assert "quote it" in found
    assert "8675309" not in found


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        ("https://a.b:443", "write `https://a.b`"),
        ("http://a.b:80", "write `http://a.b`"),
        ("https://A.b", "write `https://a.b`"),
        ("https://bücher.example", "write `https://xn--bcher-kva.example`"),
        ("https://a.b:99999", "write it as browsers send it"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str, said: str, mistakes: Mistakes) -> None:
    (found,) = mistakes(f"server: {{allowed_origins: ['{origin}']}}\n{MODEL}")
    assert f"server.allowed_origins[0]: `{origin}` would match no page" in found
    assert said in found


@pytest.mark.parametrize(
    "origin", ["https://a.b", "http://a.b:443", "http://[::1]:8080", "chrome-extension://Ab", "null", "*"]
)
def test_an_origin_as_browsers_send_it_is_taken(origin: str, load: Load) -> None:
    text = f"server: {{allowed_origins: ['{origin}']}}\n{MODEL}"
    assert load(text).server.allowed_origins == (origin,)
