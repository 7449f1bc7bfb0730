"""Which ticket (base) may write into which page: one 64-bit number per page, in memory of the caller's choice.

The number is ticket + 1, or 0 for nobody. A plain array, so that a backend can put it into memory that a writer reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Owners = NDArray[np.uint64]
MAX_TICKET = 1 << 63  # tickets are below


class GrantTable:
    """The owner's end: grants and takes back."""

    def __init__(self, owners: Owners) -> None:
        """owners: uint64 [num_pages], all 0."""
        self._owners = owners
        self._pages: dict[int, Sequence[int]] = {}

    def grant(self, ticket: int, pages: Sequence[int]) -> None:
        """Let a ticket write into pages; raises ValueError on a page that is granted or does not exist."""
        for page in pages:
            if not 0 <= page < len(self._owners):
                raise ValueError(f"page {page} does not exist, the pool has {len(self._owners)}")
            if self._owners[page]:
                raise ValueError(f"page {page} is granted to ticket {int(self._owners[page]) - 1}")
        if ticket in self._pages:
            raise ValueError(f"ticket {ticket} has a grant")
        self._owners[list(pages)] = ticket + 1
        self._pages[ticket] = pages

    def revoke(self, ticket: int) -> Sequence[int]:
        """Take a ticket's pages back and name them; none if it has no grant."""
        pages = self._pages.pop(ticket, ())
        self._owners[list(pages)] = 0
        return pages


def permits(owners: Owners, page_bytes: int, ticket: int, offset: int, nbytes: int) -> bool:
    """Whether all pages of the byte range are granted to the ticket."""
    if not 0 <= ticket < MAX_TICKET or offset < 0 or nbytes < 1 or offset + nbytes > len(owners) * page_bytes:
        return False
    first, last = offset // page_bytes, (offset + nbytes - 1) // page_bytes
    return bool((owners[first : last + 1] == ticket + 1).all())
