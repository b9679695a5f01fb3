"""The demo registry's weights: given by hand, or as `onecard pull` fetches them."""

from pathlib import Path

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def demo_weights(model: str, given: Path | None) -> Path:
    """`given`, or the fetched file or folder of `model` in configs/demo.yaml (fetched now if need be)."""
    if given is not None:
        return given.resolve()
    from onecard.registry.loader import load_registry
    from onecard.registry.sources import fetch
    from onecard.registry.sources.base import NoProgress

    spec = load_registry(DEMO).find(model)
    assert spec is not None, f"{DEMO} has no model {model}"
    return fetch(spec, NoProgress())
