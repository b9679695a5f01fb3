"""The JSON schema of a registry file (draft 2020-12), for editors.

`python -m onecard.registry.schema > configs/registry.schema.json` writes it anew.
"""

import json
import re
import sys
from typing import Any

from onecard.registry.shape import Key, as_yaml, is_spec, keys_of
from onecard.registry.spec import MemoryAmount, Registry
from onecard.registry.units import BYTES_PATTERN

_VARIABLE = {"$ref": "#/$defs/variable"}


def registry_schema() -> dict[str, Any]:
    """The schema of a whole registry file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onecard registry",
        **_mapping(Registry),
        "patternProperties": {"^x-": {"description": "The file's own; a place for anchors."}},
        "$defs": {
            "variable": {
                "type": "string",
                "pattern": r"\$\{",
                "description": "Text with ${NAME} or ${NAME:-default}.",
            },
            "bytes": {"type": "string", "pattern": f"^{BYTES_PATTERN}$"},
        },
    }


def _mapping(spec: type) -> dict[str, Any]:
    keys = keys_of(spec)
    schema: dict[str, Any] = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _property(key) for name, key in keys.items()},
    }
    required = [name for name, key in keys.items() if key.info.required]
    return {**schema, "required": required} if required else schema


def _property(key: Key) -> dict[str, Any]:
    """The schema of one key with its meaning; `default` as it would be written."""
    schema: dict[str, Any] = {"description": key.info.doc}
    if not (key.info.required or is_spec(key.hint) or (key.item and is_spec(key.item))):
        schema["default"] = _json_default(key)
    return {**schema, **_value(key)}


def _value(key: Key) -> dict[str, Any]:
    if key.item is not None:
        items = _mapping(key.item) if is_spec(key.item) else _item(key)
        return {"type": "array", "items": items, **({"minItems": 1} if key.info.required else {})}
    if is_spec(key.hint):
        return _mapping(key.hint) | {"type": ["object", "null"]}
    options = _scalar(key)
    if key.optional:
        options.append({"type": "null"} if key.hint is str else {"enum": [key.info.none, None]})
    return {"anyOf": [*options, _VARIABLE]}


def _item(key: Key) -> dict[str, Any]:
    """The schema of one item of a list of scalars."""
    text = _scalar(Key(key.name, key.item, False, None, key.info))
    return {"anyOf": [*text, *([{"type": "null"}] if key.info.drop_empty else []), _VARIABLE]}


def _scalar(key: Key) -> list[dict[str, Any]]:
    """What a scalar may be, variables aside."""
    if key.choices:
        return [{"enum": list(key.choices)}]
    if key.hint is MemoryAmount:
        low = {"minimum": 0} if key.info.minimum == 0 else {"exclusiveMinimum": 0}
        whole = {"type": "integer", "minimum": 1024}
        return [{"type": "number", **low, "maximum": 1}, whole, {"$ref": "#/$defs/bytes"}]
    if key.hint is bool:
        return [{"type": "boolean"}]
    if key.hint is str:
        return [{"type": "string", **({"pattern": f"^({key.info.pattern})$"} if key.info.pattern else {})}]
    number = {"type": "integer" if key.hint is int else "number", **_bounds(key)}
    return [number, {"$ref": "#/$defs/bytes"}] if key.info.nbytes else [number]


def _bounds(key: Key) -> dict[str, float]:
    info = key.info
    bounds = {"minimum": info.minimum, "exclusiveMinimum": info.above, "maximum": info.maximum}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _json_default(key: Key) -> Any:
    if isinstance(key.default, MemoryAmount):
        return key.default.fraction if key.default.nbytes is None else key.default.nbytes
    if key.default is None:
        return key.info.none if key.hint is not str else None
    if isinstance(key.default, tuple):
        return list(key.default)
    return as_yaml(key.default, key) if key.info.nbytes else key.default


def main() -> None:
    """Writes the schema to stdout."""
    text = json.dumps(registry_schema(), indent=2, ensure_ascii=False)
    # Short lists and objects on one line: the file is read by people too.
    sys.stdout.write(
        re.sub(r"\[\s+([^\[\]{}]{1,60}?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"
    )


if __name__ == "__main__":
    main()
