"""What two engines must agree on before KV pages can move between them."""

from __future__ import annotations

import msgspec


class KVLayout(msgspec.Struct, frozen=True):
    """Shape of a KV pool; both sides agree on all but num_pages. A page is one contiguous block of page_bytes."""

    model: str  # fingerprint: architecture and sizes
    dtype: str
    page_size: int  # tokens
    page_bytes: int
    num_pages: int
