"""`check`, `list`, `pull`, `plan` and `collect-env` on registries that are right and wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_helpers import Outcome, write_registry

Run = Callable[..., Outcome]


def test_check_a_right_registry(onecard: Run, registry_file: Path) -> None:
    ran = onecard("check", str(registry_file))
    assert ran.code == 0
    assert "tiny (embedding), far (llm)" in ran.out
    assert not ran.err


def test_check_names_file_line_key_and_the_nearest_valid_key(onecard: Run, tmp_path: Path) -> None:
    path = write_registry(tmp_path, "models:\n  - name: a\n    kind: llm\n    sorce: ./a\n")
    ran = onecard("check", str(path))
    assert ran.code == 1
    assert not ran.out
    assert f"{path}:4" in ran.err
    assert "sorce" in ran.err
    assert "source" in ran.err


@pytest.mark.parametrize("command", ["check", "list", "plan", "pull", "serve"])
def test_a_missing_file_is_one_sentence(onecard: Run, command: str, tmp_path: Path) -> None:
    ran = onecard(command, str(tmp_path / "none.yaml"))
    assert ran.code == 1
    assert "none.yaml" in ran.err
    assert ran.err.startswith(f"onecard {command}: ")
    assert len(ran.err.splitlines()) == 1


def test_list_says_what_is_here_and_what_is_not(onecard: Run, registry_file: Path) -> None:
    ran = onecard("list", str(registry_file))
    assert ran.code == 0
    tiny, far = (
        next(line for line in ran.out.splitlines() if f" {name} " in line) for name in ("tiny", "far")
    )
    assert "KiB" in tiny
    assert "64MiB" in tiny
    assert "small, wee" in tiny
    assert "not fetched" in far
    assert "25 %" in far
    assert "pypi:onecard-test-weights==1.0/far/model.gguf" in far


def test_pull_what_is_here_already(onecard: Run, local_registry: Path, tiny_embedder: Path) -> None:
    ran = onecard("pull", str(local_registry))
    assert ran.code == 0
    assert ran.out.startswith("tiny: was there, ")
    assert str(tiny_embedder) in ran.out


def test_pull_tells_what_it_fetches_and_says_fetched(
    onecard: Run, local_registry: Path, tiny_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(model, progress):  # type: ignore[no-untyped-def]
        progress.start("weights.gguf", 100)
        progress.advance(60)
        progress.start("weights.gguf", 100)
        progress.advance(100)
        progress.done()
        return tiny_embedder

    monkeypatch.setattr("onecard.gateway.cli.terminal.fetch", fetch)
    monkeypatch.setattr("onecard.registry.sources.is_fetched", lambda model: None)
    ran = onecard("pull", str(local_registry))
    assert ran.out.startswith("tiny: fetched, ")
    assert "weights.gguf" in ran.err
    assert "fetching weights.gguf (100B) ..." in ran.err


def test_plan_draws_a_bar(onecard: Run, local_registry: Path) -> None:
    ran = onecard("plan", str(local_registry))
    assert ran.code == 0, ran.err
    assert "card0 on cpu: onecard takes 512MiB of its" in ran.out
    assert "tiny: weights" in ran.out
    assert "█" in ran.out


def test_plan_as_json(onecard: Run, local_registry: Path) -> None:
    ran = onecard("plan", str(local_registry), "--json")
    (plan,) = json.loads(ran.out)
    assert plan["budget_bytes"] == 512 << 20
    assert plan["models"][0]["name"] == "tiny"
    assert plan["models"][0]["weight_bytes"] > 0


@pytest.mark.parametrize("command", ["plan", "serve"])
def test_what_does_not_fit_is_refused_with_a_sentence(
    onecard: Run, command: str, tmp_path: Path, tiny_embedder: Path
) -> None:
    path = write_registry(
        tmp_path,
        f"""
        server: {{port: 0}}
        cards: [{{name: card0, device: cpu, memory: 16KiB}}]
        models: [{{name: tiny, kind: embedding, source: {tiny_embedder}}}]
        """,
    )
    ran = onecard(command, str(path))
    assert ran.code == 1
    assert ran.err.startswith(f"onecard {command}: can't plan: ")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", ["plan", "serve"])
def test_two_cards_that_are_one_device_here_are_refused(
    onecard: Run, command: str, tmp_path: Path, tiny_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path = write_registry(
        tmp_path,
        f"""
        server: {{port: 0}}
        cards: [{{name: c0, memory: 64MiB}}, {{name: c1, device: cpu, memory: 64MiB}}]
        models: [{{name: tiny, kind: embedding, source: {tiny_embedder}}}]
        """,
    )
    ran = onecard(command, str(path))
    assert ran.code == 1
    assert "the cards c0 and c1 are the same device here, cpu: remove one" in ran.err


def test_a_model_that_onecard_does_not_know_is_refused(onecard: Run, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text('{"architectures": ["OddModel"], "model_type": "odd"}')
    (tmp_path / "odd/model.safetensors").write_bytes(b"")
    path = write_registry(
        tmp_path, "cards: [{name: c, memory: 1GiB}]\nmodels: [{name: odd, kind: llm, source: ./odd}]"
    )
    ran = onecard("plan", str(path))
    assert ran.code == 1
    assert "OddModel" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("command", ["check", "plan", "serve"])
def test_a_chat_template_that_does_not_parse_is_refused(onecard: Run, command: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "t.jinja").write_text("{% for m in messages %}{{ m.content }{% endfor %}")
    path = write_registry(
        tmp_path,
        """
        server: {port: 0}
        cards: [{name: c, memory: 1GiB}]
        models: [{name: m, source: ./m, engine: {chat_template: t.jinja}}]
        """,
    )
    ran = onecard(command, str(path))
    assert ran.code == 1
    assert f"{tmp_path / 't.jinja'} doesn't parse: unexpected '}}' in line 1" in ran.err


@pytest.mark.parametrize(
    ("config", "said"), [("{", "not valid JSON"), ("[]", "JSON object"), (None, "neither a .gguf file nor")]
)
def test_broken_files_of_a_model_are_named_without_talk_of_tracebacks(
    onecard: Run, tmp_path: Path, config: str | None, said: str
) -> None:
    (tmp_path / "broken").mkdir()
    if config is not None:
        (tmp_path / "broken/config.json").write_text(config)
    path = write_registry(
        tmp_path, "cards: [{name: c, memory: 1GiB}]\nmodels: [{name: m, kind: embedding, source: ./broken}]"
    )
    ran = onecard("plan", str(path))
    assert ran.err.startswith(f"onecard plan: can't plan: {tmp_path / 'broken'}")
    assert said in ran.err
    assert "ONECARD_DEBUG" not in ran.err


def test_a_card_that_nobody_sized_takes_what_others_leave_and_the_plan_says_so(
    onecard: Run, tmp_path: Path, tiny_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(cards: str = "") -> Outcome:
        models = f"models: [{{name: m, kind: embedding, source: {tiny_embedder}}}]"
        return onecard("plan", str(write_registry(tmp_path, f"{cards}\n{models}")))

    monkeypatch.setattr("onecard.engines.memory.card.host_memory", lambda: (12 << 30, 16 << 30))
    ran = plan()
    assert ran.code == 0
    assert "others use 4GiB of 16GiB, so onecard takes 11.5GiB" in ran.out
    refused = plan("cards: [{name: card0, memory: 0.9}]")
    assert (refused.code, "asks for 14.4GiB of 16GiB, but only 12GiB are" in refused.err) == (1, True)
    monkeypatch.setattr("onecard.engines.memory.card.host_memory", lambda: (1 << 20, 16 << 30))
    full = plan()
    assert (full.code, "so onecard takes 0B" in full.err) == (1, True)


def test_debug_lets_the_traceback_through(
    onecard: Run, local_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(registry: object, paths: object) -> None:
        raise KeyError("tensor")

    monkeypatch.setattr("onecard.engines.node.factory.plan_registry", explode)
    ran = onecard("plan", str(local_registry))
    assert ran.err == "onecard plan: can't plan: KeyError: 'tensor' (set ONECARD_DEBUG=1 for the traceback)\n"
    monkeypatch.setenv("ONECARD_DEBUG", "1")
    with pytest.raises(KeyError):
        onecard("plan", str(local_registry))


def test_collect_env_says_what_a_bug_report_needs(
    onecard: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONECARD_CACHE", str(tmp_path))
    ran = onecard("collect-env")
    for wanted in ("torch: ", "CPU capability: ", "cores usable: ", "memory: ", "backend: ", "cache: "):
        assert f"  {wanted}" in ran.out
    assert str(tmp_path) not in ran.out, "no paths"
    sections = json.loads(onecard("collect-env", "--json").out)
    assert sections["versions"]["aiohttp"][0].isdigit()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
@pytest.mark.parametrize("command", ["pull", "list", "check"])
def test_a_full_disk_is_one_sentence(command: str, local_registry: Path) -> None:
    main = "import sys; from onecard.gateway.cli import main; sys.exit(main())"
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-c", main, command, str(local_registry)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert ran.returncode == 1
    assert "No space left on device" in ran.stderr
    assert ran.stderr.startswith(f"onecard {command}: ")
    assert len(ran.stderr.splitlines()) == 1


def serves(tmp_path: Path, embedder: Path, **changes: object) -> Path:
    """A registry of a copy of `embedder` whose config has `changes`."""
    shutil.copytree(embedder, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    (tmp_path / "m/config.json").write_text(json.dumps({**config, **changes}))
    return write_registry(
        tmp_path,
        "cards: [{name: c, device: cpu, memory: 512MiB}]\nmodels: [{name: m, kind: embedding, source: ./m}]",
    )


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_cross_encoder_is_no_embedding_model(
    onecard: Run, command: str, tmp_path: Path, tiny_embedder: Path
) -> None:
    path = serves(tmp_path, tiny_embedder, architectures=["BertForSequenceClassification"])
    ran = onecard(command, str(path))
    assert ran.code == 1
    assert (
        "`kind: embedding` doesn't go with a BertForSequenceClassification; write `kind: reranker`" in ran.err
    )
    assert str(tmp_path / "m/config.json") in ran.err


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_folder_without_a_tokenizer_is_refused(
    onecard: Run, command: str, tmp_path: Path, tiny_embedder: Path
) -> None:
    path = serves(tmp_path, tiny_embedder)
    (tmp_path / "m/tokenizer.json").unlink()
    ran = onecard(command, str(path))
    assert ran.code == 1
    assert f"{tmp_path / 'm'} holds no tokenizer: there is no tokenizer.json and no vocabulary" in ran.err


def test_check_says_which_models_it_could_not_look_into(onecard: Run, registry_file: Path) -> None:
    assert "not fetched, so their files are not checked: far" in onecard("check", str(registry_file)).out
