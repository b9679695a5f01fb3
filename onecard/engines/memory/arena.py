"""All KV memory of a card: one tensor of bytes, allocated once and never freed while the card serves."""

import torch


class DeviceArena:
    """`nbytes` on `device` as one `uint8` tensor: `num_pages` equal pages of `page_bytes`, the rest left out.

    The content is undefined and stays so: a page that changes hands holds stale bytes of another dtype, which
    may be NaN patterns. Readers must mask their loads.
    """

    def __init__(self, nbytes: int, page_bytes: int, device: torch.device | str = "cpu"):
        if page_bytes <= 0 or nbytes < 0:
            raise ValueError(f"an arena of {nbytes} bytes can't be cut into pages of {page_bytes} bytes")
        self.page_bytes = page_bytes
        self.num_pages = nbytes // page_bytes
        try:
            self.tensor = torch.empty(self.num_pages * page_bytes, dtype=torch.uint8, device=device)
        except RuntimeError as error:
            raise MemoryError(
                f"can't allocate an arena of {self.nbytes:,} bytes on {device} ({error}): "
                "give the card less `memory:`"
            ) from error

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def device(self) -> torch.device:
        return self.tensor.device
