"""Equal prefixes have equal names, and nothing else does."""

from itertools import combinations

import pytest

from onecard.engines.memory.prefixes import chain_root, hash_block, pack_tokens


def test_a_hash_depends_on_everything_a_block_depends_on():
    root = chain_root("model")
    hashes = [
        hash_block(root, [1, 2]),
        hash_block(root, [2, 1]),
        hash_block(root, [1, 2, 3]),
        hash_block(root, [1, 2], b"tenant"),
        hash_block(root, [1, 2], b"tenant2"),
        hash_block(root, [2], b"\1\0\0\0"),
        hash_block(hash_block(root, [1, 2]), [1, 2]),
        hash_block(chain_root("other"), [1, 2]),
        hash_block(None, [1, 2]),
    ]
    assert all(a != b for a, b in combinations(hashes, 2))
    assert {len(h) for h in hashes} == {32}


def test_equal_chains_have_equal_hashes():
    assert hash_block(chain_root("m"), (1, 2), b"x") == hash_block(chain_root("m"), [1, 2], b"x")


def test_tokens_beyond_four_bytes_are_refused_not_cut():
    assert pack_tokens([-1, 2**31 - 1]) != pack_tokens([-1, 0])
    with pytest.raises(OverflowError):
        pack_tokens([2**31])
