"""What of a card's memory goes where, decided before anything loads: pure arithmetic on bytes, no torch.

    budget = weights of all models + the largest workspace + arena + slack

Steps run one after another, so the workspace (activations) counts once. The arena is cut into pages, and each
model's floor and ceiling, less its weights, become pages of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onecard.engines.memory.page_size import blocks_in_page, choose_page_bytes, edge_waste, min_blocks_in_page
