"""What modules.json and its folders say."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from onecard.engines.oneshot.heads.pool import Pooling
from onecard.engines.oneshot.sentence_config import SentenceConfig, load_sentence_config
from onecard.engines.text.generation_config import ModelFileError


def write(folder: Path, modules: list[str], pooling: dict[str, Any], **files: dict[str, Any]) -> Path:
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    entries = [
        {
            "idx": i,
            "name": str(i),
            "path": paths.get(name, f"{i}_{name}"),
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "max"}, "max"),
        ({}, "mean"),
    ],
)
def test_reads_the_pooling_mode_in_both_spellings(tmp_path: Path, pooling: dict[str, Any], mode: Any) -> None:
    config = load_sentence_config(write(tmp_path, ["Transformer", "Pooling"], pooling))
    assert config == SentenceConfig(tmp_path, Pooling(mode))


def test_reads_the_rest(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        ["Transformer", "Pooling", "Dropout", "Normalize"],
        {"pooling_mode_cls_token": True},
        sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
        config={"matryoshka_dimensions": [64, 32]},
    )
    expected = SentenceConfig(tmp_path, Pooling("cls", True), 256, True, True, (32, 64))
    assert load_sentence_config(folder) == expected


def test_a_plain_encoder_pools_by_mean(tmp_path: Path) -> None:
    assert load_sentence_config(tmp_path) == SentenceConfig(tmp_path, Pooling("mean", False))


@pytest.mark.parametrize(
    ("stated", "limit", "expected"),
    [({}, 40, 40), ({"max_seq_length": 64}, 40, 64), ({"max_seq_length": None}, 40, 40), ({}, None, None)],
)
def test_the_tokenizer_s_limit_counts_where_the_encoder_s_file_is_silent(
    tmp_path: Path, stated: dict[str, Any], limit: int | None, expected: int | None
) -> None:
    files = {"sentence_bert_config": stated, "tokenizer_config": {"model_max_length": limit}}
    folder = write(tmp_path, ["Transformer", "Pooling"], {}, **files)
    assert load_sentence_config(folder).max_seq_length == expected


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "'Dense'"),
        (["Transformer", "Normalize", "Pooling"], {}, "'Normalize'"),
        (["Transformer"], {}, "pooling None"),
        (["WordEmbeddings", "Pooling"], {}, "first module"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "'weightedmean'"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            r"cls\+mean",
        ),
    ],
)
def test_refuses_what_it_can_not_compute(
    tmp_path: Path, modules: list[str], pooling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_sentence_config(write(tmp_path, modules, pooling))


def test_refuses_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a list of"):
        load_sentence_config(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"sentence_bert_config": {"max_seq_length": "256"}}, r"sentence_bert_config\.json: max_seq_length"),
        ({"sentence_bert_config": {"max_seq_length": -1}}, r"sentence_bert_config\.json: max_seq_length"),
        ({"config": {"matryoshka_dimensions": ["64"]}}, r"config\.json: matryoshka_dimensions"),
        ({"config": {"matryoshka_dimensions": 64}}, "says what makes no sense"),
    ],
)
def test_refuses_numbers_that_are_none(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        load_sentence_config(write(tmp_path, ["Transformer", "Pooling"], {}, **files))


def test_a_module_stays_in_the_model_s_folder(tmp_path: Path) -> None:
    folder = write(tmp_path, ["Transformer", "Pooling"], {})
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelFileError, match=r"modules\.json: .* would lie outside the model's folder"):
        load_sentence_config(folder)


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"])
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, ["Transformer", "Pooling"], {})
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelFileError, match=rf"{name} can't be read: it is a pipe"):
        load_sentence_config(folder)


@pytest.mark.parametrize("limit", [float("inf"), float("nan"), 1e30, "512"])
def test_a_tokenizer_without_a_limit_worth_the_name(tmp_path: Path, limit: Any) -> None:
    folder = write(tmp_path, ["Transformer", "Pooling"], {}, tokenizer_config={"model_max_length": limit})
    assert load_sentence_config(folder).max_seq_length in (None, int(1e30))


@pytest.mark.weights
def test_minilm(minilm_path: Path) -> None:
    expected = SentenceConfig(minilm_path, Pooling("mean", True), 256)
    assert load_sentence_config(minilm_path) == expected
