"""YAML nodes -> frozen specs, by the specs' own type hints."""

import math
import re
from typing import Any

import yaml

from onecard.registry.document import Document, Scalar, position
from onecard.registry.problems import Position, Problems, did_you_mean, listed
from onecard.registry.shape import Key, example, is_spec, keys_of, wanted
from onecard.registry.spec import MemoryAmount
from onecard.registry.units import UNITS, parse_bytes

_SMALLEST_AMOUNT = UNITS["KiB"]


class _RefusedError(Exception):
    """A value that its key can't take; the message is the sentence for the user."""


class Decoder:
    """Fills specs from one document. A bad value is reported and stands as its default meanwhile.

    `positions` tells where each key path (`models[0].memory`) stands in the file.
    """

    def __init__(self, document: Document, problems: Problems) -> None:
        self._document = document
        self._problems = problems
        self.positions: dict[str, Position] = {}

    def spec(self, cls: Any, node: yaml.Node, path: str = "") -> Any:
        """The dataclass `cls` from a mapping node."""
        self.positions[path] = position(node)
        if not isinstance(node, yaml.MappingNode):
            if not self._is_null(node):
                self._problems.add(position(node), path, f"wants a mapping with keys such as {_some(cls)}")
            return cls()
        keys = keys_of(cls)
        values = {}
        for entry in self._document.entries(node, path):
            at = _join(path, entry.key)
            self.positions[at] = position(entry.key_node)
            if entry.key not in keys:
                close = did_you_mean(entry.key, keys)
                self._problems.add(
                    position(entry.key_node), at, f"unknown key `{entry.key}`.{close or _known(keys)}"
                )
                continue
            try:
                values[entry.key] = self._value(keys[entry.key], entry.value, at)
            except _RefusedError as refused:
                self._problems.add(position(entry.value), at, str(refused))
                values[entry.key] = keys[entry.key].default
        self._report_missing(keys, values, node, path)
        return cls(**values)

    def _report_missing(
        self, keys: dict[str, Key], values: dict[str, Any], node: yaml.Node, path: str
    ) -> None:
        for key in keys.values():
            if key.info.required and key.name not in values:
                shown = "" if key.item else f", for example `{key.name}: {example(key)}`"
                message = f"is missing; add it{shown} ({key.info.doc.rstrip('.')})"
                self._problems.add(position(node), _join(path, key.name), message)

    def _value(self, key: Key, node: yaml.Node, path: str) -> Any:
        if key.item is not None:
            return self._list(key, node, path)
        if is_spec(key.hint):
            return self.spec(key.hint, node, path)
        if not isinstance(node, yaml.ScalarNode):
            raise _RefusedError(_wrong(key, _kind_of(node)))
        return _typed(key, self._scalar(node))

    def _list(self, key: Key, node: yaml.Node, path: str) -> tuple[Any, ...]:
        if self._is_null(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            how = f"`{key.name}: [{example(key).strip('[]')}]`"
            if is_spec(key.item):
                how = f"`- {next(iter(keys_of(key.item)))}: ...` for each"
            raise _RefusedError(f"wants {wanted(key)}, got {_kind_of(node)}; write {how}")
        items = []
        for i, child in enumerate(node.value):
            at = f"{path}[{i}]"
            self.positions[at] = position(child)
            if is_spec(key.item):
                items.append(self.spec(key.item, child, at))
                continue
            try:
                items += self._item(key, child)
            except _RefusedError as refused:
                self._problems.add(position(child), at, str(refused))
        return tuple(items)

    def _item(self, key: Key, node: yaml.Node) -> list[Any]:
        """The value of one item of a list of scalars, or nothing where it is dropped."""
        if not isinstance(node, yaml.ScalarNode):
            raise _RefusedError(f"wants text, got {_kind_of(node)}")
        scalar = self._scalar(node)
        if key.info.drop_empty and scalar.text.strip() in ("", "null", "~"):
            return []
        return [_typed(Key(key.name, key.item, False, None, key.info), scalar)]

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        try:
            return self._document.scalar(node)
        except ValueError as error:
            raise _RefusedError(str(error)) from None

    def _is_null(self, node: yaml.Node) -> bool:
        return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _typed(key: Key, scalar: Scalar) -> Any:
    """The scalar as `key` wants it. Raises _RefusedError."""
    if key.optional and (scalar.value is None or (scalar.value == "auto" and key.hint is not str)):
        return None
    if scalar.value is None and not (key.hint is str and scalar.from_variable):
        raise _RefusedError(
            f"is empty; write a value, such as `{key.name}: {example(key)}`, or remove the key"
        )
    if key.choices:
        return _choice(key, scalar)
    if key.hint is MemoryAmount:
        return _memory(key, scalar)
    if key.hint is bool:
        return _bool(key, scalar)
    if key.hint is str:
        return _text(key, scalar)
    return _number(key, scalar)


def _text(key: Key, scalar: Scalar) -> str:
    if not isinstance(scalar.value, str) and not scalar.from_variable:
        raise _RefusedError(f'wants text, got {_shown(scalar)}; put it in quotes: "{scalar.text}"')
    if key.info.pattern and not re.fullmatch(key.info.pattern, scalar.text):
        raise _RefusedError(
            f"`{scalar.text}` does not do here; write {example(key)} or the like ({key.info.doc.rstrip('.')})"
        )
    return scalar.text


def _choice(key: Key, scalar: Scalar) -> str:
    if scalar.text not in key.choices:
        close = did_you_mean(scalar.text, key.choices)
        raise _RefusedError(f"`{scalar.text}` is no {key.name}; write {listed(key.choices)}.{close}")
    return scalar.text


def _bool(key: Key, scalar: Scalar) -> bool:
    if not isinstance(scalar.value, bool):
        raise _RefusedError(_wrong(key, _shown(scalar)))
    return scalar.value


def _number(key: Key, scalar: Scalar) -> int | float:
    value = scalar.value
    if key.info.nbytes and isinstance(value, str):
        value = _bytes(scalar.text)
    if key.hint is float and isinstance(value, str) and not scalar.quoted:
        value = _float_or_none(value)
    kinds = (int,) if key.hint is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        hint = "; remove the quotes" if scalar.quoted else f"; write for example `{key.name}: {example(key)}`"
        raise _RefusedError(f"wants {wanted(key)}, got {_shown(scalar)}{hint}")
    low, above, high = key.info.minimum, key.info.above, key.info.maximum
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        raise _RefusedError(_wrong(key, f"`{scalar.text}`"))
    return float(value) if key.hint is float else value


def _float_or_none(text: str) -> float | None:
    """YAML 1.1 takes 1e3 for text; a key that wants a number does not."""
    try:
        return float(text)
    except ValueError:
        return None


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise _RefusedError(str(error)) from None


def _memory(key: Key, scalar: Scalar) -> MemoryAmount:
    value = scalar.value
    if isinstance(value, str):
        if value.endswith("%"):
            raise _RefusedError(
                f"wants {wanted(key)}, got `{value}`; write a percentage as a fraction, such as 0.5"
            )
        value = _bytes(value)
        return _byte_amount(key, value, scalar)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _RefusedError(_wrong(key, _shown(scalar)))
    low = 0 if key.info.minimum == 0 else math.ulp(0.0)
    if low <= value <= 1:
        return MemoryAmount(fraction=float(value))
    if isinstance(value, float) or value < 0 or value == 0:
        raise _RefusedError(_wrong(key, f"`{scalar.text}`"))
    return _byte_amount(key, value, scalar)


def _byte_amount(key: Key, value: int, scalar: Scalar) -> MemoryAmount:
    if value < _SMALLEST_AMOUNT:
        raise _RefusedError(
            f"`{scalar.text}` would be {value} bytes; write a fraction (0.5) or a unit (6GiB)"
        )
    return MemoryAmount(nbytes=value)


def _wrong(key: Key, got: str) -> str:
    return f"wants {wanted(key)}, got {got}; write for example `{key.name}: {example(key)}`"


def _shown(scalar: Scalar) -> str:
    return f"the text `{scalar.text}`" if isinstance(scalar.value, str) else f"`{scalar.text}`"


def _kind_of(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _known(keys: dict[str, Key]) -> str:
    return f" The keys here are {', '.join(keys)}."


def _some(cls: type) -> str:
    return listed(list(keys_of(cls))[:3])


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
