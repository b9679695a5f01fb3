"""A registry file -> frozen specs."""

from pathlib import Path

from onecard.registry.spec import Registry


def load_registry(path: str | Path) -> Registry:
    """The registry in the YAML file `path`; RegistryError with every problem found."""
    raise NotImplementedError
