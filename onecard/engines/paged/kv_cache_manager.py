"""Gives sequences their blocks: prefix hits first, new blocks for the rest, all back at the end."""

from onecard.engines.memory.block_pool import BlockPool
from onecard.engines.memory.prefixes import chain_root, hash_block
from onecard.engines.paged.request import Request, Sequence


class KVCacheManager:
    """One an engine, over the engine's block pool. The model's name seeds the hash chain of every prefix."""

    def __init__(self, pool: BlockPool, block_size: int, model_name: str):
        self.pool = pool
        self.block_size = block_size
        self.enable_caching = pool.enable_caching
        self._root = chain_root(model_name)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def extend_hashes(self, sequence: Sequence) -> None:
        """Hash every full block of the sequence's tokens that has no hash yet."""
        if not sequence.block_hashes:
            sequence.block_hashes = list(self._prompt_hashes(sequence.request))
        self._extend(sequence.block_hashes, sequence.token_ids, sequence.request.cache_salt)

    def _prompt_hashes(self, request: Request) -> list[bytes]:
        """Once for all answers to a prompt."""
        if not request.prompt_hashes:
            self._extend(request.prompt_hashes, request.prompt_token_ids, request.cache_salt)
        return request.prompt_hashes

    def _extend(self, hashes: list[bytes], tokens: list[int], salt: bytes) -> None:
        size = self.block_size
        parent = hashes[-1] if hashes else self._root
        for start in range(len(hashes) * size, len(tokens) - size + 1, size):
            parent = hash_block(parent, tokens[start : start + size], salt)
            hashes.append(parent)

    def find_cached(self, sequence: Sequence) -> list[int]:
        """Blocks that already hold the K/V of the sequence's first tokens; at least one token is left to
        compute."""
        if not self.enable_caching or sequence.request.sampling.prompt_logprobs is not None:
            return []
        self.extend_hashes(sequence)
        found: list[int] = []
        for i in range((sequence.num_tokens - 1) // self.block_size):
            tokens = sequence.token_ids[i * self.block_size : (i + 1) * self.block_size]
            block = self.pool.lookup(sequence.block_hashes[i], tokens, self._parent(sequence, i))
            if block is None:
                break
            found.append(block)
        return found

    def start(self, sequence: Sequence, cached: list[int]) -> None:
        """Begin running: `cached` (from `find_cached`, just now) becomes the head of the block table."""
        assert not sequence.block_table
        self.pool.touch(cached)
        sequence.block_table = list(cached)
        sequence.num_offered_blocks = len(cached)
        sequence.num_computed_tokens = len(cached) * self.block_size

    def allocate_slots(self, sequence: Sequence, num_new_tokens: int) -> bool:
        """Blocks for the next `num_new_tokens` tokens; False (and nothing taken) if there are not enough."""
        missing = self.blocks_for(sequence.num_computed_tokens + num_new_tokens) - len(sequence.block_table)
        if missing <= 0:
            return True
        blocks = self.pool.get_new_blocks(missing)
        if blocks is None:
            return False
        sequence.block_table.extend(blocks)
        return True

    def cache_computed(self, sequence: Sequence) -> None:
        """Offer the blocks that are full of known tokens to the prefix cache.

        Also those that a step in flight fills: whoever finds them reads them in a later step of the same
        stream.
        """
        computed = min(sequence.num_computed_tokens, len(sequence.token_ids))
        first, last = sequence.num_offered_blocks, computed // self.block_size
        if not self.enable_caching or first >= last:
            return
        self.extend_hashes(sequence)
        for i in range(first, last):
            tokens = sequence.token_ids[i * self.block_size : (i + 1) * self.block_size]
            self.pool.cache_full_block(
                sequence.block_table[i], sequence.block_hashes[i], tokens, self._parent(sequence, i)
            )
        sequence.num_offered_blocks = last

    def free(self, sequence: Sequence) -> None:
        """Give all blocks back, the tail first: of a cached chain, the end is evicted before its beginning.

        A step in flight may still write to them: whoever gets them next writes later on the same stream.
        """
        self.pool.free(sequence.block_table[::-1])
        sequence.block_table = []
        sequence.num_offered_blocks = 0
        sequence.num_computed_tokens = 0

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        return sequence.block_hashes[index - 1] if index else self._root
