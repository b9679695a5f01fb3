"""YAML nodes -> frozen specs, by the specs' own type hints."""

from typing import Any

import yaml

from onecard.registry.document import Document, Scalar, position
from onecard.registry.problems import Position, Problems, did_you_mean, listed, shown
from onecard.registry.scalars import RefusedError, typed, wrong
from onecard.registry.shape import Key, assignment, is_spec, keys_of, wanted
from onecard.registry.variables import UnsetVariableError


class Decoder:
    """Fills specs from one document. A bad value is reported and stands as its default meanwhile.

    `positions` tells where each key path (`models[0].memory`) stands in the file.
    """

    def __init__(self, document: Document, problems: Problems) -> None:
        self._document = document
        self._problems = problems
        self.positions: dict[str, Position] = {}

    def spec(self, cls: Any, node: yaml.Node, path: str = "") -> Any:
        """The dataclass `cls` from a mapping node; an empty one counts as a mapping without keys."""
        self.positions[path] = position(node)
        values: dict[str, Any] = {}
        if isinstance(node, yaml.MappingNode):
            values = self._values(cls, node, path)
        elif not _is_null(node):
            some = listed(list(keys_of(cls))[:3])
            self._problems.add(position(node), path, f"wants a mapping with keys such as {some}")
            return cls()
        self._report_missing(cls, values, node, path)
        return cls(**values)

    def _values(self, cls: type, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        keys = keys_of(cls)
        values = {}
        for entry in self._document.entries(node, path):
            at = _join(path, entry.key)
            self.positions[at] = position(entry.key_node)
            key = keys.get(entry.key)
            if key is None and not path and entry.key.startswith("x-"):
                continue  # the file's own: a place for what `&` names
            if key is None:
                advice = did_you_mean(entry.key, keys) or f" The keys here are {', '.join(keys)}."
                self._problems.add(position(entry.key_node), at, f"unknown key `{shown(entry.key)}`.{advice}")
                continue
            try:
                values[entry.key] = self._value(key, entry.value, at)
            except RefusedError as refused:
                self._problems.add(position(entry.value), at, str(refused))
                values[entry.key] = key.default
        return values

    def _report_missing(self, cls: type, values: dict[str, Any], node: yaml.Node, path: str) -> None:
        for key in keys_of(cls).values():
            if key.info.required and key.name not in values:
                shown = "" if key.item else f", for example {assignment(key)}"
                message = f"is missing; add it{shown} ({key.info.doc.rstrip('.')})"
                self._problems.add(position(node), _join(path, key.name), message)

    def _value(self, key: Key, node: yaml.Node, path: str) -> Any:
        if key.item is not None:
            return self._list(key, node, path)
        if is_spec(key.hint):
            return self.spec(key.hint, node, path)
        if not isinstance(node, yaml.ScalarNode):
            raise RefusedError(wrong(key, _kind_of(node)))
        return typed(key, self._scalar(key, node))

    def _list(self, key: Key, node: yaml.Node, path: str) -> tuple[Any, ...]:
        if _is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            raise RefusedError(f"wants {wanted(key)}, got {_kind_of(node)}; write {_as_list(key, node)}")
        items: list[Any] = []
        for i, child in enumerate(node.value):
            at = f"{path}[{i}]"
            self.positions[at] = position(child)
            if is_spec(key.item):
                items.append(self.spec(key.item, child, at))
                continue
            try:
                items += self._item(key, child)
            except RefusedError as refused:
                self._problems.add(position(child), at, str(refused))
        return tuple(items)

    def _item(self, key: Key, node: yaml.Node) -> list[Any]:
        """The value of one item of a list of scalars, or nothing where it is dropped."""
        item = Key(key.name, key.item, False, None, key.info)
        if not isinstance(node, yaml.ScalarNode):
            raise RefusedError(f"wants {wanted(item)}, got {_kind_of(node)}")
        scalar = self._scalar(key, node)
        # A variable's `null`, or its blanks, are no empty text: a server that wants a key stays closed.
        null = scalar.value is None and not scalar.from_variable
        if key.info.drop_empty and (null or not scalar.text):
            return []
        return [typed(item, scalar)]

    def _scalar(self, key: Key, node: yaml.ScalarNode) -> Scalar:
        try:
            return self._document.scalar(node)
        except UnsetVariableError as error:  # names the variable, and that is no secret
            raise RefusedError(str(error)) from None
        except ValueError as error:
            if key.info.secret:
                raise RefusedError(
                    "can't be read: write $${ for a plain ${, and put a text that begins with ! in quotes"
                ) from None
            raise RefusedError(str(error)) from None


def _as_list(key: Key, node: yaml.Node) -> str:
    """How the list that should stand in the place of `node` is written."""
    if is_spec(key.item):
        return f"`- {next(iter(keys_of(key.item)))}: ...` for each"
    if isinstance(node, yaml.ScalarNode):
        return f"`{key.name}: [...]` with the value between the brackets"
    return assignment(key)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _kind_of(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
