"""Two texts as one: a query and a document, as a cross-encoder's tokenizer joins them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice

import tokenizers

from onecard.engines.text.generation_config import ModelFileError


@dataclass(frozen=True, slots=True)
class Pair:
    """`type_ids`: which of the two each token belongs to, as the tokenizer says; None where all are 0."""

    token_ids: list[int]
    type_ids: list[int] | None


@dataclass(frozen=True, slots=True)
class _Tokens:
    ids: list[int]
    types: list[int]


@dataclass(frozen=True)
class PairTemplate:
    """What a tokenizer puts around two texts, and the type that it gives to the tokens of each.

    Joining two texts' ids is then all that a pair takes: each text is encoded once, and what is cut off is
    never joined (the library's own `Encoding.truncate` keeps all that it cuts off, and its `post_process`
    makes a pair of each two of those pieces).
    """

    before: _Tokens
    between: _Tokens
    after: _Tokens
    first_type: int
    second_type: int

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> "PairTemplate":
        """Raises `ModelFileError` for a tokenizer that doesn't join two texts one after the other."""
        sample = next(_words(backend), None)
        if sample is None:
            raise ModelFileError("the tokenizer has no word that it finds in a text again")
        joined = backend.encode(sample, sample, add_special_tokens=True)
        owners = joined.sequence_ids
        if [owner for owner, _ in groupby(owners) if owner is not None] != [0, 1]:
            raise ModelFileError("the tokenizer joins two texts otherwise than one after the other")
        first, second = ([i for i, owner in enumerate(owners) if owner == which] for which in (0, 1))

        def part(start: int, end: int) -> _Tokens:
            return _Tokens(joined.ids[start:end], joined.type_ids[start:end])

        return cls(
            part(0, first[0]),
            part(first[-1] + 1, second[0]),
            part(second[-1] + 1, len(joined.ids)),
            joined.type_ids[first[0]],
            joined.type_ids[second[0]],
        )

    @cached_property
    def num_added(self) -> int:
        """Tokens of a pair that are of neither text."""
        return sum(len(part.ids) for part in (self.before, self.between, self.after))

    @cached_property
    def num_types(self) -> int:
        given = (*self.before.types, *self.between.types, *self.after.types)
        return 1 + max((self.first_type, self.second_type, *given))

    def join(self, first: list[int], second: list[int], typed: bool = True) -> Pair:
        """The pair of two texts' ids, each encoded without special tokens. Not `typed`: without types."""
        ids = [*self.before.ids, *first, *self.between.ids, *second, *self.after.ids]
        if not typed or self.num_types == 1:
            return Pair(ids, None)
        types = [*self.before.types, *[self.first_type] * len(first), *self.between.types]
        types += [*[self.second_type] * len(second), *self.after.types]
        return Pair(ids, types if any(types) else None)


def longest_first(first: int, second: int, most: int) -> tuple[int, int]:
    """What stays of two lengths so that they are `most` together: the longer one is cut first, and where both
    are cut, both to half (as the `tokenizers` library's "longest_first", which CrossEncoder uses)."""
    if first + second <= most:
        return first, second
    short, long = min(first, second), max(first, second)
    long = long if short > most else max(short, most - short)
    if short + long > most:
        short = most // 2
        long = short + most % 2
    return (long, short) if first > second else (short, long)


def _words(backend: tokenizers.Tokenizer) -> Iterator[str]:
    """Texts of which something is left when they are encoded."""
    known = islice(backend.get_vocab(with_added_tokens=False), 1000)
    return (word for word in ("a", *known) if backend.encode(word, add_special_tokens=False).ids)
