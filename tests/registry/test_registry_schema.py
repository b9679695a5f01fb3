"""The JSON schema is current, and says of files what the loader says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from onecard.registry.loader import load
from onecard.registry.schema import registry_schema
from onecard.registry.shape import is_spec, keys_of
from onecard.registry.spec import Registry

CONFIGS = Path(__file__).parents[2] / "configs"
CHECKER = jsonschema.Draft202012Validator(registry_schema())


def test_the_committed_schema_is_current() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "onecard.registry.schema"], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(made) == registry_schema()
    assert made == (CONFIGS / "registry.schema.json").read_text(encoding="utf-8"), (
        "run: python -m onecard.registry.schema > configs/registry.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(registry_schema())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_our_configs_are_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=./registry.schema.json\n")
    CHECKER.validate(yaml.safe_load(text))
    assert len(load(path, {"ONECARD_API_KEY": "secret"}).registry.models) >= 2


def test_the_demo_explains_every_key() -> None:
    text = (CONFIGS / "demo.yaml").read_text(encoding="utf-8")
    for name in _all_keys(Registry):
        assert f"# {name}: " in text, f"configs/demo.yaml does not explain `{name}`"


def _all_keys(spec: type) -> list[str]:
    names = []
    for key in keys_of(spec).values():
        names.append(key.name)
        inner = key.item or key.hint
        names += _all_keys(inner) if is_spec(inner) else []
    return names


def registry(**server: Any) -> dict[str, Any]:
    return {"server": server, "models": [{"name": "m", "source": "hf:o/n"}]}


@pytest.mark.parametrize(
    "good",
    [
        registry(port="${PORT:-1}", api_keys=["", None, "k"], max_body_bytes="1.5MiB", drain_timeout=2.5),
        registry() | {"cards": [{"memory": "6GiB", "page_size": "auto"}, {"memory": 0.5, "page_size": None}]},
        registry() | {"server": None},
        {
            "models": [
                {
                    "name": "m",
                    "source": "x",
                    "memory": 0,
                    "ttl": "never",
                    "sleep_level": 2,
                    "engine": {
                        "dtype": "${D}",
                        "max_model_len": "auto",
                        "cudagraph_capture_sizes": [1, "${N}"],
                    },
                }
            ]
        },
    ],
)
def test_good_files_pass(good: dict[str, Any]) -> None:
    CHECKER.validate(good)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"models": []},
        {"models": [{"name": "m"}]},
        registry(prt=1),
        registry(port=70000),
        registry(port="80"),
        registry(drain_timeout=-1),
        registry(wake_timeout=0),
        registry(max_body_bytes="lots"),
        registry() | {"cards": [{"memory": 1.5}]},
        registry() | {"cards": [{"memory": 0}]},
        registry() | {"cards": [{"device": "gpu"}]},
        {"models": [{"name": "m", "source": "x", "kind": "rerank"}]},
        {"models": [{"name": "m", "source": "x", "sha256": "abc"}]},
        {"models": [{"name": "m", "source": "x", "engine": {"seed": True}}]},
        {"models": [{"name": "m", "source": "x", "engine": {"cudagraph_capture_sizes": [0]}}]},
        {"models": [{"name": "m", "source": "x", "ttl": 0}]},
        {"models": [{"name": "m", "source": "x", "sleep_level": "1"}]},
    ],
)
def test_bad_files_are_marked(bad: dict[str, Any]) -> None:
    assert not CHECKER.is_valid(bad)
