"""Embeddings of images seen before, by content hash: least recently used leaves first, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class EmbeddingCache:
    """Maps (content hash, grid) to an embedding [rows, hidden]."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Tensor] = OrderedDict()
        self.nbytes = 0

    def get(self, key: str) -> Tensor | None:
        """The embedding, now the most recently used; None if absent."""
        if (found := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.nbytes = 0

    def put(self, key: str, embedding: Tensor) -> None:
        """Keep an embedding unless it alone exceeds the bound."""
        size = embedding.numel() * embedding.element_size()
        if key in self._entries or size > self._max_bytes:
            return
        self._entries[key] = embedding
        self.nbytes += size
        while self.nbytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= oldest.numel() * oldest.element_size()
