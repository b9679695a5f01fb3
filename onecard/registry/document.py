"""A YAML file as nodes that know their place, with variables expanded and scalars typed."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from onecard.registry import variables
from onecard.registry.problems import Position, Problems

_ENTRY = re.compile(r"\s*(?:-\s+)?(?P<key>[\w.-]+):\s+(?P<value>[^\s\"'{}#|>][^\"'{}#]*?)\s*(?:#.*)?")
"""A line that says `key: value`, without quotes or braces."""

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MOST_MERGED = 100_000
"""Keys that all `<<` of a file may bring in together: mappings that merge mappings grow by multiplying."""
_MOST_NESTED = 50
"""Mappings that merge one another, one in the other."""
_LONGEST_SHOWN = 200
_LONGEST_TYPED = 1000
"""Characters of what may be a number or a date; YAML's numbers in base 60 take time that grows by squares."""


@dataclass(frozen=True)
class Scalar:
    """A scalar's `value` as YAML types it, and the `text` it was typed from.

    `from_variable`: it was expanded, so a key that wants text may take `text` whatever its type.
    `quoted`: it was written in quotes or as a block.
    """

    value: Any
    text: str
    from_variable: bool
    quoted: bool


@dataclass(frozen=True)
class Entry:
    """One `key: value` of a mapping."""

    key: str
    key_node: yaml.Node
    value: yaml.Node


def position(node: yaml.Node) -> Position:
    return Position(node.start_mark.line + 1, node.start_mark.column + 1)


class Document:
    """One YAML file. `root` is None where it is empty or no YAML (which is then among the problems)."""

    def __init__(self, text: str, env: Mapping[str, str], problems: Problems) -> None:
        self._masked = variables.mask(text)
        self._env = env
        self._problems = problems
        self._left_to_merge = _MOST_MERGED
        self.root = self._compose()

    def _compose(self) -> yaml.Node | None:
        try:
            return yaml.compose(self._masked.text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
            self._problems.add(place, "", self._syntax_message(error))
        except yaml.reader.ReaderError as error:
            line = self._masked.text.count("\n", 0, error.position) + 1
            message = f"the character U+{error.character:04X} may not stand in YAML"
            self._problems.add(Position(line, 1), "", message)
        except RecursionError:
            self._problems.add(Position(1, 1), "", "is nested far deeper than a registry is")
        return None

    def _syntax_message(self, error: yaml.MarkedYAMLError) -> str:
        if error.problem and "undefined alias" in error.problem:  # its name may be a key that wants quotes
            return "not valid YAML: found undefined alias; put a text that begins with `*` in quotes"
        said = ", ".join(filter(None, (error.context, error.problem)))
        message = self._masked.unmask(f"not valid YAML: {said}")
        if error.problem and "'\\t'" in error.problem:
            message += "; indent with spaces, not tabs"
        elif error.problem_mark and (entry := _ENTRY.fullmatch(self._line(error.problem_mark.line))):
            message += f'; if the value is text, put it in quotes: {entry["key"]}: "{entry["value"]}"'
        elif error.problem and ("found ':'" in error.problem or "mapping values" in error.problem):
            message += "; put text that has a colon in it in quotes"
        return message

    def _line(self, number: int) -> str:
        """Empty where it is too long to be shown."""
        lines = self._masked.text.splitlines()
        line = self._masked.unmask(lines[number]) if number < len(lines) else ""
        return line if len(line) <= _LONGEST_SHOWN else ""

    def scalar(self, node: yaml.ScalarNode) -> Scalar:
        """What a scalar says after expansion. Raises ValueError with a sentence."""
        text = self._masked.unmask(node.value)
        expanded = variables.expand(text, self._env)
        plain = node.style is None
        tag = node.tag
        if plain and len(expanded) > _LONGEST_TYPED:
            tag = "tag:yaml.org,2002:str"
        elif plain and expanded != text:
            tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, expanded, (True, False))
        return Scalar(_construct(tag, expanded), expanded, from_variable=expanded != text, quoted=not plain)

    def entries(self, node: yaml.MappingNode, path: str) -> Iterator[Entry]:
        """The entries of a mapping, merged ones (`<<`) last; a key that stands twice is reported."""
        seen: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value in node.value:
            if key_node.tag == _MERGE_TAG:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
                continue
            key = self._key_text(key_node)
            if key in seen:
                at = f"{path}.{key}" if path else key
                self._problems.add(position(key_node), at, f"stands twice; the first is on line {seen[key]}")
                continue
            seen[key] = position(key_node).line
            yield Entry(key, key_node, value)
        yield from self._merged(merged, set(seen), path, (id(node),), set())

    def _merged(
        self, nodes: list[yaml.Node], own: set[str], path: str, parents: tuple[int, ...], done: set[int]
    ) -> Iterator[Entry]:
        """What `<<` brings in: own keys win, then those of the first mapping; one that was there (`done`) has
        nothing new."""
        for node in nodes:
            if not isinstance(node, yaml.MappingNode) or id(node) in parents:
                message = "`<<` wants a mapping that was named with `&` before"
                self._problems.add(position(node), path, message)
                continue
            if len(parents) > _MOST_NESTED:
                message = (
                    f"more than {_MOST_NESTED} mappings merge (`<<`) one another; merge them in one list"
                )
                self._problems.add(position(node), path, message)
                continue
            if id(node) in done:
                continue
            done.add(id(node))
            self._left_to_merge -= len(node.value)
            if self._left_to_merge < 0:
                message = (
                    f"`<<` brings in more than {_MOST_MERGED} keys; write what a model needs where it stands"
                )
                self._problems.add(position(node), path, message)
                return
            for key_node, value in node.value:
                if key_node.tag == _MERGE_TAG:
                    deeper = value.value if isinstance(value, yaml.SequenceNode) else [value]
                    yield from self._merged(deeper, own, path, (*parents, id(node)), done)
                elif (key := self._key_text(key_node)) not in own:
                    own.add(key)
                    yield Entry(key, key_node, value)

    def _key_text(self, node: yaml.Node) -> str:
        return self._masked.unmask(node.value) if isinstance(node, yaml.ScalarNode) else "?"


def _construct(tag: str, text: str) -> Any:
    try:
        return yaml.SafeLoader("").construct_object(yaml.ScalarNode(tag, text))
    except yaml.YAMLError:
        raise ValueError(f"the YAML tag `{tag}` has no meaning here; remove it") from None
    except ValueError:
        return text
