"""The names of cached blocks, and which block holds which prefix: one block a name, one name a block.

The K/V of a block depend on its own tokens and on all before it, so a full block's name is a hash that covers
its parent's. Equal hashes are trusted for the chain before a block; the tokens of the block itself are
compared as well on a hit.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_DIGEST_BYTES = 32


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as 4-byte signed integers: a compact key to compare. OverflowError beyond that range."""
    return array("i", token_ids).tobytes()


def chain_root(model_name: str) -> bytes:
    """The parent of a prompt's first block: no two models share a chain."""
    return blake2b(model_name.encode(), digest_size=_DIGEST_BYTES, person=b"onecard root").digest()


def hash_block(parent: bytes | None, token_ids: Sequence[int], extra: bytes = b"") -> bytes:
    """The hash of a full block, 32 bytes.

    `parent` is the block before it, or the model's `chain_root` (None: the chain of a model without a name).
    `extra` is what else the block's K/V depend on, or what may see them: adapter, image hash, tenant salt.
    """
    digest = blake2b(digest_size=_DIGEST_BYTES, person=b"onecard block")
    digest.update(parent or bytes(_DIGEST_BYTES))
    digest.update(len(extra).to_bytes(8, "little"))
    digest.update(extra)
    digest.update(pack_tokens(token_ids))
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Prefix:
    hash: bytes
    tokens: bytes
    parent: bytes | None


class PrefixTable:
    """Blocks by the hash of their prefix. The tokens of a block are kept and compared on a hit."""

    def __init__(self) -> None:
        self._prefixes: dict[int, _Prefix] = {}
        self._blocks: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._prefixes)

    def __contains__(self, block: object) -> bool:
        return block in self._prefixes

    def put(self, block: int, block_hash: bytes, token_ids: Sequence[int], parent: bytes | None) -> None:
        """Does nothing where another block has the hash or the block has one: the first is kept."""
        if block_hash not in self._blocks and block not in self._prefixes:
            self._blocks[block_hash] = block
            self._prefixes[block] = _Prefix(block_hash, pack_tokens(token_ids), parent)

    def find(self, block_hash: bytes, token_ids: Sequence[int], parent: bytes | None) -> int | None:
        """The block under `block_hash` if its tokens, and its parent where both are known, are these."""
        block = self._blocks.get(block_hash)
        if block is None:
            return None
        prefix = self._prefixes[block]
        same_parent = parent is None or prefix.parent is None or prefix.parent == parent
        return block if same_parent and prefix.tokens == pack_tokens(token_ids) else None

    def drop(self, block: int) -> None:
        """Forgets what a block holds, if anything."""
        prefix = self._prefixes.pop(block, None)
        if prefix is not None:
            del self._blocks[prefix.hash]

    def move(self, block: int, to: int) -> None:
        """What a block holds, if anything, now lies in block `to`, which holds nothing yet."""
        prefix = self._prefixes.pop(block, None)
        if prefix is not None:
            self._prefixes[to] = prefix
            self._blocks[prefix.hash] = to

    def clear(self) -> None:
        self._prefixes.clear()
        self._blocks.clear()

    def is_consistent(self) -> bool:
        return len(self._blocks) == len(self._prefixes) and all(
            self._blocks.get(prefix.hash) == block for block, prefix in self._prefixes.items()
        )
