"""Two texts as one: a query and a document, as a cross-encoder's tokenizer joins them."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers


@dataclass(frozen=True, slots=True)
class Pair:
    """`type_ids`: which of the two each token belongs to, as the tokenizer says; None where all are 0."""

    token_ids: list[int]
    type_ids: list[int] | None


def encode_pairs(
    backend: tokenizers.Tokenizer,
    first: str,
    others: Sequence[str],
    most_of_other: int | None = None,
    most: int | None = None,
) -> list[Pair]:
    """`first` with each of the `others`, special tokens included. `first` is encoded once.

    An other one has `most_of_other` tokens of its own at most, and a pair `most` in all: what is longer of
    the two is cut, at its end.
    """
    head = backend.encode(first, add_special_tokens=False)
    added = backend.num_special_tokens_to_add(is_pair=True)
    pairs = []
    for encoding in backend.encode_batch(list(others), add_special_tokens=False):
        keep_head, keep = len(head), min(len(encoding), most_of_other or len(encoding))
        if most is not None:
            keep_head, keep = longest_first(keep_head, keep, max(most - added, 0))
        shortened = head
        if keep_head < len(head):
            shortened = backend.encode(first, add_special_tokens=False)
            shortened.truncate(keep_head)
        encoding.truncate(keep)
        joined = backend.post_process(shortened, encoding, add_special_tokens=True)
        types = joined.type_ids
        pairs.append(Pair(joined.ids, types if any(types) else None))
    return pairs


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
