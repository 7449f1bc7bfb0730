"""The memory of the KV cache.

Page-major: one page holds `page_size` tokens of *all* layers, keys and values, in one contiguous block, so that handing
a page to another engine is a single copy however many layers the model has (docs/adr/0002). A layer is a strided view.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from epd_runtime.kvcache.layout import KVLayout
from epd_runtime.model_config import ModelConfig


class KVPool:
    """All pages as one tensor [pages, layers, 2, page_size, kv_heads, head_dim]."""

    def __init__(self, layout: KVLayout, config: ModelConfig, dtype: torch.dtype, storage: Tensor) -> None:
        """storage: uint8 [num_pages * page_bytes] on the device where attention runs, and maybe a scratch page more."""
        text = config.text
        self.layout = layout
        self.scratch_page = layout.num_pages if len(storage) > layout.num_pages * layout.page_bytes else None
        self.storage = storage[: layout.num_pages * layout.page_bytes]
        self._tensor = storage.view(dtype).view(
            -1, text.num_layers, 2, layout.page_size, text.num_kv_heads, text.head_dim
        )
        self._layers = [(self._tensor[:, index, 0], self._tensor[:, index, 1]) for index in range(text.num_layers)]

    @property
    def device(self) -> torch.device:
        """Where the pages are."""
        return self._tensor.device

    def clear(self, pages: Tensor) -> None:
        """Zero pages (int64 [n]) of all layers: nothing of their former owner, such as NaN, is left in them."""
        self._tensor.index_fill_(0, pages, 0)

    def save(self, pages: Sequence[int]) -> Tensor:
        """A copy of pages in host memory."""
        return self._tensor[torch.as_tensor(pages, device=self._tensor.device)].to("cpu")

    def load(self, saved: Tensor, pages: Sequence[int]) -> None:
        """Put a copy back, into any pages of the same number."""
        self._tensor[torch.as_tensor(pages, device=self._tensor.device)] = saved.to(self._tensor.device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each a view [pages, page_size, kv_heads, head_dim]."""
        return self._layers[index]


def page_bytes(config: ModelConfig, dtype: torch.dtype, page_size: int) -> int:
    """Bytes of one page."""
    text = config.text
    return text.num_layers * 2 * page_size * text.num_kv_heads * text.head_dim * dtype.itemsize
