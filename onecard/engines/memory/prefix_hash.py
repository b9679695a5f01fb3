"""The names of cached blocks: a hash over everything that the K and V of a full block depend on.

The K/V of a block depend on its own tokens and on all before it, so a block's hash covers its parent's. Equal
hashes are trusted for the chain before a block; the tokens of the block itself are compared as well on a hit.
"""

from array import array
from collections.abc import Sequence
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
