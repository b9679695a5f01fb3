"""How one model's K and V lie in the arena: block-major, all layers of a block together."""

from dataclasses import dataclass

import torch

from onecard.engines.memory.arena import DeviceArena
from onecard.engines.memory.page_size import blocks_in_page, choose_page_bytes, edge_waste, min_blocks_in_page

__all__ = ["KVLayout", "choose_page_bytes", "edge_waste", "min_blocks_in_page"]


@dataclass(frozen=True)
class KVLayout:
    """The grid that a model lays over the whole arena.

    Every model reshapes the same bytes in its own dtype; models never collide because each uses only blocks
    that lie wholly inside pages it owns (`blocks_in_page`).
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def block_bytes(self) -> int:
        """Bytes of `block_size` tokens, all layers, K and V."""
        return 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def num_blocks(self, arena: DeviceArena) -> int:
        """Blocks of the grid, page boundaries not considered."""
        return arena.nbytes // self.block_bytes

    def view(self, arena: DeviceArena) -> torch.Tensor:
        """The arena as `[n, layers, 2, block_size, kv_heads, head_dim]`, sharing its memory."""
        n = self.num_blocks(arena)
        grid = arena.tensor[: n * self.block_bytes].view(self.dtype)
        return grid.view(n, self.num_layers, 2, self.block_size, self.num_kv_heads, self.head_dim)

    def blocks_in_page(self, page: int, page_bytes: int) -> range:
        """Ids of the blocks that lie wholly inside `page`."""
        return blocks_in_page(page, page_bytes, self.block_bytes)
